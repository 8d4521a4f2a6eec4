"""Every option, its default and what it means, as text for a terminal."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from tsla.config.compose import group_choices
from tsla.config.distill import DistillOptions, students
from tsla.config.mixers import HeadsConfig
from tsla.config.options import spell
from tsla.config.schema import GROUPS, Config, members


def options_text() -> str:
    """All groups with their choices, then all options; those that all mixers with heads share stand once."""
    lines = ["tsla train [group=choice ...] [group.option=value ...] | resume=RUN_DIR", ""]
    lines += [f"{group + '=':12}{' | '.join(group_choices(group))}" for group in ("experiment", *GROUPS)]
    lines += ["", "Of every run.", *_options("", Config, {})]
    for group in GROUPS:
        classes = dict.fromkeys(members(group).values())
        shared: dict[str, Any] = {}
        if any(issubclass(cls, HeadsConfig) for cls in classes):
            lines += ["", str(HeadsConfig.__doc__), *_options(f"{group}.", HeadsConfig, {})]
            shared = _defaults(HeadsConfig)
        for cls in classes:
            names = ", ".join(f"{group}={name}" for name, member in members(group).items() if member is cls)
            told = shared if issubclass(cls, HeadsConfig) else {}
            lines += ["", f"{names}: {cls.__doc__}", *_options(f"{group}.", cls, told)]
    return "\n".join(lines)


def distill_text() -> str:
    """The options of `tsla distill` beside those of its mixer."""
    lines = ["tsla distill RUN_DIR mixer=choice [mixer.option=value ...] [option=value ...] | resume=RUN_DIR", ""]
    lines += [f"mixer=  {' | '.join(students())}", "        its heads, widths, biases and norms are the teacher's; "
              "for its own options see tsla train --help", ""]  # fmt: skip
    return "\n".join([*lines, *_options("", DistillOptions, {})])


def _options(path: str, cls: type, told: dict[str, Any]) -> Iterator[str]:
    """A line for each option of a dataclass, but for those told before with the same default."""
    defaults = _defaults(cls)
    for f in fields(cls):
        if f.metadata and f.name not in ("name", "experiment") and told.get(f.name, MISSING) != defaults[f.name]:
            choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
            yield f"  {path + f.name + '=' + spell(defaults[f.name]):36} {f.metadata['help']}{choices}"


def _defaults(cls: type) -> dict[str, Any]:
    return {f.name: [] if f.default is MISSING else f.default for f in fields(cls)}
