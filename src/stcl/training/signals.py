"""Requests to stop: SIGTERM, SIGUSR1 (a scheduler's warning) and Ctrl+C end a run after the step under way."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE_STATUS = 75
"""Exit status of a run that was asked to stop and saved itself: "temporary failure, try again" (sysexits.h)."""

INTERRUPT_STATUS = 130
"""Exit status after Ctrl+C."""


class StopRequest:
    """Remembers a signal until the step is done. A second Ctrl+C stops at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @property
    def status(self) -> int:
        """Exit status that belongs to the signal."""
        return INTERRUPT_STATUS if self.received == signal.SIGINT else REQUEUE_STATUS

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer the signals, and put the handlers back that were there before."""
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is unknown to Windows
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, self.handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
