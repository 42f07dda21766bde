"""Stages that overlap: order, errors, bounds and clean ends."""

import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from stcl.commands.predict.background import InBackground
from stcl.errors import DataError


def doubled(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        yield 2 * item


def test_results_come_in_order_and_all() -> None:
    assert list(InBackground(doubled(InBackground(range(100), 3)), 2)) == [2 * number for number in range(100)]


def test_stages_overlap() -> None:
    """A stage that ends its work on an item only once the stage before has begun the next one does not wait in vain."""

    def stage(items: Iterable[int], begun: list[threading.Event], before: list[threading.Event]) -> Iterator[int]:
        for item in items:
            begun[item].set()
            assert before[item + 1].wait(60)
            yield item

    always, first, second, third = ([threading.Event() for _ in range(21)] for _ in range(4))
    for event in (*always, first[20], second[20]):  # there is no item 20
        event.set()
    stages = InBackground(stage(InBackground(stage(range(20), first, always)), second, first))
    assert list(stage(stages, third, second)) == list(range(20))


def test_an_error_comes_after_what_was_good_and_ends_all() -> None:
    def breaks() -> Iterator[int]:
        yield from range(3)
        raise DataError("the tail is broken")

    before, seen = threading.active_count(), []
    with pytest.raises(DataError, match="the tail is broken"), InBackground(breaks()) as first:
        seen.extend(InBackground(doubled(first)))
    assert seen == [0, 2, 4]
    assert threading.active_count() == before


def test_no_more_waits_than_there_is_room_for() -> None:
    made = []

    def count() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    with InBackground(count(), depth=3) as stage:
        assert next(iter(stage)) == 0
        time.sleep(0.2)
        assert len(made) <= 5  # one taken, three waiting, one in hand


def test_a_stage_that_is_left_closes_its_source() -> None:
    closed = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread())

    before = threading.active_count()
    with InBackground(endless()) as first, InBackground(doubled(first)) as second:
        for _ in second:
            break
    assert len(closed) == 1 and closed[0] is not threading.main_thread()
    assert threading.active_count() == before
