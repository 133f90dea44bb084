"""The Dockerfile, as far as it can be looked at without Docker; `scripts/try_dockerfile.py` carries it out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from script_module import load

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


try_dockerfile = load("try_dockerfile")


def test_a_linter_has_nothing_to_say() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_a_user_and_starts_the_command_line_without_a_shell() -> None:
    last = TEXT.rpartition("\nFROM ")[2]
    found = dict(try_dockerfile.instructions(last.partition("\n")[2]))
    assert found["USER"] not in ("root", "0")
    assert json.loads(found["ENTRYPOINT"]) == ["fastrcnn"]
    assert json.loads(found["CMD"]) == ["--help"]
    assert last.index("USER") < last.index("ENTRYPOINT")


def test_what_is_copied_is_sent_and_is_all_that_an_installation_needs() -> None:
    sent = try_dockerfile.context()
    if not sent:
        pytest.skip("not a git checkout, so what is sent is not known")
    assert not [n for n in sent if n.startswith(("data/", ".git/", "outputs/", ".venv/"))]
    taken = set()
    for word, rest in try_dockerfile.instructions(TEXT):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                taken |= {name for name, _ in try_dockerfile.copied(source, target, sent)}
    needed = {n for n in sent if n.startswith(("fastrcnn/", "configs/")) or n in ("pyproject.toml", "setup.py")}
    assert needed <= taken


def test_lines_that_go_on_are_one_instruction_and_comments_are_none() -> None:
    text = "# a\nFROM x AS y\n# hadolint ignore=1\nRUN a \\\n    && b\n\nCOPY c d/\n"
    assert try_dockerfile.instructions(text) == [("FROM", "x AS y"), ("RUN", "a && b"), ("COPY", "c d/")]
    assert try_dockerfile.copied("c", "d/", ["c", "e"]) == [("c", "d/c")]
    assert try_dockerfile.copied("c", "d", ["c/e/f", "cg"]) == [("c/e/f", "d/e/f")]
    with pytest.raises(SystemExit, match="COPY x"):
        try_dockerfile.copied("x", "d", ["c"])
