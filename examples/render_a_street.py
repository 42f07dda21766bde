"""Draw random streets of TwinStreets and save a sheet of frames, each above its labels.

python examples/render_a_street.py --style camera --out sheet.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stcl.labels import get_space
from stcl.ops.colors import colourise
from stcl.twinstreets import SPACE_NAME, STYLE_NAMES, StreetClip, get_style

PALETTE = get_space(SPACE_NAME).palette
FRAME = 10
"""Which frame of each street is drawn."""


def save_small(sheet: np.ndarray, frames: list[np.ndarray], path: Path) -> None:
    """Save with 256 colours: those of the classes as they are, the others from the frames."""
    classes = PALETTE[: len(get_space(SPACE_NAME))].ravel().tolist()
    others = Image.fromarray(np.concatenate(frames)).quantize(256 - len(classes) // 3).getpalette()
    table = Image.new("P", (1, 1))
    table.putpalette([*classes, *others])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).quantize(palette=table, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", choices=STYLE_NAMES, default="camera")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="one street each")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    options = parser.parse_args(argv)

    drawn = [StreetClip(get_style(options.style), seed, tuple(options.size)).render(FRAME) for seed in options.seeds]
    cells = [np.concatenate((frame.image, colourise(frame.label, PALETTE))) for frame in drawn]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % options.columns)
    rows = [np.concatenate(cells[at : at + options.columns], axis=1) for at in range(0, len(cells), options.columns)]
    save_small(np.concatenate(rows), [frame.image for frame in drawn], options.out)
    print(f"{len(drawn)} streets in {options.out}")


if __name__ == "__main__":
    main()
