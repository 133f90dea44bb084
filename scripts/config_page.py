"""Writes configs/README.md, the page of all keys and groups, from the schema and the YAML files.

    python scripts/config_page.py [--check]

`--check` writes nothing; its status is 1 where the page is not as it would be written.
"""

from __future__ import annotations

import argparse
import sys
from operator import attrgetter

from fastrcnn.cli import COMMANDS
from fastrcnn.config.compose import compose, config_folder, options
from fastrcnn.config.schema import SCHEMAS, groups, leaves
from fastrcnn.config.values import as_written, type_name

HEAD = """# All keys

Written by `scripts/config_page.py`; a test keeps it as it is. `fastrcnn COMMAND --help` prints the keys of one command.

A key is given as `key=value`, a list as `key=[a,b]`, nothing as `key=null`. A group's file is chosen by `group=NAME`; a
recipe (`recipe=NAME`, [what they set](recipe/README.md)) chooses several, and an experiment is a recipe, a data set and
what they need beside. What stands later goes before: group, then experiment, then key. A resumed run, and commands
that read a checkpoint, begin with the run's own configuration in place of the defaults.

The defaults are those of `fastrcnn train` where it has the group, with its recipe `modern`.
"""


def about(group: str, name: str) -> str:
    """The comment that a group's file opens with, without its command."""
    lines = (config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    said = []
    for line in lines:
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if not text.startswith(("@package", "fastrcnn ")):
            said.append(text)
    return " ".join(said)


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def keys(schema: type, config: object, head: str = "") -> str:
    """The keys of a schema but for those of groups that have a section; head: of the names of a group's keys."""
    rows = []
    for name, (hint, text) in leaves(schema).items():
        if head or name.partition(".")[0] not in groups(schema):
            written = as_written(attrgetter(name)(config)).replace(",", ", ")
            rows.append((f"`{head}{name}`", escaped(type_name(hint)), f"`{written}`", escaped(text)))
    return table(rows, ("key", "type", "default", "meaning")) + "\n" if rows else ""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    train = groups(SCHEMAS["train"])
    config = compose("train", [])
    for group in [*train, "recipe", "experiment"]:
        parts.append(f"## {group}\n")
        parts.append(
            table([(f"`{group}={name}`", escaped(about(group, name))) for name in options(group)], ("", "")) + "\n"
        )
        if group in train:
            parts.append(keys(train[group], getattr(config, group), f"{group}."))
    for command, schema in SCHEMAS.items():
        own = groups(schema)
        line = COMMANDS[command][0]
        parts.append(f"## fastrcnn {command}\n\n{line[0].upper()}{line[1:]}.\n")
        if own:
            parts.append(f"Groups: {', '.join(f'`{name}`' for name in own)}.\n")
        if rows := keys(schema, compose(command, [])):
            parts.append(rows)
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    path = config_folder() / "README.md"
    if options.check:
        return int(not path.is_file() or path.read_text(encoding="utf-8") != page())
    path.write_text(page(), encoding="utf-8")
    print(f"written to {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
