"""Stages of work that overlap: each runs in a thread of its own and hands its results on in order."""

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1
"""How often a stage that waits for room looks whether it is still wanted."""

_PATIENCE_SECONDS = 10.0
"""How long a stage that is left may take to end."""


class InBackground(Generic[Item]):
    """Iterate over ``items`` in a thread of its own, some of them ahead of who wants them.

    Stages are put behind each other by giving one to the next: ``InBackground(labels(InBackground(decode(path))))``. An
    error in a stage is raised where its next result is wanted, and so reaches the last stage; a stage that is left ends
    those before it. PyAV, OpenCV and torch work without Python's lock, so that stages do overlap.

    Args:
        items: what the stage makes; a generator is closed in the stage's own thread.
        depth: how many results wait at most: memory does not grow where one stage is slower than another.
    """

    def __init__(self, items: Iterable[Item], depth: int = 4) -> None:
        self._items = items
        self._ready: queue.Queue[Item | BaseException | None] = queue.Queue(depth)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        try:
            while True:
                item = self._ready.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.close()

    def __enter__(self) -> "InBackground[Item]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tell the stage and those before it to end, and wait for them (but not for a camera that never answers)."""
        self._unwanted.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE_SECONDS)

    def _work(self) -> None:
        end: BaseException | None = None
        iterator = iter(self._items)
        try:
            for item in iterator:
                if not self._put(item):
                    break
        except BaseException as error:  # noqa: BLE001  raised again where the next result is wanted
            end = error
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
        self._put(end)

    def _put(self, item: Item | BaseException | None) -> bool:
        """Hand an item on once there is room; False if nobody wants it any more."""
        while not self._unwanted.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False
