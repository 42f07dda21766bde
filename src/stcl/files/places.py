"""Places that people give, as messages, records and names of folders may show them: without user names and passwords.

An address is ``scheme://user:password@host:port/path?key=value#part``, but people write passwords as they are, with any
of these signs in them. What may be a part of one is left out, even where that costs a part of the path; so is what
stands behind a question mark, where cameras take passwords, too.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from stcl.files.paths import from_home

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"  # a single letter is a drive of Windows
_START = rf"{_SCHEME}:[/\\]+"  # a path has lost a slash of it
_ENCODED = rf"{_SCHEME}%(?:25)*3a%(?:25)*2f"
_BARE = r"(?![A-Za-z]:[/\\])[^/\\:]+:.*@"  # an address whose scheme was forgotten
_AT = r"(?:@|%(?:25)*40)"
_VALUES = r"(?:[?#;&=]|%(?:25)*(?:3f|23|3b|26|3d))"
_HOST = r"(?:\[[^]]*\]|[^:\\]*)(?::\d{0,5})?"
_ANY = re.IGNORECASE | re.DOTALL
_HIDDEN = "..."


def local_path(place: str) -> Path | None:
    """The file or folder that a place means; None for an address of the net."""
    if re.match("file:/", place, _ANY):
        from urllib.parse import urlsplit  # these import a good deal, before the command has left the working folder
        from urllib.request import url2pathname

        return Path(url2pathname(urlsplit(place).path))
    return None if re.match(f"{_SCHEME}://", place) else from_home(place)


def with_plain_scheme(address: str) -> str:
    """An address as programs take it, which know schemes in lower case only."""
    scheme, colon, rest = address.partition(":")
    return scheme.lower() + colon + rest


def shown_place(place: str | Path) -> str:
    """A place as messages and records show it."""
    text = str(place)
    if found := re.match(_SCHEME + r"(?=:[/\\])", text):
        return f"{found[0].lower()}://{public_part(text)}"
    if re.match(_ENCODED, text, _ANY):
        return _HIDDEN
    return f"{_HIDDEN}@{_split_last(text)[1]}" if re.match(_BARE, text, _ANY) else text


def public_part(address: str) -> str:
    """What may be seen of an address behind its scheme: host, port and path, or three dots."""
    before, after = _split_last(re.sub(f"^{_START}", "", address))
    if re.search(r"[?#]|/.*[=;&]|%(?:25)*(?:3f|23)", before, _ANY):  # the last @ may be of a value
        return _HIDDEN
    shown = re.split(_VALUES, after, maxsplit=1, flags=_ANY)[0]
    return shown if shown and re.fullmatch(_HOST, shown.partition("/")[0]) else _HIDDEN


def shown_word(word: str) -> str:
    """A word of a command, in which an address may stand behind an option: ``--target.root=rtsp://...``."""
    before, place = _split_word(word)
    return before + shown_place(place)


def shown_text(text: str, words: Iterable[str] = ()) -> str:
    """A message in which addresses are as :func:`shown_place` gives them.

    Args:
        text: in which an address ends at a quotation mark or a space.
        words: of the command, which may hold addresses with such signs in them.
    """
    for _, place in map(_split_word, words):
        if shown_place(place) != place:
            text = text.replace(place, shown_place(place)).replace(str(Path(place)), shown_place(place))
    return re.sub(rf"{_START}[^\s'\"]*", lambda found: shown_place(found[0]), text)


def _split_word(word: str) -> tuple[str, str]:
    """A word of a command up to the place in it, and that."""
    address, option = re.search(_START, word), re.match("--[^=]*=", word)
    start = address.start() if address else option.end() if option else 0
    return word[:start], word[start:]


def _split_last(text: str) -> tuple[str, str]:
    """What stands before and behind the last @; without one all of it is behind."""
    found = re.fullmatch(f"(.*){_AT}(.*)", text, _ANY)
    return (found[1], found[2]) if found else ("", text)
