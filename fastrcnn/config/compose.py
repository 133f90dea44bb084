"""Compose a checked configuration from `key=value` and `group=name` arguments and the YAML files, with Hydra."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from fastrcnn.config.other_names import REMARKS, our_name
from fastrcnn.config.schema import SCHEMAS, groups, leaves
from fastrcnn.config.values import as_written, fill, for_hydra, type_name
from fastrcnn.errors import UserError, nearest


def config_folder() -> Path:
    """Return the folder of the YAML files: `fastrcnn/configs` if the package is installed, `configs/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def options(group: str) -> list[str]:
    """Return the names that `group=NAME` accepts, in alphabetical order."""
    folder = config_folder() / group
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def experiment_content(name: str) -> dict[str, Any]:
    """Return the keys and values in the YAML file of an experiment, without the groups that it selects."""
    import yaml

    content = yaml.safe_load((config_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "defaults"}


def group_names(verb: str) -> list[str]:
    """Return the names of the groups of the command `verb` for which `group=NAME` selects a YAML file."""
    return [*groups(SCHEMAS[verb]), *(["recipe", "experiment"] if verb == "train" else [])]


def check_overrides(verb: str, arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra overrides, with text values quoted.

    Raises UserError for an argument that is not `key=value`, for a key, group or option that the command does not have,
    and for a value of the wrong type. If a known name is similar, the message suggests it.
    """
    known = leaves(SCHEMAS[verb])
    choices = group_names(verb)
    overrides = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        plain = name.lstrip("-").replace("-", "_")
        ours = plain if name.startswith("-") and plain in known else our_name(name, known)
        if ours is not None and name not in known and (name not in choices or value not in options(name)):
            raise UserError(translation(name, ours, known[ours][1]))
        if not equals:
            guess = f" The value is missing: {argument}=..." if argument in {*known, *choices} else ""
            raise UserError(
                f"'{argument}' is not of the form key=value.{guess or nearest(argument, [*known, *choices])} "
                f"`fastrcnn {verb} --help all` lists all keys."
            )
        if name in choices:
            present = options(name)
            if value not in present:
                raise UserError(
                    f"{name}={value}: the group '{name}' has no option '{value}'.{nearest(value, present)} "
                    f"Available: {', '.join(present)}."
                )
            overrides.append(argument)
        elif name in known:
            overrides.append(f"{name}={for_hydra(name, value, known[name][0])}")
        else:
            last = {k.rpartition(".")[2]: k for k in known}  # `lr` for solver.lr
            guess = f" Did you mean '{last[name]}'?" if name in last else nearest(name, [*known, *choices])
            raise UserError(f"unknown key '{name}'.{guess} `fastrcnn {verb} --help all` lists all keys.")
    return overrides


def translation(name: str, ours: str, meaning: str) -> str:
    """Return the error message for another program's key `name`. ours, meaning: this program's key and its help."""
    remark = f" {REMARKS[ours]}." if ours in REMARKS else ""
    return f"unknown key '{name}'. Use {ours}=... instead: {meaning.removeprefix('required: ')}.{remark}"


def compose(verb: str, arguments: list[str], base: dict[str, Any] | None = None) -> Any:
    """Return the configuration (an instance of SCHEMAS[verb]) for the arguments.

    base: the configuration of an earlier run as nested dicts. `${...}` in it is not resolved. Its groups replace the
        defaults, and the arguments override both.
    Raises UserError for unknown keys and options, and for invalid values.
    """
    overrides = check_overrides(verb, arguments)
    config = fill(SCHEMAS[verb], _load_by_hydra(verb, overrides))
    if base:
        inherit(config, base, [override.partition("=")[0] for override in overrides])
    return config


def inherit(config: Any, base: dict[str, Any], given: Collection[str]) -> None:
    """Copy the values of an earlier run into a configuration, except for the groups and keys in `given`.

    base: the configuration of that run as nested dicts. Its data.proposal_cache is only read: new stores are written to
    the folder in `config`. Raises UserError for invalid values.
    """
    schema, own = type(config), vars(config)
    inherited = fill(schema, asdict(config) | {k: v for k, v in base.items() if k in own and k not in given})
    for dotted in set(given) & leaves(schema).keys():
        group, _, last = dotted.rpartition(".")
        setattr(attrgetter(group)(inherited) if group else inherited, last, attrgetter(dotted)(config))
    if "data" in base and "data" in own and not {"data", "data.proposal_cache"} & set(given):
        inherited.data.own_cache = config.data.proposal_cache
    own.update(vars(inherited))


def _load_by_hydra(verb: str, overrides: list[str]) -> dict[str, Any]:
    """Compose the YAML files and the overrides with Hydra, and return plain data whose types are not checked yet.

    This calls Hydra's loader directly. hydra.initialize and hydra.compose would use GlobalHydra, which exists once per
    process and can belong to the caller.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # The first line of `defaults` in the command's YAML file refers to this node. It is plain data because OmegaConf
    # does not support `Literal`; `fill` checks the types.
    ConfigStore.instance().store(name=f"fastrcnn_{verb}", node=asdict(SCHEMAS[verb]()))
    loader = ConfigLoaderImpl(create_config_search_path(str(config_folder())))
    try:
        config = loader.load_configuration(verb, overrides, RunMode.RUN, from_shell=False)
    except (HydraException, OmegaConfBaseException) as error:
        what = f"{error}: {error.__cause__ or ''}".splitlines()[0]
        raise UserError(
            f"{what}. A value must not contain ${{ without a closing }}, because Hydra reads it as an interpolation."
        ) from None
    content: Any = OmegaConf.to_container(config)
    return {key: value for key, value in content.items() if key != "hydra"}


def help_text(
    verb: str, what: str, examples: list[str], arguments: list[str], everyday: Collection[str] | None = None
) -> str:
    """Return the help text of a command, with its keys and the values that they have with these arguments.

    what: a description of the command. everyday: the keys to show. If it is None, these are data.root, data.test and
        the keys that are in no group. If `arguments` contain `all`, all keys are shown.
    """
    keys = "train" if verb == "demo" else verb  # `demo` accepts the same keys as `train`
    lines = [f"fastrcnn {verb}: {what}", "", *(f"  {e}" for e in examples), ""]
    lines += [f"{group}=  {' | '.join(options(group))}" for group in group_names(keys)]
    lines.append("")
    section = None
    known, given = leaves(SCHEMAS[keys]), [a for a in arguments if a != "all"]
    config = compose(keys, [*(["experiment=demo"] if verb == "demo" else []), *given])
    chosen = everyday or [name for name in known if "." not in name or name in ("data.root", "data.test")]
    shown = known if "all" in arguments else {name: known[name] for name in known if name in chosen}
    for name, (hint, text) in shown.items():
        head = name.rpartition(".")[0]
        if head != section:
            section = head
            lines.append(f"{head or 'keys'}")
        value = as_written(attrgetter(name)(config))
        lines.append(f"  {name:<30} {type_name(hint)} (value: {value})\n  {'':<30} {text}")
    lines.append("")
    if rest := len(known) - len(shown):
        command = " ".join(["fastrcnn", verb, *given, "--help all"])
        lines.append(
            "These are the most commonly used keys, with their values for this command. "
            f"For the other {rest} keys: {command}"
        )
    lines.append("-q, --quiet: print only results, warnings and errors; -v, --verbose: print more.")
    return "\n".join(lines)
