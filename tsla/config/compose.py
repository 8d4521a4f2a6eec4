"""From `key=value` arguments, or from a run's config.yaml, to one checked `Config`; all problems are told at once.

Hydra picks and merges the short YAML files of `configs/`; the dataclasses give every default and decide what exists.
"""

import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import BooleanNode, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import ValidationError

from tsla.config.options import ConfigError, as_argument, check_options, did_you_mean, spell
from tsla.config.schema import GROUPS, Config, members
from tsla.config.validate import find_problems


def config_root() -> Path:
    """The folder of YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())


def group_choices(group: str) -> list[str]:
    """The names a group can be set to, such as ``mixer=taylor``."""
    return sorted(path.stem for path in (config_root() / group).glob("*.yaml"))


def compose(arguments: Sequence[str]) -> Config:
    """The config that `key=value` arguments give.

    Raises:
        ConfigError: with every problem found, each naming the argument and what is allowed.
    """
    choices, values, problems = _sort_arguments(arguments)
    data = _merged(choices)
    for key, value in values:
        *parents, leaf = key.split(".")
        node: Any = data
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[leaf] = value
        else:
            problems.append(f"{key} is not an option: {'.'.join(parents)} has no parts")
    return _checked(data, problems)


def with_mixer(config: Config, arguments: Sequence[str], kept: Sequence[str]) -> Config:
    """`config` with another mixer, or with other options of its own: `mixer=name` and `mixer.option=value`.

    Args:
        config: of a run.
        arguments: of the mixer alone.
        kept: options of the config's own mixer that the other one takes over, and no argument may set.

    Raises:
        ConfigError: with every problem found.
    """
    choices, values, problems = _sort_arguments(arguments)
    name = choices.get("mixer", config.mixer.name)
    data = asdict(config)
    own = {f.name for f in fields(members("mixer")[name])}
    data["mixer"] = {"name": name, **{key: data["mixer"][key] for key in kept if key in own}}
    for key, value in values:
        option = key.removeprefix("mixer.")
        if option in kept:
            problems.append(f"{key} is as the run has it ({spell(getattr(config.mixer, option))}): leave it out")
        else:
            data["mixer"][option] = value
    return _checked(data, problems)


def with_task(config: Config, arguments: Sequence[str]) -> Config:
    """`config` with other options of its task, ``task.option=value``, to score rows: in what order is left out.

    Raises:
        ConfigError: with every problem found.
    """
    choices, values, problems = _sort_arguments(arguments)
    data = asdict(config)
    problems += [f"{name}={choice} is not an option of the run's task" for name, choice in choices.items()]
    for key, value in values:
        group, _, option = key.partition(".")
        if group != "task" or option == "name":
            problems.append(f"{key} cannot be changed: only other options of task={config.task.name} can")
        else:
            data["task"][option] = value
    data["trainer"] |= {"curriculum": "none", "curriculum_steps": None}  # of training rows, which may be others now
    return _checked(data, problems)


def _merged(choices: Mapping[str, str]) -> dict[str, Any]:
    """What the YAML files say of these choices of groups."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_root())):
        composed = hydra_compose("train", [f"{group}={name}" for group, name in choices.items()], True)
    data: dict[str, Any] = OmegaConf.to_container(composed, resolve=False)  # type: ignore[assignment]
    return {"experiment": data.pop("hydra")["runtime"]["choices"]["experiment"], **data}


def command_of(config: Config) -> str:
    """The shortest `tsla train ...` that composes to `config`, but for where the run goes and what it has frozen."""
    config = _thawed(config)
    choices = {"experiment": config.experiment}
    usual = _merged(choices)
    choices |= {group: getattr(config, group).name for group in GROUPS
                if getattr(config, group).name != usual[group]["name"]}  # fmt: skip
    merged = _merged(choices)
    words = [f"{group}={name}" for group, name in choices.items()]
    for group in GROUPS:
        own, known = getattr(config, group), parse_group(group, merged[group], [])
        words += [as_argument(f"{group}.{f.name}", getattr(own, f.name)) for f in fields(own)
                  if getattr(own, f.name) != getattr(known, f.name)]  # fmt: skip
    for f in fields(Config):
        if f.name in ("seed", "init_from") and getattr(config, f.name) != f.default:
            words.append(as_argument(f.name, getattr(config, f.name)))
    return shlex.join(["tsla", "train", *words])


def differing(a: Config, b: Config) -> list[str]:
    """The options in which two configs differ as they were asked for, run_dir aside, as ``key: x here, y there``."""
    here, there = (_flat(asdict(_thawed(config))) for config in (a, b))
    keys = sorted((here.keys() | there.keys()) - {"run_dir"})
    return [f"{key}: {here.get(key)} here, {there.get(key)} there" for key in keys if here.get(key) != there.get(key)]


def freeze(config: Config, values: Mapping[str, float]) -> Config:
    """`config` with numbers for options of its mixer that are null, by their names, and a note that they were."""
    names = [f"mixer.{name}" for name in values]
    mixer: Any = config.mixer
    return replace(config, mixer=replace(mixer, **values), frozen=[*config.frozen, *names])


def _thawed(config: Config) -> Config:
    """`config` as it was asked for: what a run has frozen is null again."""
    mixer: Any = config.mixer
    for name in config.frozen:
        mixer = replace(mixer, **{name.removeprefix("mixer."): None})
    return replace(config, mixer=mixer, frozen=[])


def _flat(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def parse(data: Mapping[str, Any]) -> Config:
    """A `Config` from plain nested data, such as a config.yaml; nothing in it is run.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range, impossible combinations: all of them.
    """
    return _checked(data, [])


def to_yaml(config: Config) -> str:
    """The whole config as YAML, which `parse` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def load_yaml(text: str) -> Any:
    """Plain data from YAML. Aliases, by which a few lines can mean gigabytes, are refused.

    Raises:
        ValueError and all that a parser raises: not such a text.
    """
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it has an alias (*name)")
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def read(path: Path) -> Config:
    """The config of a run's config.yaml.

    Raises:
        ConfigError: a file that is not such a config, with its path.
    """
    try:
        data = load_yaml(path.read_text())
    except Exception as error:  # any parser error means the same to the reader: this is not a config
        raise ConfigError([f"{path} is not YAML: {error}"]) from None
    if not isinstance(data, dict):
        raise ConfigError([f"{path} must hold a mapping of options, got {type(data).__name__}"])
    try:  # what runs before had no need of is what they did: no pretraining, nothing frozen
        config = parse({"pretrain": {"name": "none"}} | {str(key): value for key, value in data.items()})
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None
    if missing := [f.name for f in fields(Config) if f.name not in {"pretrain", "frozen", *data}]:
        raise ConfigError([f"{path} lacks {', '.join(missing)}: it is cut off"])  # defaults would make it another run
    return config


def _checked(data: Mapping[str, Any], problems: list[str]) -> Config:
    """The config of nested data; raises those problems and all that it has itself."""
    problems += _unknown("", data, [f.name for f in fields(Config)])
    parts: dict[str, Any] = {}
    for f in fields(Config):
        if f.name in GROUPS:
            parts[f.name] = parse_group(f.name, data.get(f.name), problems)
        elif f.name in data:
            parts[f.name] = typed(f.name, f.type, data[f.name], problems)
    config = Config(**parts)
    problems += check_options("", config)
    if problems := problems or find_problems(config):
        raise ConfigError(problems)
    return config


def _sort_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, Any]], list[str]]:
    """Group choices, value overrides and problems of the arguments; of the keys, only their first parts are judged.

    A number stays the text it was typed as, since its option may be a text: a folder can be called 1e5.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    choices: dict[str, str] = {}
    values: list[tuple[str, Any]] = []
    problems: list[str] = []
    unknown: set[str] = set()  # groups whose choice is wrong: their options cannot be judged
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or "@" in name:
            problems.append(f"argument {argument!r} must have the form key=value")
            continue
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            problems.append(f"argument {argument!r} cannot be read: {str(error).splitlines()[0]} (a text with special "
                            f"characters needs quotes that the shell leaves alone: {name}=\"'...'\")")  # fmt: skip
            continue
        key, value = override.key_or_group, override.value()
        if isinstance(value, bool | int | float):
            value = text.strip()
        if override.is_delete() or override.is_sweep_override():
            problems.append(f"argument {argument!r}: an option can be set to one value, not removed or swept")
        elif key == "experiment" or (key in GROUPS and not isinstance(value, Mapping)):
            names = group_choices(key)
            if value in names:
                choices[key] = str(value)
            else:
                unknown.add(key)
                problems.append(f"{key} ({value!r}) must be one of {', '.join(names)}" + did_you_mean(value, names))
        else:
            values.append((key, value))
    return choices, [(key, value) for key, value in values if key.split(".")[0] not in unknown], problems


def parse_group(group: str, data: Any, problems: list[str]) -> Any:
    """The dataclass of one group, or None with its problems noted."""
    known = members(group)
    if not isinstance(data, Mapping):
        problems.append(f"{group} must be a mapping of options with a name, got {data!r}")
        return None
    name = data.get("name")
    if not isinstance(name, str) or name not in known:
        problems.append(f"{group}.name ({name!r}) must be one of {', '.join(known)}" + did_you_mean(name, known))
        return None
    cls = known[name]
    problems += _unknown(f"{group}.", data, [f.name for f in fields(cls)], f" of {group}={name}")
    kept = {f.name: typed(f"{group}.{f.name}", f.type, data[f.name], problems) for f in fields(cls) if f.name in data}
    made = cls(**kept)
    problems += check_options(f"{group}.", made)
    return made


def _unknown(path: str, data: Mapping[str, Any], known: list[str], of: str = "") -> list[str]:
    return [f"{path}{key} is not an option{of}" + _suggest(path, key, known) for key in data if key not in known]


def _suggest(path: str, key: str, known: list[str]) -> str:
    """The nearest option of the same group; for a key without a group, also the groups that have such an option."""
    if not path:
        homes = {f"{group}.{f.name}" for group in GROUPS for cls in members(group).values() for f in fields(cls)}
        if fitting := sorted(home for home in homes if home.endswith(f".{key}")):
            return f" (did you mean {' or '.join(repr(home) for home in fitting)}?)"
    return did_you_mean(key, known)


def typed(path: str, kind: Any, value: Any, problems: list[str]) -> Any:
    """`value` as the type of its field, by OmegaConf's rules (which refuse 1.5 for an int); a wrong one is noted."""
    if kind == list[str]:
        plain = isinstance(value, str) and value and "$" not in value and "?" not in value
        names = [value] if plain else value  # one name needs no brackets
        if isinstance(names, list) and all(isinstance(item, str) for item in names):
            return names
        problems.append(f"{path} ({value!r}) must be a name, or a list of names such as [{path.split('.')[-1]},other]")
        return None
    (base, *rest) = get_args(kind) or (kind,)
    if isinstance(value, str) and ("${" in value or value == "???"):
        problems.append(f"{path} ({value!r}) must be a plain value: ${{...}} and ??? are not read")
        return None
    node, spelled = _NODES[base]
    try:
        if base is bool and str(value).lower() not in ("true", "false"):  # OmegaConf takes any number, and more words
            raise ValidationError
        return node(value=value, is_optional=bool(rest))._value()
    except ValidationError:
        problems.append(f"{path} ({value!r}) must be {spelled}" + (" or null" if rest else ""))
        return None


_NODES: dict[type, tuple[Any, str]] = {
    bool: (BooleanNode, "true or false"),
    int: (IntegerNode, "a whole number"),
    float: (FloatNode, "a number"),
    str: (StringNode, "a text"),
}
