"""Names of files and folders that are made of other names: fit for every system, and never a way out of their folder.

Every name of an output that comes from a file, a URL, a setting or a data set goes through :func:`file_name`.
"""

import os
import re
import unicodedata
import uuid
from hashlib import blake2b
from pathlib import Path

LONGEST_BYTES = 255
"""Of the name of a file on the usual file systems."""

NAME_BYTES = 200
"""Of a name that others are made of: with an ending and the stamp of a temporary file it is a name still."""

# what Windows or a terminal cannot take: signs of paths and patterns, control characters, ends of lines, half letters
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_EDGES = re.compile(r"^\.+|[. ]+$")  # a dot in front hides a file, one at the end is lost on Windows
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)


def file_name(text: str, longest_bytes: int = NAME_BYTES) -> str:
    """A text as the name of a file or folder: itself where it can be one, else a fit one that ends in its digest.

    The result is one part of a path on Windows as well, no device of it (``CON``, ``nul.txt``), not hidden, and at most
    ``longest_bytes`` long in UTF-8. Different texts get different names, up to the chance of 32 bits.
    """
    name = _EDGES.sub(lambda found: "_" * len(found[0]), _FORBIDDEN.sub("_", text)) or "unnamed"
    if _DEVICES.fullmatch(name):
        name = f"_{name}"
    if name == text and len(name.encode()) <= longest_bytes:
        return name
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{name.encode()[: longest_bytes - len(digest) - 1].decode(errors='ignore')}~{digest}"


def same_file(name: str) -> str:
    """Equal for names that some file systems take for one: those of other case, or with accents written otherwise."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


_STAMPED = re.compile(r"\.(.+)\.\d+\.[0-9a-f]{8}\.(tmp|partial\.mp4)", re.DOTALL)


def neighbour(path: Path, ending: str = ".tmp") -> Path:
    """A hidden file beside ``path`` that nobody else writes, where its content lies until it is whole."""
    stamp = f".{os.getpid()}.{uuid.uuid4().hex[:8]}{ending}"
    room = LONGEST_BYTES - 1 - len(stamp)
    name = path.name
    if len(os.fsencode(name)) > room:
        name = os.fsencode(name)[:room].decode(errors="ignore")
    return path.with_name(f".{name}{stamp}")


def neighbour_of(name: str) -> str:
    """The name of the file that a :func:`neighbour` was to become; empty where it is none."""
    found = _STAMPED.fullmatch(name)
    return found[1] if found else ""
