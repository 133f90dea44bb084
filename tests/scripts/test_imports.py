"""Scripts that no test runs still import names that exist."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_imports_from_the_package_exists(script: Path) -> None:
    imported = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fastrcnn"
        for alias in node.names
    ]
    for module, name in imported:
        found = importlib.import_module(module or "")
        if not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")  # raises unless the name is a module
