"""What several test files share: a tiny data set in VOC layout, the real test data, and the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from forked import Source
from voc_folder import VocFolder

from fastrcnn.data.demo import write_demo

Call = Callable[..., tuple[int, str, str]]

# The same examples at every run, so that a change fails for what it does; `make fuzz` looks for new ones.
_any = hypothesis.settings(
    deadline=None,  # a busy machine fails no test; see limits.py
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("repeatable", _any, max_examples=100, derandomize=True)
hypothesis.settings.register_profile("search", _any, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile("repeatable")


# Begun first, so that no process is left with one of them while the others are done. See `make test`.
LONGEST = (
    "test_recompute.py",
    "test_survival.py",
    "test_torchrun.py",
    "test_end_to_end.py",
    "test_reproduce_verb.py",
    "test_fuzz.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured messages can contain lone surrogates, from hostile names, which xdist cannot send."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that FASTRCNN_TEST_DATA names; the test is skipped where it names none."""
    folder = os.environ.get("FASTRCNN_TEST_DATA")
    if not folder:
        pytest.skip("FASTRCNN_TEST_DATA is not set: no real data to test with")
    return Path(folder)


@pytest.fixture
def voc(tmp_path: Path) -> VocFolder:
    """An empty data set in VOC layout."""
    return VocFolder(tmp_path / "set")


@pytest.fixture
def tiny(voc: VocFolder) -> VocFolder:
    """Three pictures, of cats and dogs: `a` and `b` in trainval, `c` in test."""
    voc.add("a", ("cat", (1, 1, 32, 24), False), ("dog", (33, 10, 64, 48), False))
    voc.add("b", ("dog", (5, 5, 40, 40), True))
    voc.add("c", ("cat", (11, 11, 30, 40), False))
    voc.split("trainval", "a", "b")
    voc.split("test", "c")
    return voc


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Runs a command line in an empty folder; gives exit status, stdout and stderr."""
    from fastrcnn.cli import main

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    logger = logging.getLogger("fastrcnn")
    handlers = list(logger.handlers)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield run
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of nine pictures."""
    folder = tmp_path_factory.mktemp("place")
    write_demo(folder / "data" / "demo", train=6, val=3, test=3)
    return folder


@pytest.fixture(scope="module")
def source(place: Path) -> Iterator[Source]:
    """Commands in processes of their own, in that folder."""
    found = Source(place)
    yield found
    found.close()
