"""Histogram matching of a batch of clips against ``skimage.exposure.match_histograms`` image by image.

python benchmarks/histogram.py [--rounds 5] [--sizes 256x128 1024x512]

A batch is 4 clips of 2 frames, as a training step matches them; ours runs on a GPU where there is one and includes no
copy to it. skimage is measured twice: on bytes, where it is fastest (it looks values up, and cuts the result to bytes),
and on floats, where it keeps the whole result, as ours does. ``largest_difference`` is to the latter, on a scale of
0..1: image by image, and clip by clip with the frames of a clip side by side, since ours gives them one map.

Prints one line of JSON: ``{"device": .., "sizes": {"WxH": {"stcl": seconds a batch, "skimage_bytes": ..,
"skimage_floats": .., "ratio_bytes": skimage_bytes / stcl, "ratio_floats": .., "largest_difference": ..}}, "machine":
..}``.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from measure import device, finish_line, machine, median_seconds
from skimage.exposure import match_histograms
from torch import Tensor

from stcl.ops.histogram import match_histogram

CLIPS, FRAMES = 4, 2
BUILTIN, PUBLISHED = (256, 128), (1024, 512)
"""Width and height that TwinStreets and Cityscapes are trained at."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=size, nargs="+", default=(BUILTIN, PUBLISHED), metavar="WIDTHxHEIGHT")
    options = parser.parse_args(argv)
    results = {f"{width}x{height}": compare((width, height), options.rounds) for width, height in options.sizes}
    return finish_line({"device": device().type, "sizes": results, "machine": machine("scikit-image")})


def size(text: str) -> tuple[int, int]:
    """``256x128`` -> (256, 128)."""
    width, height = text.split("x")
    return int(width), int(height)


def compare(size_px: tuple[int, int], rounds: int) -> dict[str, float]:
    """Seconds and differences at one size."""
    generator = torch.Generator().manual_seed(0)
    source, reference = clips(size_px, 0.6, generator), clips(size_px, 1.7, generator)
    ours = [(clip.float() / 255).to(device()) for clip in (source, reference)]
    in_bytes, in_floats = images(source, reference), images(source.float() / 255, reference.float() / 255)
    seconds = median_seconds(
        {
            "stcl": lambda: match_histogram(*ours),
            "skimage_bytes": lambda: match_images(in_bytes),
            "skimage_floats": lambda: match_images(in_floats),
        },
        rounds,
    )
    return {
        **{name: round(value, 5) for name, value in seconds.items()},
        "ratio_bytes": round(seconds["skimage_bytes"] / seconds["stcl"], 2),
        "ratio_floats": round(seconds["skimage_floats"] / seconds["stcl"], 2),
        "largest_difference": max(difference(*(clip.flatten(0, 1) for clip in ours)), difference(*map(joined, ours))),
    }


def clips(size_px: tuple[int, int], gamma: float, generator: torch.Generator) -> Tensor:
    """Clips ``(4, 2, 3, H, W)`` of bytes with their own brightness and contrast each, some levels never taken."""
    values = torch.rand(CLIPS, FRAMES, 3, size_px[1], size_px[0], generator=generator) ** gamma
    contrast = 0.5 + 0.5 * torch.rand(CLIPS, 1, 3, 1, 1, generator=generator)
    return (values * contrast * 255).round().to(torch.uint8)


def joined(clip: Tensor) -> Tensor:
    """Frames of a clip side by side: ``(B, T, 3, H, W)`` -> ``(B, 3, H, T W)``."""
    return torch.cat(clip.unbind(1), dim=-1)


def images(source: Tensor, reference: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of images ``(H, W, 3)``, of ``(..., 3, H, W)``, as skimage wants them."""
    each = (np.ascontiguousarray(x.flatten(0, -4).permute(0, 2, 3, 1).cpu().numpy()) for x in (source, reference))
    return list(zip(*each, strict=True))


def match_images(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Outcome of skimage on one image after the other: ``(N, H, W, 3)``."""
    return np.stack([match_histograms(image, reference, channel_axis=-1) for image, reference in pairs])


def difference(source: Tensor, reference: Tensor) -> float:
    """Largest difference between the two libraries on single images ``(N, 3, H, W)``, 0..1."""
    theirs = torch.from_numpy(match_images(images(source, reference))).permute(0, 3, 1, 2)
    return float((match_histogram(source, reference).cpu() - theirs).abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
