"""Files and streams of video as FFmpeg opens them (by means of PyAV): which kinds, how large, how they end."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.pictures import LARGEST_PX
from stcl.files.places import shown_place
from stcl.files.writing import open_file

GAP_FRAMES = 2.5
"""A step between two frames of a file that is longer than so many frames is a gap."""

FALLBACK_FPS = Fraction(25)
"""For sources that do not say."""

CONTAINERS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "asf_o", "flv", "ogg", "mxf"),
    *("h263", "h264", "hevc", "vvc", "av1", "obu", "m4v", "vc1", "ivf", "mjpeg", "yuv4mpegpipe", "dv", "gxf", "nut"),
    *("rm", "wtv", "gif", "apng", "png_pipe", "jpeg_pipe"),
)
"""FFmpeg's names of what a file may be: what holds its frames itself, and does not list other files."""

PROTOCOLS = (
    *("http", "https", "httpproxy", "tls", "tcp", "udp", "udplite", "rtp", "srtp", "srt", "rist", "sctp", "hls"),
    *("rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "ffrtmphttp", "ffrtmpcrypt", "mmsh", "mmst"),
    *("ftp", "sftp", "gopher", "gophers", "libssh", "libsmbclient", "amqp", "zmq", "crypto", "data"),
)
"""What an address, and what is found there, may lead to: the net, and never a file of this machine."""

_SLACK_S = 0.5
"""By how much a file may be shorter than it says: durations are rounded in many ways."""

_LIMITS = {"max_pixels": str(LARGEST_PX)}
_ANY_TITLE = "replace"  # of any age and alphabet
_COVER = av.stream.Disposition.attached_pic


def open_container(
    place: str, live: bool = False, container: str | None = None, timeout_s: float | None = None
) -> av.container.InputContainer:
    """What FFmpeg opens at ``place``, with a video track; see :class:`VideoSource` for the arguments."""
    shown = shown_place(place)
    try:
        opened = _open_live(place, container, timeout_s) if live else _open_file(Path(place))
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
    videos[0].codec_context.options = _LIMITS
    return opened


def _open_file(path: Path) -> av.container.InputContainer:
    try:
        open_file(path).close()  # FFmpeg would wait for a pipe
    except OSError as error:
        raise DataError(f"{path} is no video that can be read: {reason(error)}. Give a file.") from None
    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:  # a relative path with a colon would be an address to FFmpeg
        return av.open(str(path.absolute()), options=options | _LIMITS, metadata_errors=_ANY_TITLE)
    except av.error.ArgumentError:
        raise DataError(
            f"{path} is no video that can be read: it is neither MP4, Matroska, AVI nor another kind of file that "
            "holds its frames itself. Is it a list of videos? Give these."
        ) from None


def _open_live(place: str, container: str | None, timeout_s: float | None) -> av.container.InputContainer:
    options = {"protocol_whitelist": ",".join(PROTOCOLS)} | _LIMITS
    if place.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    return av.open(place, format=container, options=options, timeout=timeout_s, metadata_errors=_ANY_TITLE)


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
