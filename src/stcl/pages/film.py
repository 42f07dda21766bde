"""Videos that any browser plays: H.264, yuv420p, index first; written whole or not at all, in one go or in parts.

``stcl predict`` and ``stcl demo`` both write videos, so the writer lies here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from stcl.errors import DataError, SettingError
from stcl.files.names import neighbour

ENCODERS = ("libx264", "libopenh264", "h264")
"""H.264 encoders by preference; a PyAV build has not all of them."""

LONGEST_TICKS = 2**31 - 1
"""From one frame to the next in an MP4."""

FINE = 10_000
"""Ticks a second of an MP4, at least: FFmpeg's own choice."""

FAST_START = {"movflags": "+faststart"}
"""The index stands first, so that a browser plays while it still loads."""


class VideoWriter:
    """Write RGB frames to an MP4 that appears at ``path`` only when it is complete.

    Use as a context manager; if the block raises, nothing is left behind::

        with VideoWriter(Path("film.mp4"), fps=10) as writer:
            writer.write(frame)  # (H, W, 3) uint8 RGB

    Args:
        path: final file; its folder is made. An existing file is replaced at the end.
        fps: frames a second.
        quality: constant rate factor of x264, lower is better and larger (18 is visually lossless).
        time_base_s: seconds of one tick of ``ticks`` in :meth:`write`; None: a tick is a frame.
        preset: of x264, from ``ultrafast`` to ``veryslow``: slower is smaller.
        joinable: frames are stored in the order in which they are shown, so that :func:`join_films` can put films one
            behind the other; a few percent larger.
    """

    def __init__(
        self,
        path: Path,
        fps: float | Fraction = 10.0,
        quality: int = 20,
        time_base_s: Fraction | None = None,
        joinable: bool = False,
        preset: str = "medium",
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        self._last = 0  # ticks
        self._rate = frame_rate(fps)
        self._time_base = time_base_s or 1 / self._rate
        self._timescale = self._time_base.denominator  # of the file, in ticks a second
        while self._rate >= 1 and self._timescale < FINE:  # else they leave no room for frames that last for days
            self._timescale *= 2
        self._quality = quality
        self._joinable = joinable
        self._preset = preset
        self._partial = _partial(self.path)
        self._size: tuple[int, int] | None = None  # (H, W) of the frames as they come
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._container is not None:
                self._container.close()
            self._partial.unlink(missing_ok=True)

    def write(self, frame: NDArray[np.uint8], ticks: int | None = None) -> None:
        """Append one frame ``(H, W, 3)`` uint8 RGB; an odd side is padded by repeating the last row or column.

        Args:
            frame: all frames have one size.
            ticks: when it is shown, counted from 0 and rising; None: a frame after the one before.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise SettingError(f"A video frame is (H, W, 3) uint8; found {frame.shape} {frame.dtype}.")
        height, width = frame.shape[:2]
        if self._size is None:
            self._open(height, width)
        if (height, width) != self._size:
            raise DataError(f"Frame {self.frames} of '{self.path}' is {(height, width)}, the first one {self._size}.")
        assert self._stream is not None and self._container is not None
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        # Browsers read H.264 as BT.709, limited range; convert to and tag exactly that.
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        step = max(1, round(1 / self._rate / self._time_base))  # ticks of one frame
        ticks = self.frames * step if ticks is None else ticks
        _check_step(self.path, max(step, ticks - self._last) * self._time_base, self._timescale)
        self._last = picture.pts = ticks
        picture.time_base = self._time_base
        picture.duration = step
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _open(self, height: int, width: int) -> None:
        encoder = find_encoder()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._partial), "w", options=_options(self._timescale))
        stream = self._container.add_stream(encoder, rate=self._rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = self._time_base
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        stream.codec_context.color_range = ColorRange.MPEG
        if encoder == "libx264":
            ordered = {"bf": "0"} if self._joinable else {}
            stream.options = {"crf": str(self._quality), "preset": self._preset, **ordered}
        else:  # no constant quality there: about 0.15 bits a pixel and frame
            stream.bit_rate = max(500_000, int(0.15 * width * height * self._rate))
        self._stream, self._size = stream, (height, width)

    def _finish(self) -> None:
        if self._stream is None or self._container is None:
            raise DataError(f"No frame was written to '{self.path}'; a video needs at least one.")
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None
        self._partial.replace(self.path)


def join_films(out: Path, parts: Sequence[tuple[Path, Fraction]]) -> None:
    """Put films one behind the other without encoding anything anew; ``out`` appears only when it is complete.

    Args:
        out: the MP4 to write; an existing one is replaced.
        parts: films of one size by a ``joinable`` :class:`VideoWriter`, each with the second at which it begins.
    """
    with av.open(str(parts[0][0])) as first:
        time_base = first.streams.video[0].time_base
    assert time_base is not None
    with _whole(out, time_base.denominator) as container:
        stream, settings, last = None, None, 0
        for path, start_s in parts:
            with av.open(str(path.absolute()), format="mp4") as part:
                source = part.streams.video[0]
                if stream is None:
                    stream, settings = container.add_stream_from_template(source), source.codec_context.extradata
                if source.codec_context.extradata != settings:
                    raise DataError(
                        f"'{path}' was encoded in another way than the parts before it (another release of PyAV?), so "
                        "they cannot be joined. Begin anew."
                    )
                for packet in part.demux(source):
                    if packet.dts is None:  # the end mark
                        continue
                    assert packet.pts is not None
                    shift = round(start_s / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    _check_step(out, (packet.dts - last) * packet.time_base, time_base.denominator)
                    last = packet.dts
                    container.mux(packet)


@contextmanager
def _whole(path: Path, timescale: int) -> Iterator[av.container.OutputContainer]:
    """An MP4 that appears at ``path`` only if the block does not raise."""
    partial = _partial(path)
    try:
        with av.open(str(partial), "w", options=_options(timescale)) as container:
            yield container
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_step(path: Path, seconds: Fraction, timescale: int) -> None:
    """Refuse a frame that is shown for longer than the format can say."""
    longest_s = Fraction(LONGEST_TICKS, timescale)
    if seconds > longest_s:
        raise DataError(
            f"'{path}' cannot be written: a frame is {float(seconds):.0f} seconds from the one before, and with times "
            f"as fine as these it can be {float(longest_s):.0f}. Do without the film."
        )


def _options(timescale: int) -> dict[str, str]:
    return {**FAST_START, "video_track_timescale": str(timescale)}


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frames a second as FFmpeg and videos have them: ``2997/100`` for 29.97, ``1/86400`` for a frame a day."""
    exact = Fraction(fps)
    if exact <= 0:
        raise SettingError(f"Frames a second (fps) must be positive; found {fps}.")
    rate = exact.limit_denominator(1001) if exact >= 1 else 1 / (1 / exact).limit_denominator(1001)
    return min(max(rate, Fraction(1, LONGEST_TICKS)), Fraction(LONGEST_TICKS))


def _partial(path: Path) -> Path:
    """Where a film lies until it is complete; FFmpeg tells the format from the ending, and an address from a colon."""
    return neighbour(path.absolute(), ".partial.mp4")


def find_encoder() -> str:
    """Name of the first H.264 encoder that this PyAV build has."""
    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name
    raise DataError(
        f"This PyAV build ({av.__version__}) has no H.264 encoder (tried {', '.join(ENCODERS)}). "
        "Install the wheel from PyPI: pip install --force-reinstall --only-binary av av"
    )
