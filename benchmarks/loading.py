"""How many samples a second one core loads: the published way, this loader, and this loader with prepared data.

python benchmarks/loading.py [--samples 6] [--rounds 5] [--size 2048 1024] [--memory [N]]

A sample is a target clip (t, t-1) without flow: PNG files of ``--size``, wanted at half of it. The files are frames of
TwinStreets, enlarged, with the noise of a sensor: about the bytes of a photograph. They lie in the system's cache of
files, so what is compared is arithmetic; a slow disk adds the same to the first two ways, and less to the third, whose
files are smaller by half.

The published way (TPS, DA-VSN) is written anew here: PIL decodes, resizes bicubically; each frame is opened twice, once
as a frame of the clip and once for the pass over the pair; the main process makes floats of it in NumPy, in the order
BGR, without the mean. ``opened_once`` is the same without the second time. This loader hands over bytes, which become
floats on the training device. The ways take turns, medians count.

``--memory`` measures something else: the resident size of a process after a tenth of N samples and after all of them
(10,000 unless told otherwise), at a small size, and what the index of prepared data holds in memory for each frame.

``checksum_share`` is what part of the time with prepared data goes into their checksums, measured apart.

Ends with a line of JSON: ``{"without_cache": times as many samples a second as the published way, "with_cache": ...}``
and what they are made of; with ``--memory`` ``{"memory_mib": {way: [after N / 10, after N]}, ...}``.
"""

import argparse
import os
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from measure import finish_line, machine, median_seconds
from numpy.typing import NDArray
from PIL import Image

from stcl.commands.prepare.run import prepare_clips
from stcl.data import ClipDataset, get_dataset, make_loader
from stcl.data.prepared import use_prepared
from stcl.labels import get_space
from stcl.twinstreets.export import ExportRequest, export
from stcl.types import ClipSpec, stack_clips

MEAN_BGR = np.array((104.00698793, 116.66876762, 122.67891434), np.float32)
NOISE = 1.2
"""Standard deviation of the sensor's noise, in steps of 255."""


def write_frames(root: Path, size: tuple[int, int], count: int) -> None:
    """A snippet of ``count`` frames in the layout of Cityscapes-Seq."""
    small = (max(32, size[0] // 4), max(32, size[1] // 4))
    request = ExportRequest("cityscapes-seq", "camera", clips=-(-count // 20), frames=min(count, 20), size=small)
    export(root, request, progress=False)
    random = np.random.default_rng(0)
    for path in sorted(root.rglob("*_leftImg8bit.png")):
        image = cv2.resize(cv2.imread(str(path)), size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        noisy = np.rint(image + random.normal(0, NOISE, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy[..., ::-1]).save(path)  # PIL's PNG has adaptive filters, as the published files


def published_sample(paths: Sequence[Path], size: tuple[int, int], openings: int) -> list[NDArray[np.float32]]:
    """Frames of one clip as floats ``(3, H, W)``."""
    found = []
    for path in [*paths] * openings:
        with Image.open(path) as file:
            image = file.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32)[:, :, ::-1]
        found.append((pixels - MEAN_BGR).transpose(2, 0, 1).copy())
    return found


def load_all(clips: ClipDataset) -> None:
    """Every clip, as a batch of one."""
    for item in range(len(clips)):
        stack_clips([clips[item]])


def check_all(clips: ClipDataset) -> None:
    """The checksums alone of as many bytes as :func:`load_all` reads."""
    width, height = clips.size or (0, 0)
    frame = bytes(3 * width * height)
    for _ in range(len(clips) * len(clips.spec.frames)):
        zlib.crc32(frame)


def compare(root: Path, size: tuple[int, int], samples: int, rounds: int) -> dict[str, object]:
    """Samples a second of each way, and their ratios."""
    target = (size[0] // 2, size[1] // 2)
    plain, prepared = open_clips(root, target, samples), open_clips(root, target, samples)
    done = prepare_clips(prepared, root / "prepared")
    assert use_prepared(prepared, root / "prepared").endswith("are used.")
    for item in range(len(plain)):
        assert torch.equal(plain[item].frames, prepared[item].frames)
    paths = [[ref.image for ref in plain.refs(item).values()] for item in range(len(plain))]
    seconds = median_seconds(
        {
            "published": lambda: [published_sample(pair, target, 2) for pair in paths],
            "opened_once": lambda: [published_sample(pair, target, 1) for pair in paths],
            "without_cache": lambda: load_all(plain),
            "with_cache": lambda: load_all(prepared),
            "checksums": lambda: check_all(prepared),
        },
        rounds,
    )
    return {
        "without_cache": round(seconds["published"] / seconds["without_cache"], 2),
        "with_cache": round(seconds["published"] / seconds["with_cache"], 2),
        "without_cache_opened_once": round(seconds["opened_once"] / seconds["without_cache"], 2),
        "with_cache_opened_once": round(seconds["opened_once"] / seconds["with_cache"], 2),
        "checksum_share": round(seconds.pop("checksums") / seconds["with_cache"], 2),
        "samples_per_second": {name: round(len(plain) / spent, 2) for name, spent in seconds.items()},
        "file_bytes": round(np.mean([path.stat().st_size for pair in paths for path in pair])),
        "prepare_seconds_per_frame": round(done.seconds / done.made, 3),
        "size": list(size),
    }


def open_clips(root: Path, size: tuple[int, int], samples: int) -> ClipDataset:
    """Pairs without labels and flow."""
    space = get_space("synthia_seq-cityscapes_seq")
    clips = ClipDataset(get_dataset("cityscapes_seq")(root), ClipSpec(frames=(0, -1)), space, size)
    clips.thin(samples)
    return clips


def follow_memory(root: Path, samples: int) -> dict[str, object]:
    """Resident size after a tenth of the samples and after all of them, each way in turn."""
    found: dict[str, list[float]] = {}
    index_bytes = 0
    for way in ("without_cache", "with_cache"):
        clips = open_clips(root, (128, 64), 10**9)
        if way == "with_cache":
            prepare_clips(clips, root / "prepared")
            tracemalloc.start()
            use_prepared(clips, root / "prepared")
            index_bytes = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
        loader = iter(make_loader(clips, batch_size=1, seed=0))
        found[way] = []
        for count in (samples // 10, samples - samples // 10):
            for _ in islice(loader, count):
                pass
            found[way].append(round(resident_mib(), 1))
    frames = sum(map(len, clips.runs))
    return {"memory_mib": found, "samples": samples, "frames": frames, "index_bytes_per_frame": index_bytes // frames}


def resident_mib() -> float:
    """Of this process, now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(2048, 1024), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--memory", type=int, nargs="?", const=10_000, metavar="N")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as loader processes do
    with TemporaryDirectory(prefix="stcl-loading-") as folder:
        root = Path(folder)
        if options.memory is None:
            write_frames(root, tuple(options.size), options.samples + 1)
            result = compare(root, tuple(options.size), options.samples, options.rounds)
        else:
            write_frames(root, (256, 128), min(200, options.memory))
            result = follow_memory(root, options.memory)
    about = machine("opencv-python-headless", "pillow")
    print(about)
    for name, value in result.items():
        print(f"{name:26s} {value}")
    return finish_line({**result, "machine": about})


if __name__ == "__main__":
    sys.exit(main())
