"""Frames a second of the TwinStreets renderer on one core: image, label, depth, exact flow and occlusion of each frame.

python benchmarks/rendering.py [--size 256 128] [--clips 20]

Prints one line of JSON: ``{"size": [W, H], "clean": frames/s, "camera": frames/s}``.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported: one core is what is measured

import cv2
import torch

from stcl.twinstreets import STYLE_NAMES, StreetClip, get_style


def frames_per_second(style: str, size: tuple[int, int], clips: int, frames: int = 5) -> float:
    """Rate over ``clips`` streets of ``frames`` frames each, the building of the streets included."""
    started = time.perf_counter()
    for seed in range(clips):
        clip = StreetClip(get_style(style), seed, size, frames=frames + 1)
        for frame in range(1, frames + 1):
            clip.render(frame)
            clip.flow(frame, frame - 1)
    return clips * frames / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    """Warm up on one clip, then measure both styles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--clips", type=int, default=20)
    options = parser.parse_args(argv)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    size = (options.size[0], options.size[1])
    rates: dict[str, object] = {"size": list(size)}
    for style in STYLE_NAMES:
        frames_per_second(style, size, clips=1)
        rates[style] = round(frames_per_second(style, size, options.clips), 1)
    print(json.dumps(rates))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
