"""Work done ahead in threads: order, bounds, errors, and the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from fastrcnn.parallel import ahead as module
from fastrcnn.parallel.ahead import ahead


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)


def left() -> list[str]:
    """Threads of `ahead` that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_there_is_a_thread_for_each_core_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.threads() == 2
    monkeypatch.setattr(module, "cores", lambda: 64)
    assert module.threads() == 8


@pytest.mark.parametrize("number", [0, 1, 2, 3, 20])
def test_results_come_in_the_order_of_the_items(number: int) -> None:
    """Whichever is ready first: the first result waits for the second one's thread."""
    second = threading.Event()

    def square(value: int) -> int:
        if value == 1:
            second.set()
        elif value == 0 and number > 1:
            assert second.wait(30)
        return value * value

    assert [future.result() for future in ahead(square, range(number), 2)] == [i * i for i in range(number)]
    assert left() == []


@pytest.mark.parametrize("size", [1, 3, 8])
def test_no_more_items_are_taken_than_two_groups(size: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    with closing(ahead(str, items(), size)) as futures:
        assert taken == []
        for asked in range(2 * size + 1):
            assert next(futures).result() == str(asked)
            assert len(taken) == (asked // size + 2) * size
    assert len(taken) == 4 * size
    assert left() == []


def test_an_error_comes_in_its_place_and_leaves_the_others_as_they_are() -> None:
    futures = ahead(lambda value: 12 // (value - 1), range(100), 8)
    assert next(futures).result() == -12
    with pytest.raises(ZeroDivisionError):
        next(futures).result()
    assert next(futures).result() == 12
    futures.close()
    assert left() == []


def test_an_error_of_the_items_ends_the_threads() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ahead(str, items(), 2))
    assert left() == []
