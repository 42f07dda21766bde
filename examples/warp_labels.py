"""How good is optical flow? Warp the last frame's labels to the present one and count the pixels that agree.

python examples/warp_labels.py --streets 5
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stcl.flow import get_flow
from stcl.ops.warp import warp
from stcl.twinstreets import STYLE_NAMES, StreetClip, get_style
from stcl.types import FrameRef

T = 10
"""The present frame; the last one is T - 1."""


def warp_labels(labels: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Labels ``(H, W)`` of the last frame, aligned to the present one by its flow ``(2, H, W)``."""
    aligned = warp(torch.from_numpy(labels)[None, None].float(), torch.from_numpy(flow)[None], mode="nearest")
    return aligned[0, 0].numpy().astype(labels.dtype)


def main(argv: Sequence[str] | None = None) -> None:
    """Render streets, warp with exact and with estimated flow, print the agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", choices=STYLE_NAMES, default="camera")
    parser.add_argument("--streets", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args(argv)

    dis = get_flow("dis", preset="medium")
    agreement: dict[str, list[np.ndarray]] = {"no warp": [], "exact flow": [], "DIS flow": []}
    for seed in range(options.streets):
        street = StreetClip(get_style(options.style), seed, tuple(options.size))
        now, last = street.render(T), street.render(T - 1)
        exact, occluded = street.flow(T, T - 1)
        refs = [FrameRef(f"street_{seed}", number, Path(f"{number:06d}.png")) for number in (T, T - 1)]
        estimated = dis(*refs, now.image, last.image)  # the files need not exist: DIS looks at the pixels
        for name, flow in zip(agreement, (np.zeros_like(exact), exact, estimated), strict=True):
            agreement[name].append((warp_labels(last.label, flow) == now.label)[~occluded])
    for name, parts in agreement.items():
        print(f"{name:<10} {100 * np.concatenate(parts).mean():6.2f} % of the visible pixels keep their class")


if __name__ == "__main__":
    main()
