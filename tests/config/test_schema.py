"""The dataclasses: every option says what it means, keeps its bounds, and `tsla --help` costs nothing."""

import subprocess
import sys
from dataclasses import MISSING, Field, asdict, fields
from typing import Any, get_args

import pytest

import tsla
from tsla.config import GROUPS, Config, ConfigError, compose, members, parse
from tsla.config.options import did_you_mean

OPTIONS = {
    f"{group}={cls().name if cls().name else cls.__name__}.{f.name}": (group, cls, f)
    for group in GROUPS
    for cls in dict.fromkeys(members(group).values())
    for f in fields(cls)
}
DEFAULTS = asdict(compose([]))


def kind(f: Field[Any]) -> type:
    return (get_args(f.type) or (f.type,))[0]


def outside(f: Field[Any]) -> list[Any]:
    """Values of the right type just beyond the bounds of an option."""
    step = 1 if kind(f) is int else 1e-9
    low, above, high = (f.metadata[name] for name in ("low", "above", "high"))
    values = [] if low is None else [low - step]
    values += [] if above is None else [above, above - step]
    return values + ([] if high is None else [high + 1e-6 if kind(f) is float else high + 1])


def wrong_types(f: Field[Any]) -> list[Any]:
    values = {int: [1.5, "x", [1], {"a": 1}, True], float: ["x", [1.0], True], bool: [2, "maybe", []], str: [[], {}]}
    more = [] if type(None) in get_args(f.type) else [None]
    return (values[kind(f)] if f.type != list[str] else [1, [1], ""]) + more


def refused(group: str, cls: type, name: str, value: Any) -> list[str]:
    data = {**DEFAULTS, group: {"name": cls().name, name: value}}
    with pytest.raises(ConfigError) as caught:
        parse(data)
    return caught.value.problems


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_has_a_meaning_and_a_default_within_its_bounds(option):
    f = OPTIONS[option][2]
    assert len(f.metadata["help"]) > 5
    default = f.default if f.default is not MISSING else f.default_factory()
    assert type(None) in get_args(f.type) if default is None else type(default) in (kind(f), list)
    assert default not in outside(f) and (f.metadata["choices"] is None or default in ([], *f.metadata["choices"]))


@pytest.mark.parametrize("option", [o for o, (_, _, f) in OPTIONS.items() if f.name != "name"])
def test_wrong_types_are_refused(option):
    group, cls, f = OPTIONS[option]
    for value in wrong_types(f):
        assert any(problem.startswith(f"{group}.{f.name} (") for problem in refused(group, cls, f.name, value)), value


@pytest.mark.parametrize("option", [o for o, (_, _, f) in OPTIONS.items() if outside(f)])
def test_bounds_are_kept(option):
    group, cls, f = OPTIONS[option]
    for value in outside(f):
        (problem,) = refused(group, cls, f.name, value)
        assert problem.startswith(f"{group}.{f.name} ({kind(f)(value)}) must be ")


@pytest.mark.parametrize("option", [o for o, (_, _, f) in OPTIONS.items() if kind(f) in (int, float)])
def test_every_number_has_a_lower_bound(option):
    f = OPTIONS[option][2]
    assert f.metadata["low"] is not None or f.metadata["above"] is not None


@pytest.mark.parametrize("option", [o for o, (_, _, f) in OPTIONS.items() if kind(f) is float])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(option, value):
    group, cls, f = OPTIONS[option]
    assert refused(group, cls, f.name, value) == [f"{group}.{f.name} ({value}) must be finite"]


def test_two_configs_share_no_list():
    a, b = (compose([]) for _ in range(2))
    a.model.layers.append("taylor")
    assert b.model.layers == [] == members("model")["encoder"]().layers


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [("tayler", ["taylor", "softmax"], " (did you mean 'taylor'?)"), ("xyz", ["taylor"], ""), (3, [], "")],
)  # fmt: skip
def test_did_you_mean(name, known, expected):
    assert did_you_mean(name, known) == expected


HEAVY = {"torch", "lightning", "numpy", "datasets", "wandb", "sklearn", "matplotlib", "torchmetrics"}


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import tsla", HEAVY | {"hydra", "omegaconf", "rich"}),
        ("import tsla.config", HEAVY),
        ("from tsla.cli import main; main(['--help'])", HEAVY | {"hydra", "omegaconf", "rich"}),
        ("from tsla.cli import main; main(['--version'])", HEAVY | {"hydra", "omegaconf", "rich"}),
        ("from tsla.cli import main; main(['train', '--help'])", HEAVY),
        ("from tsla.cli import main; assert main(['train', 'mixer=tayler', 'model.dims=3']) == 2", HEAVY),
        ("from tsla.cli import main; assert main(['eval', 'nowhere']) == 2", HEAVY),
        ("import tsla.ops, tsla.mixers, tsla.models", HEAVY - {"torch", "numpy"} | {"hydra", "omegaconf", "rich"}),
    ],
)
def test_nothing_heavy_is_loaded(code, forbidden, tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('LOADED', *sorted(sys.modules))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = told.stdout.partition("LOADED")[2].split()
    assert "tsla" in loaded
    assert not forbidden & set(loaded)


def test_public_names_are_there():
    assert dir(tsla) == sorted(tsla.__all__) and "__version__" in tsla.__all__
    for name in tsla.__all__:
        assert getattr(tsla, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'TaylerAttention'"):
        _ = tsla.TaylerAttention


def test_config_fields_are_groups_or_options():
    for f in fields(Config):
        assert f.name in GROUPS or f.metadata["help"]
