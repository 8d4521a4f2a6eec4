"""An option of a config dataclass: its default, what it means, and what it may be."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import field, fields
from typing import Any, get_args


class ConfigError(ValueError):
    """Every problem of a configuration, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field. `choices` of a list apply to its items; `low` and `high` are inclusive, `above` is not."""
    metadata = {"help": help, "choices": choices, "low": low, "above": above, "high": high}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def union_members(union: Any) -> dict[str, Any]:
    """The dataclasses of a union, or the one there is, by the names each goes by."""
    found: dict[str, Any] = {}
    for cls in get_args(union) or (union,):
        (name,) = (f for f in fields(cls) if f.name == "name")
        found.update(dict.fromkeys(name.metadata["choices"], cls))
    return found


def check_options(path: str, config: object) -> list[str]:
    """What is wrong with the values of one dataclass, each looked at by itself."""
    problems = []
    for f in fields(config):  # type: ignore[arg-type]
        value, rule = getattr(config, f.name), f.metadata
        if not rule:  # a group, looked at by itself
            continue
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if rule["choices"] is not None and item not in rule["choices"]:
                problems.append(f"{path}{f.name} ({item!r}) must be one of {', '.join(rule['choices'])}"
                                + did_you_mean(item, rule["choices"]))  # fmt: skip
            if isinstance(item, float) and not math.isfinite(item):
                problems.append(f"{path}{f.name} ({item}) must be finite")
                continue
            for bound, sign, fine in (
                (rule["low"], "at least", lambda x, y: x >= y),
                (rule["above"], "above", lambda x, y: x > y),
                (rule["high"], "at most", lambda x, y: x <= y),
            ):
                if bound is not None and not fine(item, bound):
                    problems.append(f"{path}{f.name} ({item}) must be {sign} {bound}")
    return problems


def spell(value: Any) -> str:
    """A value as it is shown: without the quotes that typing it may need."""
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_argument(key: str, value: Any) -> str:
    """``key=value`` as it is typed, before the shell's own quotes: Hydra wants some around unusual texts."""
    if isinstance(value, list):
        return f"{key}=[{','.join(map(_quoted, value))}]"
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    if not isinstance(value, str) or _PLAIN.fullmatch(value):
        return spell(value)
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


# Texts that are read back as they stand: begun by a letter or a sign of a path, and no word that means something else.
_PLAIN = re.compile(r"(?!null$|true$|false$|nan$|inf$)(?=.*[A-Za-z_])[A-Za-z_./~-][\w./~-]*", re.ASCII | re.IGNORECASE)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name nearest to a wrong one, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
