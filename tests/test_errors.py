"""The nearest name."""

from __future__ import annotations

import pytest

from fastrcnn.errors import nearest


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("trian", ["train", "eval"], " Did you mean 'train'?"),
        ("Cat", ["dog", "cat"], " Did you mean 'cat'?"),
        ("person", ["Person", "car"], " Did you mean 'Person'?"),  # with the letter case that it has
        ("solver.learning_rat", ["solver.lr", "solver.learning_rate"], " Did you mean 'solver.learning_rate'?"),
        ("xyz", ["train", "eval"], ""),
        ("", ["train"], ""),
        ("train", [], ""),
    ],
)
def test_the_nearest_name_is_offered_where_one_is_near(name: str, known: list[str], answer: str) -> None:
    assert nearest(name, known) == answer
    assert nearest(name, iter(known)) == answer
