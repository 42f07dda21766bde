"""A training step never makes the host wait for the device: kernels are queued, nothing is read back or copied over.

Steps run on the meta device, whose tensors have no values, so whatever asks for one fails. Two modes watch the rest:
operations whose result has a size that depends on values, copies between host and device, and tensors that are made of
Python numbers (copied from pageable memory, for which a GPU's host waits, too).
"""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stcl.methods import METHODS, Preparation
from stcl.methods.memory import ConfidenceMemory
from stcl.methods.settings import Masking, Teacher
from stcl.methods.stcl import Alignment, FeatureFusion, SequenceFusion
from stcl.models import build_segmenter
from stcl.models.views import FrameViews
from stcl.ops.fourier import swap_amplitude
from stcl.ops.masking import mask_patches
from stcl.ops.pseudo_labels import PseudoLabels, class_weights
from stcl.ops.warp import photometric_error
from stcl.training.devices import make_fabric
from stcl.training.loop import take_step
from stcl.training.settings import TrainingSettings
from stcl.training.state import Training

FULL = Preparation(match_histogram=True, fourier_beta=0.1, augment_source=True, rescale=(1.0, 1.5))
PARTS = {
    "sequence_fusion": SequenceFusion(target_patches=True, into_source=True),
    "feature_fusion": FeatureFusion(stage="stage2", start=0.0),
    "alignment": Alignment(form="contrastive", pairs=2, adaptive=True),
}
CASES = {
    "source only": ("source_only", {}),
    "stcl": ("stcl", {}),
    "tps": (
        "tps",
        {"weighting": "class_threshold", "teacher": Teacher(flip=True, flow_error=0.1), "masking": Masking(0.5, 8)},
    ),
    "fusion during the warm-up": ("stcl", {"warmup": 9, "sequence_fusion": SequenceFusion(during_warmup=True)}),
    "dacs": ("dacs", {"teacher": Teacher(interval=0), "weighting": "class_share"}),
    "frozen teacher, two pairs": ("stcl", {"warmup": 1, "teacher": Teacher(kind="frozen"), **PARTS}),
    "student as teacher": (
        "stcl",
        {"teacher": Teacher(kind="self", interval=2, flow_consistency=True), "weighting": "threshold"},
    ),
    "running statistics": ("stcl", {"teacher": Teacher(statistics="running", interval=0), "weighting": "none"}),
    "named rare classes": (
        "stcl",
        {"sequence_fusion": SequenceFusion(rare_classes=["pole"], target_patches=True), "augment_target": False},
    ),
}
assert {name for name, _ in CASES.values()} == set(METHODS)

WAITING = {
    "_local_scalar_dense",  # item(), bool(), tolist()
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
    "repeat_interleave",
    "histc",
}
"""Operations that read values of the device back."""

META = torch.device("meta")


class HostWaitsError(Exception):
    """The host would wait for the device."""


class Operations(TorchDispatchMode):
    """Refuses operations that read back, and those on tensors of both sides; it sees the backward pass, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sides = {tensor.device.type for tensor in tensors}
        if name in WAITING and sides != {"cpu"}:
            raise HostWaitsError(f"{name} reads values back")
        if name in ("index", "index_put", "index_put_") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        ):
            raise HostWaitsError("a boolean mask as index")
        copied = name in ("copy_", "_to_copy", "_foreach_copy_")
        # A number in a CPU tensor without axes goes to a kernel as its argument, but copies wait.
        shapes = {tensor.device.type for tensor in tensors if copied or tensor.ndim}
        target = kwargs.get("device") if name == "_to_copy" else None
        if len(shapes | ({target.type} if target is not None else set())) > 1:
            raise HostWaitsError(f"{name} between host and device")
        return func(*args, **kwargs)


class Numbers(TorchFunctionMode):
    """Refuses tensors made of Python numbers on the device, lists as an index among them; the forward pass only."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == META:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in index):
                raise HostWaitsError("a list as index")
        result = func(*args, **kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor) and result.device == META:
            raise HostWaitsError("a tensor of Python numbers")
        return result


def on_meta(clip):
    return clip.map(lambda tensor: tensor.to(META))


def take_steps(method, run, make_batch, steps=2):
    """Steps without an optimiser on the meta device: preparation, losses, gradients, weight average."""
    method.to(META)
    method.step_generator = torch.Generator  # a generator of the meta device does not exist, nor is one needed
    for step in range(steps):
        data = {name: on_meta(clip) for name, clip in make_batch(method, batch=2, seed=step).items()}
        method.zero_grad()
        with Numbers(), Operations():
            method(data).backward()
            method.average.update(method.network, method.step)
        method.step += 1
        assert all(parameter.grad is not None for parameter in method.network.parameters())


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none to switch off."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.parametrize(("name", "settings"), CASES.values(), ids=CASES)
def test_the_host_never_waits_in_a_step(make_method, make_batch, make_run, name, settings):
    method = make_method(name, preparation=FULL, **settings)
    take_steps(method, make_run(method), make_batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "settings"), CASES.values(), ids=CASES)
def test_a_gpu_says_the_same(make_method, make_batch, name, settings):
    """torch's own watch raises where the host waits in a step of the loop, from the second on: at first, libraries set
    up."""
    method = make_method(name, preparation=FULL, **settings)
    options = TrainingSettings(accelerator="gpu", gradient_clip=1.0)
    training = Training(make_fabric(options), method, SimpleNamespace(training=options))
    training.start()
    for step in range(3):
        pinned = {name: clip.pin_memory() for name, clip in make_batch(method, batch=2, seed=step).items()}
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            take_step(training, pinned)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not training.reports.read()
        assert training.reports.skipped == []


def cell(tensor):
    return tensor.new_zeros((), device="cpu")


MISTAKES = {
    "item": lambda tensor: tensor.sum().item(),
    "truth": lambda tensor: 1 if tensor.sum() > 0 else 0,
    "list": lambda tensor: tensor.flatten()[:2].tolist(),
    "mask": lambda tensor: tensor[tensor > 0],
    "masked write": lambda tensor: tensor.clone().index_put_((tensor > 0,), tensor.sum()),
    "nonzero": lambda tensor: tensor.nonzero(),
    "unique": lambda tensor: tensor.unique(),
    "bincount": lambda tensor: tensor.flatten().long().bincount(),
    "to the host": lambda tensor: tensor.cpu(),
    "to the device": lambda tensor: torch.zeros(3).to(tensor.device),
    "number to the device": lambda tensor: cell(tensor).to(tensor.device),
    "copy": lambda tensor: tensor.new_zeros(()).copy_(cell(tensor)),
    "repeats": lambda tensor: torch.arange(3, device=tensor.device).repeat_interleave(
        torch.ones(3, dtype=torch.long, device=tensor.device)
    ),
}


NUMBERS = {
    "tensor of numbers": lambda tensor: torch.tensor([1.0, 2.0], device=tensor.device),
    "new tensor": lambda tensor: tensor.new_tensor((1.0, 2.0)),
    "list as index": lambda tensor: tensor[:, [0, 1]],
    "list as place": lambda tensor: tensor.clone().__setitem__((slice(None), [0, 1]), 0.0),
}


@pytest.mark.parametrize("mistake", (MISTAKES | NUMBERS).values(), ids=MISTAKES | NUMBERS)
def test_a_mistake_is_seen(mistake):
    with Numbers(), Operations(), pytest.raises(HostWaitsError):
        mistake(torch.zeros(3, 4, device=META))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_method_that_waits_is_seen(make_method, make_batch, make_run, monkeypatch, name, where):
    """The test above can fail: one careless line in the losses, or in a gradient, is found."""
    method = make_method(name)
    losses = method.losses

    def careless(*args):
        terms = losses(*args)
        if where == "forward":
            terms["source"].item()
        else:
            terms["source"].register_hook(lambda gradient: gradient * gradient.item())
        return terms

    monkeypatch.setattr(method, "losses", careless)
    with pytest.raises(HostWaitsError):
        take_steps(method, make_run(method), make_batch, steps=1)


def test_a_number_on_the_host_may_be_an_operand(make_method, make_batch, make_run, monkeypatch):
    method = make_method("source_only")
    losses = method.losses
    monkeypatch.setattr(method, "losses", lambda *args: {"source": losses(*args)["source"] * torch.tensor(2.0)})
    take_steps(method, make_run(method), make_batch, steps=1)


def pseudo_on_meta():
    confidence = torch.rand(2, 8, 12, device=META)
    return PseudoLabels(torch.zeros(2, 8, 12, dtype=torch.long, device=META), confidence, confidence)


def remember_confidences():
    MEMORY.update(pseudo_on_meta())
    return class_weights(pseudo_on_meta(), MEMORY.thresholds(0.5, 0.9))


MEMORY = ConfidenceMemory(3).to(META)
TILED = FrameViews(build_segmenter(3, head_settings={"width": 8}).eval().to(META), tile=(64, 64))
FRAMES = torch.zeros(2, 2, 3, 16, 24, device=META)
FLOW = torch.zeros(2, 2, 16, 24, device=META)
OPERATIONS = {
    "masking": lambda: mask_patches(FRAMES, 0.5, 8, torch.Generator()),
    "amplitudes": lambda: swap_amplitude(FRAMES, torch.zeros(2, 1, 3, 20, 30, device=META), 0.1),
    "thresholds of classes": remember_confidences,
    "error of flow": lambda: photometric_error(FRAMES[:, 0], FRAMES[:, 1], FLOW),
    "tiles": lambda: TILED(torch.zeros(1, 3, 64, 128, device=META)),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_the_host_never_waits_in_an_operation(operation):
    with Numbers(), Operations():
        assert operation().device == META
