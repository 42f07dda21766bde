"""How many threads compute, here and in child processes; small videos of every kind, and real processes."""

import http.server
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest_plugins = ("fabricated_runs", "tiny_runs", "tiny_trees")  # fixtures of several folders, in tests/support

THREADS = os.environ.get("STCL_TEST_THREADS", "1")
"""One unless told otherwise: tiny tensors gain nothing from more, and results do not depend on the machine."""

os.environ["OMP_NUM_THREADS"] = THREADS  # what child processes start with: sums in another order are other bits

SEED = int(os.environ.get("STCL_TEST_SEED", "0"))
"""Of what tests draw from the global generators. A test that passes with one seed alone is no test: try others."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before fixtures of any scope, so that those of a whole session do not hang on which test comes first."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # what libraries may draw from
    torch.manual_seed(SEED)
    torch.set_num_threads(int(THREADS))  # a benchmark that ran here has taken another number


pytest_runtest_call = pytest_runtest_setup  # and after them


Frame = NDArray[np.uint8]


@pytest.fixture(scope="session")
def moving_frames() -> Callable[..., list[Frame]]:
    """``moving_frames(count, size, seed)``: a blocky picture ``(H, W, 3)`` that moves 2 px to the right a frame."""

    def make(count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> list[Frame]:
        generator = np.random.default_rng(seed)
        blocks = generator.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), np.uint8)
        picture = blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
        return [np.ascontiguousarray(np.roll(picture, 2 * number, 1)) for number in range(count)]

    return make


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """``write_video(path, frames, ...)``; ``ticks`` say when each frame is shown, in frames."""

    def write(
        path: Path,
        frames: list[Frame],
        codec: str = "libx264",
        pixels: str = "yuv420p",
        fps: Fraction = Fraction(25),
        rotation: int = 0,
        ticks: list[int] | None = None,
        options: dict[str, str] | None = None,
    ) -> Path:
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = pixels
            if codec == "libx265":
                stream.options = {"x265-params": "log-level=none"}
            if rotation:
                stream.set_display_rotation(rotation)
            for number, rgb in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = ticks[number] if ticks else number, 1 / fps
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def read_video() -> Callable[[Path], list[tuple[Fraction, Frame]]]:
    """``read_video(path)``: seconds and pixels ``(H, W, 3)`` of every frame."""

    def read(path: Path) -> list[tuple[Fraction, Frame]]:
        with av.open(str(path)) as container:
            return [
                (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
            ]

    return read


@pytest.fixture(scope="session")
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """``room_for(count)``: no file gets longer than so many bytes, as on a full disk: it ends in the middle."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(count: int) -> Iterator[None]:
        before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.fixture(scope="session")
def resident_mb() -> Callable[[], float]:
    """Memory of this process in use now, in MiB; a peak would say nothing after a test that needed more."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("this system does not say how much memory is used")
    return lambda: int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Started(subprocess.Popen[bytes]):
    """A command that runs, with the words of ``multiprocessing``."""

    join = subprocess.Popen.wait

    def is_alive(self) -> bool:
        return self.poll() is None

    @property
    def exitcode(self) -> int | None:
        return self.returncode


@pytest.fixture(scope="session")
def start_stcl() -> Callable[..., Started]:
    """``start_stcl(log, *words)``: the command in an interpreter of its own; what it says goes into a file.

    A fork would be quicker, but inherits decoders whose threads it does not have, and may wait for them for ever.
    """

    def start(log: Path, *words: object) -> Started:
        with log.open("w") as file:
            command = [sys.executable, "-m", "stcl.cli", *map(str, words)]
            return Started(command, stdout=file, stderr=subprocess.STDOUT)

    return start


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """A web server for the files of ``tmp_path``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
