"""The published repository's own network beside ours: forward and backward on one pair of frames.

Used by train_step.py. The code is imported from a checkout at run time. Its compiled warp (CUDA, Python 3.6) is
replaced by ours, which samples the same positions; on a CPU its one hard-wired copy to a GPU does nothing.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stcl.models import build_segmenter
from stcl.ops.warp import warp
from stcl.types import FramePair

NETWORK = Path("DASTC/dastc/model/accel_deeplabv2_dsp_cd_DFF_gaijin.py")
WARP = "tps.utils.resample2d_package.resample2d"
"""What the file imports its warp from."""


class Warp(nn.Module):
    """Stands in for the compiled operation."""

    def __init__(self, bilinear: bool = True) -> None:
        super().__init__()

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        """``image`` at the places that ``flow`` points to."""
        return warp(image, flow)


def load_network(checkout: Path, classes: int) -> nn.Module:
    """The published ACCEL DeepLab with a ResNet-101."""
    file = checkout / NETWORK
    spec = importlib.util.spec_from_file_location("published_stcl_network", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"{checkout} has no {NETWORK}, so it is no checkout of the published repository.")
    parts = WARP.split(".")
    packages = {".".join(parts[: i + 1]): ModuleType(".".join(parts[: i + 1])) for i in range(len(parts))}
    packages[WARP].Resample2d = Warp  # type: ignore[attr-defined]
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, packages):
        spec.loader.exec_module(module)
    return module.get_accel_deeplab_v2(num_classes=classes, multi_level=True)


def contestants(
    checkout: Path, pair: FramePair, labels: Tensor, classes: int, bf16: bool
) -> dict[str, Callable[[], None]]:
    """Forward and backward of the published network (float32) and of ours (as ours trains), each with fresh weights."""
    assert pair.previous is not None and pair.flow is not None
    device = pair.current.device
    theirs = load_network(checkout, classes).to(device).train()
    ours = build_segmenter(classes, "resnet101").to(device).train()
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = ours.backbone.input.mean
    current, previous = (image.flip(1) * 255 - mean for image in (pair.current, pair.previous))

    def loss(main: Tensor, aux: Tensor) -> Tensor:
        full = [F.interpolate(z, labels.shape[1:], mode="bilinear", align_corners=True) for z in (main, aux)]
        main_loss, aux_loss = (F.cross_entropy(z, labels, ignore_index=255) for z in full)
        return main_loss + 0.1 * aux_loss

    def run_theirs() -> None:
        with on_cpu() if device.type == "cpu" else nullcontext():
            aux, main, *_ = theirs(current, previous, pair.flow, device)
        loss(main, aux).backward()

    def run_ours() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = ours(pair)
        assert output.aux is not None
        loss(output.logits.float(), output.aux.float()).backward()

    return {"published network": run_theirs, "our network": run_ours}


@contextmanager
def on_cpu() -> Iterator[None]:
    """Let ``tensor.cuda(...)`` do nothing."""

    def stay(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    with patch.object(Tensor, "cuda", stay):
        yield
