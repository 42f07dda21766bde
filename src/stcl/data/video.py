"""Videos from files, cameras and the net as frames with times, by means of PyAV (FFmpeg's libraries)."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from stcl.data.containers import (
    GAP_FRAMES,
    early_end,
    frames_a_second,
    open_container,
    reason,
    upright,
    video_stream,
)
from stcl.data.frames import FrameFolder, FrameSource, VideoFrame
from stcl.errors import DataError, SettingError
from stcl.files.names import file_name
from stcl.files.paths import real_path
from stcl.files.pictures import LARGEST_PX
from stcl.files.places import local_path, public_part, shown_place, with_plain_scheme

LIVE_GAP_S = 1.0
"""As :data:`GAP_FRAMES` for a live source, where a slow network leaves frames out."""

_CAMERA = r"(?:camera:|/dev/video)(\d+)"


def name_of(place: str | Path) -> str:
    """Name of a video by its place, fit for a folder; a password in a URL is no part of it."""
    text = str(place)
    if camera := re.fullmatch(_CAMERA, text):
        return file_name(f"camera_{camera[1]}")
    path = local_path(text)
    if path is None:
        return file_name(re.sub(r"[^\w.-]+", "_", public_part(text)).strip("_.") or "stream")
    path = real_path(path)
    return file_name(path.name if path.is_dir() else path.stem)


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
    path = local_path(text)
    if path is None:
        return VideoSource(with_plain_scheme(text), name, live=True, timeout_s=timeout_s)
    if path.is_dir():
        return FrameFolder(path, fps)
    if not path.exists():
        raise DataError(f"There is no video or folder '{shown_place(text)}'. Check the path.")
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
        self._shown = shown_place(place)
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
            raise DataError(f"{self._shown} holds no frame of at most {LARGEST_PX} pixels that can be decoded{why}.")
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
