"""End-point error and time of every source of flow on TwinStreets scenes, whose motion is known exactly.

python benchmarks/flow_error.py [--sizes 256x128 1024x512] [--streets 6] [--steps 1] [--rounds 3] [--flows dis-fast ...]

Errors are in pixels, over the pixels of frame t that are visible in the frame before; moving ones go further than half
a pixel. ``files`` is the exact flow written as tenths of a pixel (int16) and read again; ``raft-...`` runs where
torchvision is installed. Times are medians over all pairs, taken in turns, on one thread: processor time, which a busy
machine stretches less, but seconds on the wall where there is a GPU.

Prints a table for each size, then one line of JSON.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np
import torch
from histogram import size
from measure import finish_line, machine, median_seconds
from numpy.typing import NDArray

from stcl.errors import SettingError
from stcl.files.pictures import encode_flow
from stcl.files.writing import exact_flow_path, write_atomic
from stcl.flow import SignedFlow, get_flow
from stcl.twinstreets import STYLE_NAMES, StreetClip, get_style
from stcl.types import FrameRef

T = 10
MOVING_PX, WRONG_PX = 0.5, 3.0
COLUMNS = ("mean", "median", "above_3px", "moving", "still", "ms")


class Pair(NamedTuple):
    """Two frames, what a provider is called with, and the truth."""

    given: tuple[FrameRef, FrameRef, NDArray[np.uint8], NDArray[np.uint8]]
    flow: NDArray[np.float32]
    visible: NDArray[np.bool_]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=size, nargs="+", default=((256, 128), (1024, 512)), metavar="WIDTHxHEIGHT")
    parser.add_argument("--streets", type=int, default=6, help="of each style")
    parser.add_argument("--steps", type=int, default=1, help="frames between the two of a pair")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flows", nargs="+", help="only these")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    results = {}
    for width, height in options.sizes:
        with tempfile.TemporaryDirectory() as root:
            pairs = list(rendered(Path(root), (width, height), options.streets, options.steps))
            flows = {name: flow for name, flow in providers(Path(root)).items() if name in (options.flows or [name])}
            results[f"{width}x{height}"] = measure(flows, pairs, options.rounds)
        print(f"\n{width}x{height}, {len(pairs)} pairs\n{'':12}" + "".join(f"{column:>11}" for column in COLUMNS))
        for name, row in results[f"{width}x{height}"].items():
            print(f"{name:12}" + "".join(f"{row[column]:11.3f}" for column in COLUMNS))
    return finish_line({"steps": options.steps, "sizes": results, "machine": machine("opencv-python-headless")})


def rendered(root: Path, size_px: tuple[int, int], streets: int, steps: int) -> Iterator[Pair]:
    """Pairs of every style, their exact flow beside them as a rendered tree has it, and as a published file."""
    for style in STYLE_NAMES:
        for seed in range(streets):
            clip = StreetClip(get_style(style), seed, size_px)
            refs = [
                FrameRef(f"{style}_{seed}", number, root / f"tree/{style}_{seed}/{number:06d}.png")
                for number in (T, T - steps)
            ]
            flow, occluded = clip.flow(T, T - steps)
            exact = exact_flow_path(root / "tree", refs[0].image, refs[1].image)
            write_atomic(exact, encode_flow(flow, ~occluded))
            published = root / "flow" / refs[0].sequence / f"{T:06d}_{T - steps:06d}_int16_x10.npy"
            published.parent.mkdir(parents=True)
            np.save(published, np.rint(flow.transpose(1, 2, 0) * 10).astype(np.int16))
            images = (clip.render(T).image, clip.render(T - steps).image)
            yield Pair((refs[0], refs[1], *images), flow, ~occluded)


def providers(root: Path) -> dict[str, SignedFlow]:
    """Every source of flow; RAFT where it can be used."""
    flows = {f"dis-{preset}": get_flow("dis", preset=preset) for preset in ("ultrafast", "fast", "medium")}
    flows |= {"zero": get_flow("zero"), "exact": get_flow("exact"), "files": get_flow("files", folder=root / "flow")}
    for model in ("large", "small"):
        try:
            flows[f"raft-{model}"] = get_flow("raft", model=model)
        except SettingError as error:
            print(f"Without raft-{model}: {error}")
    return flows


def measure(flows: dict[str, SignedFlow], pairs: list[Pair], rounds: int) -> dict[str, dict[str, float]]:
    """Errors and milliseconds of each provider on all pairs."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = [
        median_seconds({name: partial(flow, *pair.given) for name, flow in flows.items()}, rounds, clock)
        for pair in pairs
    ]
    return {
        name: {
            **errors([flow(*pair.given) for pair in pairs], pairs),
            "ms": round(1000 * median(each[name] for each in times), 2),
        }
        for name, flow in flows.items()
    }


def errors(flows: list[NDArray[np.float32]], pairs: list[Pair]) -> dict[str, float]:
    """End-point errors over the visible pixels of all pairs; the share above 3 px in percent."""
    distances, moving = [], []
    for flow, pair in zip(flows, pairs, strict=True):
        distances.append(np.hypot(*(flow - pair.flow))[pair.visible])
        moving.append(np.hypot(*pair.flow)[pair.visible] > MOVING_PX)
    every, moves = np.concatenate(distances), np.concatenate(moving)
    found = {
        "mean": every.mean(),
        "median": np.median(every),
        "above_3px": 100 * (every > WRONG_PX).mean(),
        "moving": every[moves].mean(),
        "still": every[~moves].mean(),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


if __name__ == "__main__":
    raise SystemExit(main())
