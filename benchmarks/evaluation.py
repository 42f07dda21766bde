"""Counting pixels of 2048x1024 frames: our confusion matrix, torchmetrics', and the bincount that the field shares.

python benchmarks/evaluation.py [--size 2048 1024] [--rounds 7]

Frames a second, one frame at a time as published protocols do, from medians of runs that take turns. ``counting`` takes
predicted classes (19 of them; a tenth of the label is ignored); ``tail`` is all of evaluation after the network: scores
of 12 classes on an eighth of the grid, up-sampled to the frame, arg-max, counting, by the code that ``stcl evaluate``
runs. ``numpy`` is the usual host code: the prediction is copied off the device, masked and counted with ``bincount``;
in ``tail`` it copies the up-sampled scores and takes their arg-max itself. torchmetrics has no tail of its own: it gets
ours. On a GPU where there is one; the labels lie where each needs them.

Prints one line of JSON: ``{"size": [W, H], "device": .., "counting": {"stcl": frames/s, "torchmetrics": .., "numpy":
..}, "counting_ratio": {"torchmetrics": ours / theirs, "numpy": ..}, "tail": .., "tail_ratio": .., "counts_equal": true,
"machine": ..}``. Counts that differ end the run with a message and status 1.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from measure import device, finish_line, machine, median_seconds
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from stcl.labels import IGNORE
from stcl.ops.losses import upsample
from stcl.ops.metrics import ConfusionMatrix
from stcl.training.evaluate import predicted_ids
from stcl.types import FramePair, SegOutput, VideoClip

CLASSES = 19
TAIL_CLASSES = 12
BLOCK_PX = 32
"""Labels are constant in blocks, as objects are: neighbouring pixels mostly fall into the same cell."""


class BincountMatrix:
    """A confusion matrix on the host, ``[label, prediction]``."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Add train ids ``(H, W)`` of one frame."""
        classes = len(self.counts)
        known = (label >= 0) & (label < classes)
        cells = classes * label[known].astype(np.int64) + prediction[known]
        self.counts += np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(2048, 1024), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    size = (options.size[1], options.size[0])
    generator = torch.Generator().manual_seed(0)
    counting = contest(counting_contestants(size, generator), options.rounds)
    tail = contest(tail_contestants(size, generator), options.rounds)
    result = {
        "size": list(options.size),
        "device": device().type,
        "counting": counting,
        "counting_ratio": ratios(counting),
        "tail": tail,
        "tail_ratio": ratios(tail),
        "counts_equal": True,  # contest() ends the run otherwise
        "machine": machine("torchmetrics"),
    }
    return finish_line(result)


Contestants = dict[str, tuple[Callable[[], object], Callable[[], Tensor]]]
"""Name -> what counts one frame, and what tells the counts so far, ``(C, C)``."""


def contest(contestants: Contestants, rounds: int) -> dict[str, float]:
    """Frames a second of each; all must have counted the same."""
    seconds = median_seconds({name: step for name, (step, _) in contestants.items()}, rounds)
    counts = {name: read().cpu() for name, (_, read) in contestants.items()}
    for name, found in counts.items():
        if not torch.equal(found, counts["stcl"]):
            raise SystemExit(f"{name} counts other pixels than stcl; a ratio would mean nothing.")
    return {name: round(1 / value, 1) for name, value in seconds.items()}


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Our rate over each of the others."""
    return {name: round(rates["stcl"] / rate, 2) for name, rate in rates.items() if name != "stcl"}


def counting_contestants(size: tuple[int, int], generator: torch.Generator) -> Contestants:
    """Predicted classes, int64 on the device as arg-max leaves them, right on five pixels of six."""
    label = blocks(size, CLASSES, generator)
    wrong = torch.rand(label.shape, generator=generator) < 1 / 6
    anything = torch.randint(CLASSES, label.shape, generator=generator)
    prediction = torch.where(wrong | (label == IGNORE), anything, label.long()).to(device())
    return matrices(CLASSES, label, lambda: prediction, lambda: prediction[0].cpu().numpy())


def tail_contestants(size: tuple[int, int], generator: torch.Generator) -> Contestants:
    """Random scores of a network that costs nothing."""
    label = blocks(size, TAIL_CLASSES, generator)
    logits = torch.randn(1, TAIL_CLASSES, size[0] // 8, size[1] // 8, generator=generator).to(device())

    pixel = torch.zeros(1, 2, 3, 1, 1, dtype=torch.uint8)
    clip = VideoClip(pixel, label[:, None], {(0, -1): torch.zeros(1, 2, 1, 1)}, offsets=(0, -1)).to(device())

    def network(_pair: FramePair) -> SegOutput:
        return SegOutput(logits, aux=None, features={})

    def on_host() -> np.ndarray:
        scores = upsample(logits, size)[0].cpu().numpy().transpose(1, 2, 0)  # (H, W, C)
        return np.asarray(np.argmax(scores, axis=2), dtype=np.uint8)

    return matrices(TAIL_CLASSES, label, lambda: predicted_ids(network, clip), on_host)


def matrices(
    classes: int, label: Tensor, on_device: Callable[[], Tensor], on_host: Callable[[], np.ndarray]
) -> Contestants:
    """The three confusion matrices, each fed with predictions made where it counts."""
    ours = ConfusionMatrix(classes).to(device())
    # without its checks of the values, which cost it another pass
    theirs = MulticlassConfusionMatrix(classes, ignore_index=IGNORE, validate_args=False).to(device())
    numpys = BincountMatrix(classes)
    there, here = label.to(device()), label[0].numpy()
    wide = there.long()  # torchmetrics wants the type of the prediction
    return {
        "stcl": (lambda: ours.update(on_device(), there), lambda: ours.counts),
        "torchmetrics": (lambda: theirs.update(on_device(), wide), theirs.compute),
        "numpy": (lambda: numpys.update(on_host(), here), lambda: torch.from_numpy(numpys.counts)),
    }


def blocks(size: tuple[int, int], classes: int, generator: torch.Generator) -> Tensor:
    """Labels ``(1, H, W)`` uint8: blocks of one class each, the lowest tenth ignored as the car's bonnet is."""
    height, width = size
    rough = torch.randint(classes, (1, -(-height // BLOCK_PX), -(-width // BLOCK_PX)), generator=generator)
    label = rough.repeat_interleave(BLOCK_PX, 1).repeat_interleave(BLOCK_PX, 2)[:, :height, :width]
    label = label.to(torch.uint8).contiguous()
    label[:, height - height // 10 :] = IGNORE
    return label


if __name__ == "__main__":
    raise SystemExit(main())
