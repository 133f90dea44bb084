"""What a run that resumes says about values that differ from those it was started with."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import pytest

from fastrcnn.build.run_config import configure
from fastrcnn.config.compose import compose
from fastrcnn.config.values import as_yaml
from fastrcnn.errors import UserError
from fastrcnn.training.resume import log_changes


def resume(run: Path, *arguments: str) -> None:
    log_changes(run, asdict(configure([f"run={run}", "resume=auto", *arguments])))


@pytest.fixture
def run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    config = compose("train", ["experiment=demo", "solver.schedule=step", "solver.lr_steps=[900]"])
    (tmp_path / "config.yaml").write_text(as_yaml(asdict(config)), encoding="utf-8")
    caplog.set_level(logging.INFO, "fastrcnn")
    return tmp_path


TEST_SIDES = (
    "data.short_sides=[240] does not change data.test_short_sides=[160]: evaluation and detection still use these sizes"
)
LR_STEPS = "solver.iterations=3000 does not change solver.lr_steps=[900]: the learning rate still falls at these steps"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], []),
        (["data.short_sides=[160]"], []),
        (["data.short_sides=[240]"], ["Changed: data.short_sides=[240] (previously [160])", TEST_SIDES]),
        (
            ["data.short_sides=[240]", "data.test_short_sides=[240]"],
            [
                "Changed: data.short_sides=[240] (previously [160])",
                "Changed: data.test_short_sides=[240] (previously [160])",
            ],
        ),
        (["solver.iterations=3000"], ["Changed: solver.iterations=3000 (previously 1500)", LR_STEPS]),
        (
            ["solver.iterations=3000", "solver.schedule=cosine"],
            ["Changed: solver.iterations=3000 (previously 1500)", "Changed: solver.schedule=cosine (previously step)"],
        ),
        (["data.max_images=3"], ["Changed: data.max_images=3 (previously null)"]),
    ],
)
def test_changed_values_and_what_stays_beside_them_are_logged(
    run: Path, caplog: pytest.LogCaptureFixture, arguments: list[str], said: list[str]
) -> None:
    resume(run, *arguments)
    assert caplog.messages == said


def test_a_fresh_run_keeps_its_test_sizes_too_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = configure(["experiment=demo", "data.short_sides=[240]"])
    assert config.data.test_short_sides == [160]
    assert caplog.messages == [TEST_SIDES]
    caplog.clear()
    configure(["experiment=demo", "solver.iterations=10"])  # its schedule is a cosine
    assert caplog.messages == []


def test_a_long_configuration_is_not_read(run: Path) -> None:
    """Empty lists take 300 times the memory of their letters."""
    with (run / "config.yaml").open("a") as file:
        file.write(f"more: [{'[],' * 350_000}]\n")
    with pytest.raises(UserError, match=r"config.yaml: .*it has 1,05\d,\d+ bytes, but the limit is 1,048,576"):
        resume(run)
