"""Exported graphs against the network: how long a frame of a stream takes, how large the files are, how exact.

python benchmarks/exported.py [--weights builtin:small] [--sizes 256x128 512x256] [--rounds 20]

The network takes a frame as a stream does: it passes once, without the auxiliary head, and is fused with the kept
scores of the frame before. Graphs do the same, ``frame`` and then ``fusion``. All run on the CPU with one thread, by
turns; flow is random and not in the time.

Prints one line of JSON: ``{"weights": .., "sizes": {"WxH": {"torch": seconds a frame, FORMAT: {"export": seconds to
write, "open": seconds, "bytes": {file: ..}, "frame": seconds a frame, "ratio": torch / frame, "difference": of the
largest score, "agreement": share of cells}}}, "machine": ..}``.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from measure import finish_line, machine, median_seconds

import stcl
from stcl.commands.export.graph import GRAPH_FORMATS, Run, check_parity, list_graphs, random_pairs
from stcl.models import VideoSegmenter
from stcl.types import FramePair


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size and format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="builtin:small", help="a run, or anything that stcl.load_model opens")
    parser.add_argument("--sizes", type=size, nargs="+", default=((256, 128), (512, 256)), metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    network = stcl.load_model(options.weights).to(memory_format=torch.channels_last)
    results = {
        f"{width}x{height}": measure(network, (width, height), options.rounds) for width, height in options.sizes
    }
    where = machine("onnx", "onnxscript", "onnxruntime")
    return finish_line({"weights": options.weights, "sizes": results, "machine": where})


def size(text: str) -> tuple[int, int]:
    """``256x128`` -> (256, 128)."""
    width, height = text.split("x")
    return int(width), int(height)


@torch.no_grad()
def measure(network: VideoSegmenter, size_px: tuple[int, int], rounds: int) -> dict[str, object]:
    """Seconds, bytes and differences at one size."""
    pairs, found = random_pairs(size_px, dynamic=False), dict[str, dict[str, object]]()
    graphs = list_graphs(network, size_px, dynamic=False)
    frames = {"torch": follower({graph.name: graph.module for graph in graphs}, pairs[0])}
    for name, kind in GRAPH_FORMATS.items():
        started = time.perf_counter()
        contents = {graph.name: kind.write(graph, False) for graph in graphs}
        written = time.perf_counter()
        runs = {graph: kind.open(content) for graph, content in contents.items()}
        opened = time.perf_counter()
        parity = check_parity(network, runs, pairs, [])
        frames[name] = follower(runs, pairs[0])
        found[name] = {
            "export": round(written - started, 2),
            "open": round(opened - written, 2),
            "bytes": {f"{graph}{kind.suffix}": len(content) for graph, content in contents.items()},
            "difference": parity.difference,
            "agreement": parity.agreement,
        }
    seconds = median_seconds(frames, rounds)
    for name, entry in found.items():
        entry |= {"frame": round(seconds[name], 5), "ratio": round(seconds["torch"] / seconds[name], 2)}
    return {"torch": round(seconds["torch"], 5), **found}


def follower(runs: dict[str, Run], pair: FramePair) -> Callable[[], object]:
    """One frame of a stream through graphs."""
    kept = runs["frame"](pair.current)

    def step() -> object:
        nonlocal kept
        scores = runs["frame"](pair.current)
        fused, kept = runs["fusion"](scores, kept, pair.flow), scores
        return fused

    return step


if __name__ == "__main__":
    raise SystemExit(main())
