"""Who may import whom: the table in DESIGN.md, checked on every import statement, those inside functions too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastrcnn

PACKAGE = Path(fastrcnn.__file__).parent
METRICS = (
    "voc_ap",
    "coco_ap",
    "metric",
    "result_files",
    "recall",
    "diagnosis",
    "thresholds",
    "matches",
    "bootstrap",
    "sizes",
)

# Group -> what it may import beside itself. Everybody may use errors, progress, page and launch, which import nothing
# of ours, or no more than each other.
BASE = {"memory", "boxes", "structures", "ops", "errors", "progress", "launch", "processes", "distributed", "page"}
BASE |= {"names", "outputs"}
BELOW = {
    "errors": set(),
    "launch": set(),
    "progress": {"launch"},
    "processes": {"errors"},
    "outputs": {"errors"},
    "distributed": {"errors", "launch"},
    "page": set(),
    "names": set(),
    "boxes": set(),
    "memory": {"errors"},
    "structures": set(),
    "ops": set(),
    "model": BASE,
    "data": BASE,
    "metrics": BASE,
    "lettering": set(),
    "deploy": BASE | {"model", "export"},
    "inference": BASE | {"model", "deploy"},
    "visualize": BASE | {"model", "lettering"},
    "detector": BASE | {"model", "data", "deploy", "inference"},
    "explain_roi": BASE | {"model"},
    "export": BASE | {"model"},
    "evaluate": BASE | {"model", "metrics", "data", "inference", "visualize", "export"},
    "training": BASE | {"model", "metrics", "evaluate", "inference"},
    "config": {"errors"},
    "build": {"*"},
    "build_data": {"*"},
    "build_sets": {"*"},
    "cli": {"*"},
    "api": {"*"},
}
TOP = {"build", "build_data", "build_sets", "cli", "api"}


def module_name(path: Path) -> str:
    parts = ["fastrcnn", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if "configs" not in p.parts}


def imports(path: Path, name: str) -> set[str]:
    """Full names of all modules that a file imports, wherever the statement stands."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return found


def group(name: str) -> str:
    """The row of the table that a module belongs to."""
    _, *parts = name.split(".")
    if not parts:
        return ""
    if parts[0] == "evaluation":
        return "metrics" if len(parts) > 1 and parts[1] in METRICS else "evaluate" if len(parts) > 1 else "metrics"
    return parts[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_layers_below(name: str) -> None:
    own = group(name)
    if own in ("", "__main__"):
        allowed = {"cli"} if own else {"api"}  # what `fastrcnn.load` is
    else:
        assert own in BELOW, f"{name}: a new part of the library; give it a place in DESIGN.md and here"
        allowed = (
            set(BELOW) - {"cli", "api"}
            if own in ("build", "build_data", "build_sets")
            else set(BELOW)
            if own in ("cli", "api")
            else BELOW[own] | {own}
        )
    for other in imports(MODULES[name], name):
        if other.split(".")[0] == "fastrcnn" and group(other):
            assert group(other) in allowed, f"{name} imports {other}"


def test_only_build_and_the_command_line_read_the_configuration() -> None:
    readers = {name for name, path in MODULES.items() if "fastrcnn.config" in imports(path, name)}
    assert {group(name) for name in readers} <= TOP
    assert "fastrcnn.build" in readers  # the search finds something


def test_hydra_stays_in_the_command_line() -> None:
    for name, path in MODULES.items():
        if any(i.split(".")[0] in ("hydra", "omegaconf") for i in imports(path, name)):
            assert group(name) == "cli", name


def test_the_operators_can_be_lifted_out() -> None:
    """They import nothing of ours but each other: torch, torchvision, numpy and the standard library."""
    import sys

    for name, path in MODULES.items():
        if group(name) == "ops":
            for other in imports(path, name):
                top = other.split(".")[0]
                ours = other == "fastrcnn.ops" or other.startswith("fastrcnn.ops.")
                assert ours or top in {"torch", "torchvision", "numpy"} | sys.stdlib_module_names, f"{name}: {other}"


def test_no_module_is_named_after_nothing() -> None:
    assert not {n.rpartition(".")[2] for n in MODULES} & {"utils", "util", "misc", "helpers", "common", "tools"}


def test_the_library_never_imports_its_scripts_or_tests() -> None:
    for name, path in MODULES.items():
        assert not {i.split(".")[0] for i in imports(path, name)} & {"tests", "scripts"}, name


def test_imports_inside_functions_and_relative_ones_are_seen(tmp_path: Path) -> None:
    """The checker itself, on a file that breaks every rule."""
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from fastrcnn import build\n    from ..data import voc\n    import fastrcnn.cli.train\n"
    )
    assert imports(path, "fastrcnn.model.x") == {"fastrcnn.build", "fastrcnn.data.voc", "fastrcnn.cli.train"}
