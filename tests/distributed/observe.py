"""What one process sees of a run. ``python observe.py RANK WORLD FOLDER`` joins the others and writes it to a file.

The tests compare what two processes with half of the clips each see with what one process with all of them sees.
"""

import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stcl.data import ClipSampler
from stcl.labels import IGNORE
from stcl.methods import Preparation, get_method
from stcl.methods.memory import ExpectedIou
from stcl.methods.patches import PatchMemory
from stcl.methods.settings import Masking
from stcl.methods.stcl import Alignment, SequenceFusion
from stcl.models import build_segmenter
from stcl.models.norms import synchronise_norms
from stcl.ops.align import class_centroids, temporal_weights
from stcl.ops.losses import cross_entropy
from stcl.ops.metrics import ConfusionMatrix
from stcl.ops.processes import gather, mean_over_processes, rank, sum_over_processes, world_size
from stcl.ops.pseudo_labels import pseudo_labels
from stcl.types import VideoClip

clips = SimpleNamespace(**run_path(str(Path(__file__).parents[1] / "methods" / "conftest.py")))

CLASSES, BATCH = len(clips.SPACE), 4
_without_patches = SequenceFusion(source_patches=False, target_patches=False, long_tail_patches=0, close_ups=0)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "source_only": ("source_only", {}),
    "mmd": (
        "stcl",
        {"masking": Masking(), "alignment": Alignment(form="mmd", pairs=2, adaptive=True, weight=1.0)},
    ),
    "contrastive": (
        "stcl",
        {"masking": Masking(), "alignment": Alignment(form="contrastive", pairs=2, weight=1.0), "threshold": 0.1},
    ),
    "class thresholds": ("tps", {"weighting": "class_threshold", "augment_target": False}),
}
"""Parts that all processes must agree on, with large weights.

Patches and masks, which each process draws, are out, and so are labels that hang on the last bit of a sum.
"""


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mine(tensor: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return tensor.chunk(world_size())[rank()]


def labels_of(size: tuple[int, int] = (16, 32)) -> Tensor:
    """Label maps ``(BATCH, *size)`` whose clips have very different numbers of labelled pixels and classes."""
    labels = torch.randint(0, CLASSES, (BATCH, *size), generator=draws(0))
    for row, share in enumerate((0.0, 0.3, 0.8, 0.99)):
        labels[row][torch.rand(size, generator=draws(row)) < share] = IGNORE
    return labels


def step_of(name: str) -> dict[str, Any]:
    """One step of a method: loss, gradients, and the memories that all processes share."""
    kind, settings = METHODS[name]
    torch.manual_seed(1)
    network = build_segmenter(CLASSES, backbone_settings={"width": 4}, head_settings={"width": 8, "dropout": 0.0})
    if kind == "stcl":
        settings = {"sequence_fusion": _without_patches, "augment_target": False, "labels": "likeliest", **settings}
    cls = get_method(kind)
    method = cls(network, clips.SPACE, 0, cls.Settings(preparation=Preparation(flip=0.0), **settings))
    if world_size() > 1:
        synchronise_norms(method, "cpu")
    run = clips.Run(method, step=5)
    batch: dict[str, VideoClip] = clips.batch_for(method, BATCH)
    batch["source"].labels[:, 0] = labels_of(clips.SIZE).to(torch.uint8)
    step: nn.Module = _Step(run)
    if world_size() > 1:
        step = DistributedDataParallel(step, broadcast_buffers=False)
    loss = step({domain: clip.map(mine) for domain, clip in batch.items()})
    loss.backward()
    gradients = {name: p.grad for name, p in method.network.named_parameters() if p.requires_grad}
    buffers = {name: buffer for name, buffer in method.network.named_buffers() if "running" in name}
    if kind == "stcl":
        buffers |= dict(method.prototypes.named_buffers()) | {"pixels": method.bank.pixels, "rare": method.bank.rare}
    return {"loss": mean_over_processes(loss), "gradients": gradients, "buffers": buffers}


class _Step(nn.Module):
    """The forward half of a step, as DistributedDataParallel wants it."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.method, self.run = run.method, [run]

    def forward(self, batch: dict[str, VideoClip]) -> Tensor:
        return torch.stack(list(self.run[0].losses(batch).values())).sum()


def losses() -> dict[str, Tensor]:
    """Loss and gradient with unevenly labelled shares; and of shares without any labelled pixel."""
    found = {}
    for name, labels in (("some", labels_of()), ("none", torch.full_like(labels_of(), IGNORE))):
        logits = torch.randn(BATCH, CLASSES, 16, 32, generator=draws(2)).requires_grad_()
        loss = cross_entropy(mine(logits), mine(labels))
        loss.backward()
        found[name] = mean_over_processes(loss)
        found[f"{name} gradient"] = mean_over_processes(logits.grad)  # what averaging over processes makes of it
    return found


def alignment() -> dict[str, Tensor]:
    features = torch.randn(BATCH, 5, 16, 32, generator=draws(3)).requires_grad_()
    centroids = class_centroids(mine(features), mine(labels_of()), CLASSES)
    weight = torch.randn(CLASSES, 5, generator=draws(4))
    (centroids.mean * weight).sum().square().backward()  # the same loss in every process, not linear in the centroids
    scores = [mine(torch.randn(BATCH, CLASSES, 8, 8, generator=draws(5)) * scale) for scale in (1, 3)]
    return {
        "mean": centroids.mean.detach(),
        "present": centroids.present,
        "gradient": mean_over_processes(features.grad),
        "weights": temporal_weights(scores, adaptive=True),
    }


def rare_classes() -> dict[str, Tensor]:
    """What is rare after two batches in which no share has what the other has."""
    memory = PatchMemory(CLASSES, rare_share=0.1)
    for batch in range(2):
        labels = torch.full((BATCH, 1, 16, 16), 0)
        for row in range(BATCH):
            labels[row, 0, : 1 + row + batch] = 1 + row
        clip = VideoClip(torch.rand(BATCH, 1, 3, 16, 16, generator=draws(batch)), labels, {}, (0,))
        memory.add(clip.map(mine))
    return {"rare": memory.rare, "pixels": memory.pixels}


def expected_iou() -> dict[str, Tensor]:
    """Labels chosen by the counts of all shares, of which each has other classes."""
    memory, counts = ExpectedIou(CLASSES), []
    for batch in range(2):
        scores = torch.randn(BATCH, CLASSES, 16, 32, generator=draws(9 + batch))
        scores += torch.arange(BATCH).view(-1, 1, 1, 1) * torch.linspace(-1, 1, CLASSES).view(1, -1, 1, 1)
        probabilities = mine(scores.softmax(1))
        memory.choose(probabilities, pseudo_labels(probabilities))
        counts.append(memory.counts.clone())
    return {"counts": torch.stack(counts)}


def norm(momentum: float | None) -> dict[str, Tensor]:
    """A batch norm whose shares differ in size: one row for process 0, the others for process 1."""
    layer = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))
    layer.state_dict()["0.weight"].copy_(torch.tensor([0.5, 1.0, 2.0]))
    rows = [(0, BATCH)] if world_size() == 1 else [(0, 1), (1, BATCH)]
    if world_size() > 1:
        synchronise_norms(layer, "cpu")
    first, last = rows[rank()]
    image = (3 + torch.randn(BATCH, 3, 4, 5, generator=draws(6))).requires_grad_()
    for _ in range(2):
        output = layer(image[first:last])
    ((output**3) * torch.randn(output.shape[1:], generator=draws(7))).sum().backward()
    whole = output.new_zeros(image.shape)
    whole[first:last] = output.detach()
    found = {"output": whole, "image": image.grad, "weight": layer[0].weight.grad, "bias": layer[0].bias.grad}
    summed = {name: sum_over_processes(tensor) for name, tensor in found.items()}
    layer.eval()
    return {**summed, **{name: buffer.clone() for name, buffer in layer.named_buffers()}, "eval": layer(image).detach()}


def observe() -> dict[str, Any]:
    """Everything at once: starting a process costs more than all of it."""
    prediction, label = torch.randint(0, CLASSES, (2, BATCH, 16, 32), generator=draws(8))
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(mine(prediction), mine(label))
    sampler = ClipSampler(10, BATCH, seed=3, start_step=2, rank=rank(), world=world_size())
    return {
        "methods": {name: step_of(name) for name in METHODS},
        "losses": losses(),
        "alignment": alignment(),
        "rare": rare_classes(),
        "expected": expected_iou(),
        "norm": {str(momentum): norm(momentum) for momentum in (0.3, None)},
        "counts": sum_over_processes(matrix.counts),
        "batches": [sampler.batch(step) for step in range(8)],
        "everyone": gather(f"process {rank()}"),
    }


if __name__ == "__main__":
    number, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=number, world_size=world)
    torch.save(observe(), folder / f"{number}.pt")
    torch.distributed.destroy_process_group()
