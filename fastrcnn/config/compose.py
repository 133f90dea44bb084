"""Arguments to a checked configuration: `key=value` and `group=name`, composed by Hydra from the YAML in configs/."""

from __future__ import annotations

import re
import types
from collections.abc import Collection
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from fastrcnn.config.schema import NUMBER, SCHEMAS, WORDS, check_bounds, filled, groups, leaves, typed
from fastrcnn.errors import UserError, nearest

ELEMENT = re.compile(r"""\s*('[^']*'|"[^"]*"|[^,]*?)\s*(?:,|$)""")  # of a list, quoted or not, with the comma
SCALARS = {
    int: re.compile(r"[+-]?[0-9]+"),
    float: NUMBER,
    bool: re.compile(r"true|false|yes|no|on|off", re.IGNORECASE),
}


def config_folder() -> Path:
    """Folder of the YAML files: `fastrcnn/configs` where the package is installed, `configs/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def options(group: str) -> list[str]:
    """Names that `group=NAME` takes."""
    folder = config_folder() / group
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def experiment_content(name: str) -> dict[str, Any]:
    """What the YAML file of an experiment says itself, beside the groups that it chooses."""
    return {key: value for key, value in group_file("experiment", name).items() if key != "defaults"}


def group_names(verb: str) -> list[str]:
    return [*groups(SCHEMAS[verb]), *(["recipe", "experiment"] if verb == "train" else [])]


def check_overrides(verb: str, arguments: list[str]) -> list[str]:
    """The arguments as overrides for Hydra, values that are text quoted.

    Raises UserError for whatever is not `key=value` with a key of the verb, with the nearest one there is.
    """
    known = leaves(SCHEMAS[verb])
    choices = group_names(verb)
    overrides = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            guess = f" It lacks a value: {argument}=..." if argument in {*known, *choices} else ""
            raise UserError(
                f"'{argument}' is not of the form key=value.{guess or nearest(argument, [*known, *choices])} "
                f"`fastrcnn {verb} --help` lists the keys."
            )
        if name in choices:
            present = options(name)
            if value not in present:
                raise UserError(
                    f"{name}={value}: there is no such {name}.{nearest(value, present)} "
                    f"There are: {', '.join(present)}."
                )
            overrides.append(argument)
        elif name in known:
            overrides.append(f"{name}={_for_hydra(name, value, known[name][0])}")
        else:
            last = {k.rpartition(".")[2]: k for k in known}  # `lr` for solver.lr
            guess = f" Did you mean '{last[name]}'?" if name in last else nearest(name, [*known, *choices])
            raise UserError(f"unknown key '{name}'.{guess} `fastrcnn {verb} --help` lists the keys.")
    return overrides


def _for_hydra(name: str, value: str, hint: Any) -> str:
    """A value for the key `name` of type `hint`, in Hydra's grammar. Raises UserError for one of another type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value in ("null", "") and type(None) in kinds:
        return "null"
    kind = kinds[0]
    if get_origin(kind) is not list:
        return _scalar(name, value, kind)
    if not (value.startswith("[") and value.endswith("]")):  # a list of one
        if get_args(kind)[0] is not str and "," in value:
            raise UserError(f"{name}={value}: should be a list, as {name}=[{value}].")
        return f"[{_scalar(name, value, get_args(kind)[0])}]"
    return f"[{', '.join(_scalar(name, e, get_args(kind)[0]) for e in _elements(value[1:-1].strip()))}]"


def _scalar(name: str, value: str, kind: type) -> str:
    """A single value; text is quoted, so that any path or name just works."""
    if kind is str:
        return quoted(value)
    if not SCALARS[kind].fullmatch(value):
        raise UserError(f"{name}: should be {WORDS[kind]}, is '{value}'.")
    return value


def _elements(inside: str) -> list[str]:
    """The elements of a list of text, as they stand between its brackets."""
    found, at = [], 0
    while at < len(inside):
        match = ELEMENT.match(inside, at)
        assert match is not None  # the last alternative matches anything up to a comma
        found.append(match[1])
        at = match.end()
    return found


def quoted(value: str) -> str:
    """Text in Hydra's quotes, whatever it is; a pair of quotes that is around it already does not belong to it."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and value[0] not in value[1:-1]:
        value = value[1:-1]
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # backslashes count only before a quote
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def compose(verb: str, arguments: list[str], base: dict[str, Any] | None = None) -> Any:
    """The configuration object (an instance of SCHEMAS[verb]) for the arguments.

    base: configuration of an earlier run, plain data of which nothing is resolved; its groups take the place of the
        defaults, and the arguments go on top.
    Raises UserError for unknown keys, unknown names and values of the wrong type.
    """
    overrides = check_overrides(verb, arguments)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=f"{verb}_schema", node=SCHEMAS[verb])
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = OmegaConf.to_object(hydra_compose(verb, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and cause.__cause__ is not cause:
            cause = cause.__cause__
        text = str(cause).split("\n    full_key:")
        where = text[1].strip().splitlines()[0] + ": " if len(text) > 1 else ""
        raise UserError(f"{where}{text[0].strip()}") from None
    if base:
        inherit(config, base, [o.partition("=")[0] for o in overrides])
    check_bounds(config)
    return config


def inherit(config: Any, base: dict[str, Any], given: Collection[str]) -> None:
    """Puts the values of an earlier run into a configuration, but for the groups and keys that are `given`.

    base: see compose. Raises UserError for values of the wrong type or out of bounds.
    """
    schema = type(config)
    known = leaves(schema)
    said = {dotted: attrgetter(dotted)(config) for dotted in given if dotted in known}
    for name, nested in groups(schema).items():
        if name in base and name not in given:
            setattr(config, name, filled(nested, base[name], f"{name}."))
    for dotted, (hint, _, _) in known.items():
        if "." not in dotted and dotted in base:
            setattr(config, dotted, typed(dotted, base[dotted], hint))
    for dotted, value in said.items():
        group, _, last = dotted.rpartition(".")
        setattr(attrgetter(group)(config) if group else config, last, value)
    check_bounds(config)


def to_yaml(config: Any) -> str:
    """The configuration as YAML."""
    import yaml

    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain containers, for a checkpoint."""
    return asdict(config)


def defaults(verb: str, experiment: str | None = None) -> dict[str, Any]:
    """The value of every key where the command line says nothing, or this experiment alone: as Hydra would compose it
    from the YAML files, which are few enough to be read without it."""

    def group(name: str, choice: str) -> dict[str, Any]:
        content = group_file(name, choice)
        below: dict[str, Any] = {}
        for base in content.pop("defaults", []):
            below |= group(name, base) if base != "_self_" else {}
        return below | content

    def chosen(content: dict[str, Any]) -> dict[str, str]:
        entries = [e for e in content.get("defaults", []) if isinstance(e, dict)]
        return {k.removeprefix("override ").removeprefix("/"): v for e in entries for k, v in e.items() if v}

    def flat(content: dict[str, Any], head: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in content.items():
            found |= flat(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
        return found

    choice = chosen(group_file("", verb))
    own = group_file("experiment", experiment) if experiment else {}
    said = chosen(own)
    if recipe := said.pop("recipe", choice.pop("recipe", None)):
        choice |= chosen(group_file("recipe", recipe))
    values = {name: default for name, (_, default, _) in leaves(SCHEMAS[verb]).items()}
    for name, option in (choice | said).items():
        values |= flat(group(name, option), f"{name}.")
    return values | flat({key: value for key, value in own.items() if key != "defaults"})


def group_file(group: str, name: str) -> dict[str, Any]:
    """The content of a YAML file of a group."""
    import yaml

    return yaml.safe_load((config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}


def help_text(verb: str, what: str, examples: list[str]) -> str:
    """What `fastrcnn VERB --help` prints."""
    keys = "train" if verb == "demo" else verb  # the demo is a training, and takes the same keys
    lines = [f"fastrcnn {verb}: {what}", "", *(f"  {e}" for e in examples), ""]
    for group in group_names(keys):
        lines.append(f"{group}=  {' | '.join(options(group))}")
    lines.append("")
    section = None
    values = defaults(keys, "demo" if verb == "demo" else None)
    for name, (hint, _, text) in leaves(SCHEMAS[keys]).items():
        head = name.rpartition(".")[0]
        if head != section:
            section = head
            lines.append(f"{head or 'keys'}")
        lines.append(f"  {name:<30} {type_name(hint)}, {as_written(values[name])}\n  {'':<30} {text}")
    lines += ["", "-q, --quiet says only what goes wrong and what comes out; -v, --verbose says more."]
    return "\n".join(lines)


def type_name(hint: Any) -> str:
    """The type of a key, as people read it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace(" | None", " or null")


def as_written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
