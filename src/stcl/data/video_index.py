"""Any frame of a video file, in any order: the pictures that decoding from the start would give, without doing so."""

import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stcl.data.containers import GAP_FRAMES, early_end, frames_a_second, open_container, reason, upright, video_stream
from stcl.errors import DataError

KEPT_PICTURES = 8
"""How many decoded pictures of a file are kept: the frames of a clip are asked for one by one."""

OPEN_FILES = 4
"""How many files of a pool are open at a time; each holds a decoder and :data:`KEPT_PICTURES` pictures."""

_INHERITED: list[Any] = []
"""What a forked process got from its parent: it can neither be used nor freed, as FFmpeg would wait for threads."""

_RUN_UPS = 3
"""How many key frames before a frame are tried: after some, a stream needs further frames to recover."""


@dataclass(frozen=True)
class VideoIndex:
    """What a file holds, known from its packets: nothing is decoded.

    Attributes:
        times: when each frame is shown, ``(N,)`` int64 ticks, in this order. Frames before the first key frame are left
            out: nothing can decode them.
        keys: times of the frames that decoding can start at, ``(K,)`` int64, rising; some may not be shown themselves.
        follows: whether a frame comes right after the one before, ``(N,)`` bool; see ``GAP_FRAMES``.
        tick_s: seconds of a tick.
    """

    times: NDArray[np.int64]
    keys: NDArray[np.int64]
    follows: NDArray[np.bool_]
    tick_s: Fraction


def index_video(path: Path) -> VideoIndex:
    """Read the index of a video file.

    Raises:
        DataError: it is no video, it ends early, or its frames have no times.
    """
    with open_container(str(path)) as container:
        stream = video_stream(container)
        assert stream.time_base is not None
        fps, tick_s = frames_a_second(stream), stream.time_base
        shown, starts, problem = _packets(path, container, stream)
    times, keys = np.sort(np.array(shown, np.int64)), np.sort(np.array(starts, np.int64))
    if problem:
        good_s = float((times[-1] - times[0]) * tick_s) if len(times) else 0.0
        raise DataError(
            f"{path} is damaged: {problem}. Copy it again, or cut off the broken end: "
            f'ffmpeg -i "{path.name}" -t {good_s:.2f} -c copy "{path.stem}_whole{path.suffix}".'
        )
    if len(keys):
        times = times[times >= keys[0]]
    if not len(keys) or not len(times):
        raise DataError(
            f"{path} holds no frame that can be decoded: {len(shown)} frames, {len(keys)} key frames. Copy or "
            "record it again."
        )
    follows = np.diff(times, prepend=times[0]) * float(tick_s) <= GAP_FRAMES / float(fps)
    follows[0] = False
    return VideoIndex(times, keys, follows, tick_s)


def _packets(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[list[int], list[int], str]:
    """Times of the frames that are shown and of the key frames, in the order of the file, and what is wrong with it."""
    shown: list[int] = []
    keys: list[int] = []
    read, last = 0, 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            return shown, keys, f"{reason(error)} after {read} frames"
        if packet is None:
            break
        if not packet.size:  # the mark of the end
            continue
        if packet.is_corrupt:
            return shown, keys, f"frame {read} is cut off or damaged"
        read += 1
        if _is_hidden(packet, stream):
            continue
        if packet.pts is None:
            raise DataError(
                f"{path} does not say when its frames are shown (a raw stream or an old AVI), so none can be looked up."
                f' Give them times, without a loss: ffmpeg -fflags +genpts -i "{path.name}" -c copy "{path.stem}.mkv".'
            )
        if packet.is_keyframe:
            keys.append(packet.pts)
        if not packet.is_discard:  # trimmed away, but others may build on it
            shown.append(packet.pts)
        last = max(last, packet.pts + (packet.duration or 0))
    return shown, keys, early_end(container, stream, read, float(last * (stream.time_base or 0)))


def _is_hidden(packet: "av.Packet[Any]", stream: av.VideoStream) -> bool:
    """Whether a packet only helps to decode others: VP8 has such, with a time like any other."""
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10  # the bit show_frame


class VideoReader:
    """The frames of one file by number.

    Going on from the last request decodes only what lies between; else decoding starts at the key frame before. A copy
    in another process opens the file for itself.

    Attributes:
        index: see :class:`VideoIndex`.
        decoded: number of pictures that were decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = index_video(path)
        self.decoded = 0
        self._forget()

    def read(self, number: int) -> NDArray[np.uint8]:
        """Frame ``number`` from 0, as ``(H, W, 3)`` uint8 RGB, upright."""
        if not 0 <= number < len(self.index.times):
            raise DataError(f"{self.path} has {len(self.index.times)} frames; there is no frame {number}.")
        self._leave_to_parent()
        picture = next((picture for place, picture in self._kept if place == number), None)
        try:
            return upright(picture or self._find(number))
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} cannot be read any more: {reason(error)}. Is the disk still there?") from None

    def close(self) -> None:
        """Close the file and let go of its pictures; the next request opens it again."""
        self._leave_to_parent()
        if self._container is not None:
            self._container.close()
        self._forget()

    def _leave_to_parent(self) -> None:
        """After a fork: the other process goes on reading through the same file handle."""
        if self._process != os.getpid():
            _INHERITED.append((self._container, self._pictures, [*self._kept]))
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "index": self.index, "decoded": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._container: av.container.InputContainer | None = None
        self._kept: deque[tuple[int, av.VideoFrame]] = deque(maxlen=KEPT_PICTURES)
        self._pictures: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._next = -1  # the frame that goes on from the last one; -1: nothing was decoded yet

    def _find(self, number: int) -> av.VideoFrame:
        """Decode up to a frame."""
        times, keys = self.index.times, self.index.keys
        nearest = int(np.searchsorted(keys, times[number], "right")) - 1
        if not (0 <= self._next <= number and keys[nearest] <= times[self._next]):
            self._start(nearest)
        for key in range(nearest - 1, nearest - 1 - _RUN_UPS, -1):
            for place, picture in self._pictures:
                self._next = place + 1
                self._kept.append((place, picture))
                if place == number:
                    return picture
                if place > number:
                    break
            if key < 0:
                break
            self._start(key)
        time_s = float((times[number] - times[0]) * self.index.tick_s)
        raise DataError(
            f"{self.path}: frame {number}, {time_s:.2f} seconds from the start, cannot be decoded. The file is damaged "
            "there: copy it again, or cut that part out."
        )

    def _start(self, key: int) -> None:
        """Let decoding go on from a key frame: seek, and step over the packets before it without decoding them."""
        time = int(self.index.keys[key])
        self._next = int(np.searchsorted(self.index.times, time))
        for ahead in (0, 1, 8, None):  # seeking is exact in some formats only, and may end behind the key frame
            packets = self._seek(None if ahead is None else max(0, key - ahead))
            for packet in packets:
                if packet.is_keyframe and packet.pts == time:
                    self._pictures = self._decode(chain([packet], packets), self._next)
                    return
                if packet.is_keyframe and packet.pts is not None and packet.pts > time:
                    break
        raise DataError(f"{self.path} is no longer the file that it was when its frames were counted. Start again.")

    def _seek(self, key: int | None) -> "Iterator[av.Packet[Any]]":
        """The packets from about a key frame on; None: from the start of the file, without seeking."""
        if key is None:
            self.close()
        if self._container is None:
            self._container = open_container(str(self.path))
            context = video_stream(self._container).codec_context
            context.thread_type, context.thread_count = "NONE", 1  # loader processes are the parallelism
        stream = video_stream(self._container)
        if key is not None:
            try:
                self._container.seek(int(self.index.keys[key]), stream=stream)
            except av.error.FFmpegError:  # a format in which it cannot
                return self._seek(None)
        return self._container.demux(stream)

    def _decode(self, packets: "Iterable[av.Packet[Any]]", first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Pictures with their numbers; what cannot be decoded is missing, and so is what lies before ``first``."""
        times, last = self.index.times, first - 1
        for packet in packets:
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                continue
            for picture in pictures:
                self.decoded += 1
                if picture.pts is None or picture.is_corrupt:
                    continue
                place = max(int(np.searchsorted(times, picture.pts)), last + 1)  # some files give two frames one time
                if place < len(times) and times[place] == picture.pts:
                    yield place, picture
                    last = place


class VideoPool:
    """The frames of many files, of which a few are open at a time, whatever their number."""

    def __init__(self) -> None:
        self._readers: dict[Path, VideoReader] = {}
        self._open: OrderedDict[Path, VideoReader] = OrderedDict()

    def index(self, path: Path) -> VideoIndex:
        """The index of a file, read once."""
        if path not in self._readers:
            self._readers[path] = VideoReader(path)
        return self._readers[path].index

    def read(self, path: Path, number: int) -> NDArray[np.uint8]:
        """Frame ``number`` of a file, as ``(H, W, 3)`` uint8 RGB, upright."""
        self.index(path)
        self._open[path] = self._readers[path]
        self._open.move_to_end(path)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return self._readers[path].read(number)
