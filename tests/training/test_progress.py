"""What a training says about the time that is left."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fastrcnn.parallel.launch import quota
from fastrcnn.progress import duration
from fastrcnn.training import meter as meter_module
from fastrcnn.training.loop import Schedule
from fastrcnn.training.meter import Meter, show_progress


class Clock:
    """Stands for the module `time`: a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seconds: list[float], **how: object
) -> list[str]:
    """The lines of a training whose steps take these seconds, and 30 s of other work after the fourth."""
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    caplog.set_level(logging.INFO, "fastrcnn")
    meter = Meter()

    def steps() -> object:
        for taken in seconds:
            clock.now += taken
            yield None

    for number, _ in enumerate(show_progress(steps(), 0, len(seconds), meter, **how), 1):  # type: ignore[arg-type]
        clock.now += 30 if number == 4 else 0
    return [record.getMessage() for record in caplog.records]


def test_the_first_estimate_counts_steps_and_evaluations(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five steps of 2 s there are 95 left, and 120 s of evaluations; what came between steps is no step."""
    lines = said(caplog, monkeypatch, [2.0] * 100, evaluations=lambda _: 120.0)
    assert lines == ["About 5 min left: 3 min for 95 steps, 2 min for evaluation"]


def test_a_new_estimate_is_given_when_it_has_changed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = said(caplog, monkeypatch, [2.0] * 10 + [8.0] * 90)
    assert lines[0] == "About 3 min left: 3 min for 95 steps"
    assert lines[1].startswith("Now about ")
    assert 3 <= len(lines) <= 8
    assert not said(caplog, monkeypatch, [2.0] * 4)[len(lines) :]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (5900, "98 min"), (7260, "2 h 1 min")]
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_cores_of_a_container(tmp_path: Path) -> None:
    assert quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for share, cores in (("-1", float("inf")), ("200000", 2.0)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(share)
        assert quota(tmp_path) == cores


@pytest.mark.parametrize("every", [0, 1, 3, 5, 10, 20])
def test_evaluations_left_are_those_after_the_steps_left(every: int) -> None:
    schedule = Schedule(10, lambda _: 0.1, evaluate_every=every)
    for done in range(11):
        assert schedule.evaluations_left(done) == sum(schedule.evaluates_after(n) for n in range(done + 1, 11))
