"""The documentation: links lead somewhere, commands and keys exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fastrcnn.config.compose import check_overrides, compose
from fastrcnn.config.schema import SCHEMAS, leaves

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "docs", "docs/images", "configs", "data", "fastrcnn/ops")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
KEY = re.compile(r"`((?:model|data|solver|detection|runtime)\.[a-z_0-9.]+)[=`]")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `fastrcnn` command in a page's shell blocks, without placeholders."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "fastrcnn" in words and words[0] != "docker" and not line.startswith("pip"):
                found.append([w for w in words[words.index("fastrcnn") + 1 :] if w != "..."])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_command_of_the_documentation_is_accepted() -> None:
    tried = 0
    for page in PAGES:
        for command, *arguments in commands(page):
            tried += 1
            if "--help" in arguments or command in ("--help", "COMMAND"):
                continue
            plain = [a for a in arguments if "=" in a and not a.startswith("hydra")]  # compare takes folders
            if "-m" in arguments:
                check_overrides(command, [a.partition(",")[0] for a in plain])
            else:
                compose(command, plain)
    assert tried > 30, "commands are no longer found"


def test_every_key_that_the_documentation_names_exists() -> None:
    keys = {key for schema in SCHEMAS.values() for key in leaves(schema)}
    for page in PAGES:
        for name in KEY.findall(page.read_text(encoding="utf-8")):
            if name.endswith((".py", ".yaml")):
                continue
            assert name in keys or any(k.startswith(name.rstrip(".") + ".") for k in keys), f"{page.name}: {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
