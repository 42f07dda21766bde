"""What random access to a long video costs: its index, clips at random places, frames in order.

python benchmarks/video_access.py [--frames 20000] [--clips 250] [--key-frame-every 60]

The video is H.264 of 640x360 with B-frames, made in a temporary folder. Processor time is counted, not waiting.

The line at the end is ``{"index_seconds": ..., "index_cpu_seconds": ..., "clip_ms": ..., "decoded_a_clip": ...,
"in_order_ms": ..., "memory_mb": [before the clips, after them, after frames in order]}``.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from measure import finish_line, machine

from stcl.data.video_index import VideoReader

HEIGHT, WIDTH = 360, 640


def write_video(path: Path, frames: int, key_frame_every: int) -> Path:
    """A window that moves over a blocky picture."""
    blocks = np.random.default_rng(0).integers(0, 256, (60, 400, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    options = {"preset": "ultrafast", "g": str(key_frame_every), "bf": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            row, column = number // 7 % 300, 2 * number % 4000
            window = np.ascontiguousarray(blocks[row : row + HEIGHT, column : column + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def memory_mb() -> float:
    """The most that the process has held so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main(arguments: Sequence[str]) -> int:
    """Make the video, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--clips", type=int, default=250)
    parser.add_argument("--key-frame-every", type=int, default=60)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "long.mp4", asked.frames, asked.key_frame_every)
        wall, cpu = time.perf_counter(), time.process_time()
        reader = VideoReader(path)
        found = {"index_seconds": time.perf_counter() - wall, "index_cpu_seconds": time.process_time() - cpu}
        reader.read(0)
        memory, cpu, decoded = [memory_mb()], time.process_time(), reader.decoded
        for last in np.random.default_rng(1).integers(2, asked.frames, asked.clips):
            for number in (last - 2, last - 1, last):
                reader.read(int(number))
        found["clip_ms"] = 1000 * (time.process_time() - cpu) / asked.clips
        found["decoded_a_clip"] = (reader.decoded - decoded) / asked.clips
        memory.append(memory_mb())
        count, cpu = min(1000, asked.frames), time.process_time()
        for number in range(count):
            reader.read(number)
        found["in_order_ms"] = 1000 * (time.process_time() - cpu) / count
        memory.append(memory_mb())
    print(machine("av"))
    return finish_line({**{key: round(value, 3) for key, value in found.items()}, "memory_mb": memory})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
