"""Who may import whom: the table in DESIGN.md, checked on every import statement, those inside functions too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastrcnn
from fastrcnn.cli import COMMANDS

PACKAGE = Path(fastrcnn.__file__).parent
# From the ground up. What is on a floor imports from below, and what EXCEPTIONS names beside it; on the
# ground floor they may use each other.
FLOORS = (
    {"boxes", "structures", "settings", "errors", "names", "files", "safe_pickle", "progress", "memory", "parallel"}
    | {"ops"},
    {"model", "data", "proposals", "evaluation", "config"},
    {"weights", "inference", "visualize", "report", "audit", "deploy"},
    {"training"},
    {"build"},
    {"cli", "api"},
)
# (who imports, what) -> why
EXCEPTIONS = {
    ("proposals", "data"): "proposals are made from images, which data/images.py reads",
    ("deploy", "weights"): "what is exported for programs that detect is written as weights are",
    ("deploy", "inference"): "exported networks satisfy the interface that inference/ runs",
    ("inference", "visualize"): "what `detect` returns can draw itself",
    ("audit", "report"): "the page of `fastrcnn check` has the frame of all pages",
}


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
    """The file or folder right below the package that a module belongs to."""
    return name.split(".")[1] if "." in name else ""


def graph(whole: bool) -> dict[str, set[str]]:
    """Which modules, or if not `whole` which folders, import which. The package itself, of which modules take the
    version alone, is left out.
    """
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if "." in name and name != "fastrcnn.__main__":
            used = {i for i in imports(path, name) if i.startswith("fastrcnn.") and i in MODULES}
            own = name if whole else folder(name)
            found.setdefault(own, set()).update({i if whole else folder(i) for i in used} - {own})
    return found


def folder(name: str) -> str:
    """The folder of a module, dotted; of one right below the package itself."""
    parent = name.rpartition(".")[0]
    return name if parent == "fastrcnn" or MODULES[name].name == "__init__.py" else parent


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """What imports itself by way of others: strongly connected components of more than one."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in edges.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        return seen

    far = {name: reach(name) for name in edges}
    found = {tuple(sorted({a} | {b for b in far[a] if a in far.get(b, set())})) for a in edges if a in far[a]}
    return [list(c) for c in sorted(found)]


@pytest.mark.parametrize("name", [n for n in MODULES if "." in n and n != "fastrcnn.__main__"])
def test_a_module_imports_only_from_floors_below(name: str) -> None:
    own = group(name)
    floor = next((i for i, floor in enumerate(FLOORS) if own in floor), None)
    assert floor is not None, f"{name}: a new part of the library; give it a floor here and in CONTRIBUTING.md"
    allowed = set().union(*FLOORS[: max(floor, 1)]) | {own} | {b for a, b in EXCEPTIONS if a == own}
    for other in imports(MODULES[name], name):
        if other.split(".")[0] == "fastrcnn" and group(other):
            assert group(other) in allowed, f"{name} imports {other}"


def test_the_exceptions_are_in_use() -> None:
    used = {(group(a), group(b)) for a, others in graph(whole=True).items() for b in others}
    assert set(EXCEPTIONS) <= used


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert not circles(graph(whole=True))


def test_no_folder_imports_itself_by_way_of_others() -> None:
    assert not circles(graph(whole=False))


def test_a_folder_has_at_most_a_dozen_files() -> None:
    """Except the command line, which has one file per command."""
    for path in sorted({p.parent for p in MODULES.values()}):
        number = len([p for p in path.glob("*.py") if p.name != "__init__.py"])
        assert number <= (len(COMMANDS) if path.name == "cli" else 12), path


def test_only_build_and_the_command_line_read_the_configuration() -> None:
    readers = {name for name, path in MODULES.items() if "fastrcnn.config.schema" in imports(path, name)}
    assert {group(name) for name in readers} <= {"config", "build", "cli", "api"}
    assert "fastrcnn.build.machine" in readers  # the search finds something


def test_hydra_stays_in_the_configuration() -> None:
    for name, path in MODULES.items():
        if any(i.split(".")[0] in ("hydra", "omegaconf") for i in imports(path, name)):
            assert group(name) == "config", name


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
        "def f():\n    from fastrcnn import build\n    from ..data import images\n    import fastrcnn.cli.train\n"
    )
    assert imports(path, "fastrcnn.model.x") == {"fastrcnn.build", "fastrcnn.data.images", "fastrcnn.cli.train"}
