"""Videos from files, cameras and the net as frames with times, by means of PyAV (FFmpeg's libraries)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stcl.data.frames import FrameFolder, FrameSource, VideoFrame
from stcl.errors import DataError, SettingError
from stcl.files import LARGEST_PX
from stcl.names import file_name
from stcl.paths import from_home, real_path

GAP_FRAMES = 2.5
"""A step between two frames of a file that is longer than so many frames is a gap."""

LIVE_GAP_S = 1.0
"""The same for a live source, where a slow network leaves frames out."""

FALLBACK_FPS = Fraction(25)
"""For sources that do not say."""

_SLACK_S = 0.5
"""By how much a file may be shorter than it says: durations are rounded in many ways."""

_CAMERA = r"(?:camera:|/dev/video)(\d+)"
_URL = r"([a-z]+://)(?:[^/]*@)?"


def name_of(place: str | Path) -> str:
    """Name of a video by its place, fit for a folder; a password in a URL is no part of it."""
    text = str(place)
    if camera := re.fullmatch(_CAMERA, text):
        return file_name(f"camera_{camera[1]}")
    if re.match(_URL, text):
        return file_name(re.sub(r"[^\w.-]+", "_", re.sub(_URL, "", text)).strip("_.") or "stream")
    path = real_path(place)
    return file_name(path.name if path.is_dir() else path.stem)


def without_password(place: str) -> str:
    """A place as messages and records show it."""
    return re.sub(f"^{_URL}", r"\1", place)


def open_source(place: str | Path, fps: Fraction = Fraction(10), timeout_s: float = 10.0) -> FrameSource:
    """A video by its place; one that cannot be read is refused here, before any work is done.

    Args:
        place: a video file, a folder of frames, a camera (``camera:0`` or ``/dev/video0``) or a URL (``rtsp://...``).
        fps: frames a second of folders.
        timeout_s: how long to wait for an answer from the net, seconds.
    """
    if fps <= 0 or timeout_s <= 0:
        raise SettingError(f"Frames a second and seconds to wait must be positive; found {fps} and {timeout_s}.")
    text, name = str(place), name_of(place)
    if camera := re.fullmatch(_CAMERA, text):
        return VideoSource(f"/dev/video{camera[1]}", name, live=True, container="v4l2")
    if re.match(_URL, text):
        return VideoSource(text, name, live=True, timeout_s=timeout_s)
    path = from_home(place)
    if path.is_dir():
        return FrameFolder(path, fps)
    if not path.exists():
        raise DataError(f"There is no video or folder '{path}'. Check the path.")
    return VideoSource(str(path), name)


@dataclass(frozen=True)
class _Timed:
    """A decoded picture as FFmpeg gives it, and its time in ticks of the stream."""

    picture: av.VideoFrame
    ticks: int


class VideoSource:
    """A video file, a camera or a stream from the net.

    What a damaged file holds before and after the damage is served; then an error says what was not.

    Args:
        place: what FFmpeg opens.
        name: fit for a folder.
        live: opened once and read as it comes.
        container: FFmpeg's name of the format, where it cannot be told from the content.
        timeout_s: how long to wait for an answer from the net, seconds.
    """

    def __init__(
        self, place: str, name: str, live: bool = False, container: str | None = None, timeout_s: float | None = None
    ) -> None:
        self.place = place
        self._shown = without_password(place)
        self.name = name
        self.live = live
        self._problem = ""
        self._format = container
        self._timeout_s = timeout_s
        opened = self._open()
        stream = video_stream(opened)
        self.fps = frames_a_second(stream)
        self.count = stream.frames or None
        decoded = self._decode(opened)
        first = next(decoded, None)
        if first is None:
            opened.close()
            why = f" ({self._problem})" if self._problem else ""
            raise DataError(f"{self._shown} holds no frame that can be decoded{why}.")
        assert first.picture.time_base is not None
        self.time_base_s = first.picture.time_base
        self.size = upright(first.picture).shape[:2]
        self._live_frames = (first, decoded, opened) if live else None
        if not live:
            opened.close()

    def frames(self, first: int = 0) -> Iterator[VideoFrame]:
        """Frames from number ``first`` on; those before are decoded, but not converted.

        Raises:
            DataError: after the last frame that could be had, if the video ended early.
        """
        if self._live_frames is not None:
            start, decoded, container = self._live_frames
            self._live_frames = None
            timed = self._with(start, decoded)
        else:
            self._problem = ""
            container = self._open()
            timed = self._decode(container)
        with container:
            yield from self._serve(timed, first)
            if self._problem:
                what = "went away" if self.live else "is damaged"
                raise DataError(f"{self._shown} {what}: {self._problem}.")

    def identity(self) -> dict[str, Any]:
        """A file with its size and time of change; a live source just has its name."""
        if self.live:
            return {"live": self.name}
        status = Path(self.place).stat()
        return {"file": str(real_path(self.place)), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}

    def _serve(self, timed: Iterator[_Timed], first: int) -> Iterator[VideoFrame]:
        longest_s = LIVE_GAP_S if self.live else GAP_FRAMES / float(self.fps)
        origin, last, index = 0, 0, 0
        for index, frame in enumerate(timed):
            ticks = frame.ticks - origin
            if index == 0:
                origin, ticks = frame.ticks, 0
            ticks = max(ticks, last + 1) if index else 0  # some files give two frames one time
            near = index > 0 and (ticks - last) * self.time_base_s <= longest_s
            last = ticks
            if index < first:
                continue
            image = upright(frame.picture)
            if image.shape[:2] != self.size:
                raise DataError(
                    f"{self._shown}: frame {index} is {image.shape[1]}x{image.shape[0]}, but the first one is "
                    f"{self.size[1]}x{self.size[0]}. A video has one size: cut it there and give the parts one by one."
                )
            yield VideoFrame(index, ticks, image, f"{index:06d}", near)

    def _open(self) -> av.container.InputContainer:
        return open_container(self.place, self.live, self._format, self._timeout_s)

    def _decode(self, container: av.container.InputContainer) -> Iterator[_Timed]:
        """Pictures in order; steps over what cannot be decoded, stops at what cannot be read, and says so."""
        stream = video_stream(container)
        step = max(1, round(1 / self.fps / (stream.time_base or 1 / self.fps)))
        last, length, read, bad, served = -step, step, 0, 0, 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.ExitError:
                self._problem = f"nothing came for {self._timeout_s:g} seconds after {served} frames"
                return
            except (av.error.FFmpegError, OSError) as error:
                self._problem = f"{reason(error)} after {served} frames"
                return
            if packet is None:
                break
            read += packet.size > 0
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                bad += 1
                continue
            for picture in pictures:
                last = last + step if picture.pts is None else picture.pts
                length = max(step, picture.duration or 0)  # the rate of a very slow video is a guess
                served += 1
                bad += picture.is_corrupt
                yield _Timed(picture, last)
        shown_s = float((last + length) * (stream.time_base or 0))
        if bad:
            self._problem = f"{bad} places could not be decoded properly; {served} frames could be shown"
        else:  # how long a live source is, nobody knows
            self._problem = early_end(container, stream, read, math.inf if self.live else shown_s)

    @staticmethod
    def _with(first: _Timed, rest: Iterator[_Timed]) -> Iterator[_Timed]:
        yield first
        yield from rest


_COVER = av.stream.Disposition.attached_pic


def open_container(
    place: str, live: bool = False, container: str | None = None, timeout_s: float | None = None
) -> av.container.InputContainer:
    """What FFmpeg opens at ``place``, with a video track; see :class:`VideoSource` for the arguments."""
    shown = without_password(place)
    options = {"rtsp_transport": "tcp"} if place.startswith("rtsp") else {}
    try:
        opened = av.open(
            place,
            format=container,
            options=options,
            timeout=timeout_s,
            metadata_errors="replace",  # titles of any age and alphabet
        )
    except av.error.ExitError:
        raise DataError(f"{shown} did not answer within {timeout_s:g} seconds. Is it on?") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        what = "cannot be opened" if live else "is no video that can be read"
        advice = "" if live else " Is it complete? Copy it again, or leave it out."
        raise DataError(f"{shown} {what}: {reason(error)}.{advice}") from None
    videos = [stream for stream in opened.streams.video if not stream.disposition & _COVER]
    if not videos:
        kinds = ", ".join(sorted({str(stream.type) for stream in opened.streams})) or "nothing"
        opened.close()
        raise DataError(f"{shown} has no video track, only {kinds}. Leave it out.")
    if videos[0].codec_context is None:
        opened.close()
        raise DataError(f"{shown} has a video track, but in a coding that cannot be decoded. Convert it to H.264.")
    videos[0].thread_type = "AUTO"
    videos[0].codec_context.options = {"max_pixels": str(LARGEST_PX)}
    return opened


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video track that is no picture of a cover."""
    return next(stream for stream in container.streams.video if not stream.disposition & _COVER)


def frames_a_second(stream: av.VideoStream) -> Fraction:
    """The mean rate that a stream says it has."""
    return next((rate for rate in (stream.average_rate, stream.guessed_rate) if rate), FALLBACK_FPS)


def early_end(container: av.container.InputContainer, stream: av.VideoStream, read: int, shown_s: float) -> str:
    """How a file ended before its promised end, after so many packets and seconds; empty where it did not."""
    promised = stream.frames
    if "mp4" in container.format.name:  # frames that were trimmed away by an edit list still count among the frames
        promised = len(getattr(stream, "index_entries", range(promised)))
    elif container.format.name == "avi":  # dropped frames count as well: its duration says as much
        promised = 0
    if promised > read:
        return f"it says that it has {promised} frames, but ends after {read}"
    if (promised_s := _promised_seconds(container, stream)) > shown_s + _SLACK_S:
        return f"it says that it is {promised_s:.1f} seconds long, but ends after {shown_s:.1f}"
    return ""


def upright(picture: av.VideoFrame) -> NDArray[np.uint8]:
    """The picture as ``(H, W, 3)`` uint8 RGB, turned as its file says (phones film sideways); alpha is left out."""
    pixels = picture.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(picture.rotation / 90)))  # both count counter-clockwise


def _promised_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """How long a Matroska, WebM or AVI file says that its video track is; 0 where it does not say."""
    if container.format.name == "avi":
        return float((stream.duration or 0) * (stream.time_base or 0))
    if "matroska" not in container.format.name:
        return 0.0
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    alone = len(container.streams) == 1  # another track may be longer
    return container.duration / av.time_base if alone and container.duration else 0.0


def reason(error: BaseException) -> str:
    """FFmpeg's words without its codes and the path."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:].rstrip(".")
