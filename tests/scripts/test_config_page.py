"""The page of all keys is as the script would write it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_all_keys_is_up_to_date() -> None:
    script = ROOT / "scripts" / "config_page.py"
    status = subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT, check=False).returncode
    assert status == 0, "run python scripts/config_page.py"


def test_the_page_has_every_group_file() -> None:
    page = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "configs").glob("*/**/*.yaml"):
        name = path.relative_to(ROOT / "configs").with_suffix("")
        assert f"`{name.parts[0]}={'/'.join(name.parts[1:])}`" in page
