"""How much faster a stream is than pairs: each frame passes the network once instead of twice.

python benchmarks/streaming.py [--size 256 128] [--frames 33] [--rounds 5] [--batch 2] [--backbone small]

Both ways segment the same frames with the same network and the same flow: ``pairs`` calls ``network(FramePair(frame,
frame before, flow))`` for every two neighbours (without gradient both pass as one batch of two), ``stream`` keeps the
previous frame's scores and lets ``--batch`` frames pass together, as `stcl predict` does with files; 1 is what a live
camera gets. They take turns, ``--batch`` frames at a time, and the medians of those turns are compared. Not counted, as
both ways need the same of it: flow, which is made beforehand, reading, writing. The first turn, in which a frame has no
pair, is not counted either.

The line at the end is ``{"ratio": time of pairs / time of stream, "max_difference": largest difference of a score
as a share of the largest score}``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median

import torch
from measure import device, finish, finish_line, machine
from torch import Tensor

from stcl.models import VideoSegmenter, build_segmenter
from stcl.types import FramePair


def make_network(backbone: str, classes: int, head: str = "stcl", auxiliary: bool = True) -> VideoSegmenter:
    """An untrained network to which the previous frame matters."""
    torch.manual_seed(0)
    network = build_segmenter(classes, backbone, head, auxiliary).eval()
    network.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert network.fusion is not None
    torch.nn.init.normal_(network.fusion.conv.weight, std=0.1)
    return network


class Turns:
    """Both ways through one video, ``batch`` frames at a time, and the seconds that each turn took."""

    def __init__(self, network: VideoSegmenter, frames: Tensor, flows: Tensor, batch: int) -> None:
        self.network, self.frames, self.flows, self.batch = network, frames, flows, batch
        self.seconds: dict[str, list[float]] = {"pairs": [], "stream": []}
        self.difference = 0.0

    @torch.no_grad()
    def run(self) -> None:
        """Once through the video."""
        pairs = ((frame, None if t == 0 else self.flows[t]) for t, frame in enumerate(self.frames))
        stream = self.network.stream(pairs, batch=self.batch)
        for first in range(0, len(self.frames) - self.batch + 1, self.batch):
            steps = range(first, first + self.batch)
            one = self._clock("stream", first, lambda: [output.logits for output in islice(stream, self.batch)])
            if first == 0:
                continue
            two = self._clock("pairs", first, lambda steps=steps: [self._pair(t) for t in steps])
            apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, two, strict=True))
            self.difference = max(self.difference, apart)

    def _pair(self, t: int) -> Tensor:
        return self.network(FramePair(self.frames[t], self.frames[t - 1], self.flows[t])).logits

    def _clock(self, name: str, first: int, work: Callable[[], list[Tensor]]) -> list[Tensor]:
        finish()
        started = time.perf_counter()
        logits = work()
        finish()
        if first > 0:
            self.seconds[name].append(time.perf_counter() - started)
        return logits


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--frames", type=int, default=33, help="frames of the video")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2, help="frames of the stream that pass together")
    parser.add_argument("--backbone", default="small")
    parser.add_argument("--classes", type=int, default=12)
    arguments = parser.parse_args(argv)
    width, height = arguments.size
    network = make_network(arguments.backbone, arguments.classes)
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(arguments.frames, 1, 3, height, width, generator=generator).to(device())
    flows = torch.randn(arguments.frames, 1, 2, height, width, generator=generator).mul(3).to(device())
    turns = Turns(network, frames, flows, arguments.batch)
    turns.run()
    turns.seconds = {name: [] for name in turns.seconds}  # that was to warm up
    for _ in range(arguments.rounds):
        turns.run()
    taken = {name: median(seconds) / arguments.batch for name, seconds in turns.seconds.items()}
    print(f"{arguments.backbone}, {width}x{height}, batches of {arguments.batch}, {machine()}")
    for name, seconds in taken.items():
        print(f"{name:7s} {1000 * seconds:8.2f} ms a frame, median of {len(turns.seconds[name])} turns")
    ratio = taken["pairs"] / taken["stream"]
    return finish_line({"ratio": round(ratio, 3), "max_difference": turns.difference})


if __name__ == "__main__":
    sys.exit(main())
