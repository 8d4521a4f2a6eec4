"""A run's config.yaml: written, read back unchanged, and nothing but data whoever wrote it."""

import os
import shlex
from dataclasses import asdict, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tsla.config import ConfigError, compose, group_choices, members, parse, read, to_yaml
from tsla.config.compose import command_of, differing
from tsla.config.grid import read_suite
from tsla.config.schema import AdamWConfig
from tsla.evaluation.runs import find_runs

PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1)


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("mixer", group_choices("mixer"))
@pytest.mark.parametrize("name", group_choices("experiment"))
def test_what_was_written_is_read(tmp_path, name, mixer):
    needed = ["task.path=x"] if name == "files" else ["task.path=x", "model.pool=mean"] if name[:4] == "lra_" else []
    if len(able := members("mixer")[mixer].directions) == 1:
        needed += [f"model.causal={str('causal' in able).lower()}"]
        needed += ["task=digits"] if name.startswith("mqar") and "causal" not in able else []
    config = compose([f"experiment={name}", f"mixer={mixer}", "model.dropout=1e-7", "trainer.max_minutes=0.1", *needed])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read(tmp_path / "config.yaml") == config == parse(asdict(config))


@pytest.mark.parametrize("cut", ["experiment:", "seed:", "run_dir:"])
def test_a_config_that_is_cut_off_is_not_filled_up_with_defaults(tmp_path, cut):
    text = to_yaml(compose(["experiment=digits", "seed=3"]))
    (tmp_path / "config.yaml").write_text(text[: text.index(f"\n{cut}") + 1])
    with pytest.raises(ConfigError, match=r"lacks .*: it is cut off"):
        read(tmp_path / "config.yaml")


def test_a_config_from_before_there_was_pretraining(tmp_path):
    config = compose(["experiment=digits"])
    text = to_yaml(config)
    assert "pretrain:\n  name: none\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("pretrain:\n  name: none\n", ""))
    assert read(tmp_path / "config.yaml") == config


COMMANDS = [
    [], ["experiment=digits"], ["experiment=digits", "mixer=softmax", "seed=3"], ["task=digits"],
    ["experiment=listops", "mixer=window", "mixer.window=3", "model.layers=[window,taylor]", "optim.lr=1e-4"],
    ["experiment=mqar", "task.train=[64/4/10,64/2/10]", "task.filler=false", "mixer.head_dim=null"],
    ["model=based", "model.depth=10"], ["experiment=digits", "model=transnormer", "model.norm=layer"],
    ["logger=wandb", "logger.project='null'", "init_from='1e5'"], ["experiment=digits", "init_from=''"],
    ["experiment=files", "task.path='a b, (c)/läuft'", "task.label=['b c']", "init_from='x y'"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", [*COMMANDS, ["logger=wandb", "logger.project='it\\'s'"]], ids=str)
def test_the_command_of_a_config_composes_to_it(arguments):
    config = compose([*arguments, "run_dir=somewhere"])
    words = shlex.split(command_of(config))
    assert words[:2] == ["tsla", "train"] and not any("run_dir" in word for word in words)
    assert differing(compose(words[2:]), config) == []
    assert len(words) <= 3 + len(arguments)


@pytest.mark.parametrize("logger", group_choices("logger"))
def test_every_logger_is_read_back(tmp_path, logger):
    config = compose([f"logger={logger}", "model.depth=2", "model.layers=[window,taylor]", "seed=4294967295"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read(tmp_path / "config.yaml") == config


@given(text=PRINTABLE.filter(lambda text: "${" not in text and text != "???"))
@example("1e5")
@example("007")
@example("null")
@example("true")
@example("~")
@example("- a: b # c")
@example("2026-11-21")
@example("1_0")
@example("0x1F")
@example(".inf")
@example("'\"")
@example(" x ")
def test_any_text_comes_back(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / f"text-{os.getpid()}.yaml"
    config = replace(compose_default(), run_dir=text, data_dir=text)
    path.write_text(to_yaml(config))
    assert read(path) == config


def compose_default():
    return parse(asdict(_DEFAULT))


_DEFAULT = compose([])


def test_what_a_file_leaves_out_has_its_default():
    data = {**asdict(_DEFAULT), "optim": {"name": "adamw"}}
    del data["seed"]
    assert parse(data).optim == AdamWConfig() and parse(data).seed == 0


FOREIGN = {
    "": "task must be a mapping of options with a name, got None",
    "- a\n- b\n": "must hold a mapping of options, got list",
    "just text": "just text is not an option",
    "a: [1": "is not YAML",
    "a: {b: 1\n": "is not YAML",
    "\t\x00": "is not YAML",
    "x: !!python/object/apply:os.system ['touch pwned']": "is not YAML",
    "x: !!python/name:os.system": "is not YAML",
    "_target_: os.system\ncommand: touch pwned\n": "_target_ is not an option",
    "1: 2": "1 is not an option",
    "task: {1: 2}": "task.name (None) must be one of",
    "task: {name: digits, 1: 2, true: 3}": "task.1 is not an option of task=digits",
    "task: [digits]": "task must be a mapping of options with a name, got ['digits']",
    "task: {name: {_target_: os.system}}": "task.name ({'_target_': 'os.system'}) must be one of",
    "mixer: {name: taylor, _target_: os.system}": "mixer._target_ is not an option of mixer=taylor",
    "seed: ${oc.env:SECRET}": "seed ('${oc.env:SECRET}') must be a plain value",
    "run_dir: x/${oc.env:SECRET}": "run_dir ('x/${oc.env:SECRET}') must be a plain value",
    "run_dir: ???": "run_dir ('???') must be a plain value",
    "model: {name: encoder, layers: ['${oc.env:SECRET}']}": "model.layers ('${oc.env:SECRET}') must be one of",
    "model: {name: encoder, dim: '???'}": "model.dim ('???') must be a plain value",
    "model: {name: encoder, depth: .nan}": "model.depth (nan) must be a whole number",
    "model: {name: encoder, dropout: .nan}": "model.dropout (nan) must be finite",
    "model: {name: encoder, causal: 5}": "model.causal (5) must be true or false",
    "model: {name: encoder, layers: {a: b}}": "must be a name, or a list of names",
    "run_dir: 5\ndata_dir: [a]": "data_dir (['a']) must be a text",
}


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_files_are_refused_and_never_run(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "do not tell")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    told = refusal(path)
    assert FOREIGN[text] in told and "do not tell" not in told
    assert not (tmp_path / "pwned").exists()


def test_files_that_are_no_text_or_absent(tmp_path):
    path = tmp_path / "config.yaml"
    assert "No such file" in refusal(path)
    path.write_bytes(bytes(range(256)))
    assert "is not YAML" in refusal(path)
    path.unlink()
    path.mkdir()
    assert "is not YAML" in refusal(path)


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "config.yaml"
    data = asdict(_DEFAULT) | {"mixer": {"name": "softmx"}, "optim": {"name": "adamw", "lr": -1}, "colour": "red"}
    data["model"] |= {"dims": 3, "depth": "deep"}
    path.write_text(to_yaml(_DEFAULT) + "colour: red\n")
    assert len(refusal(path).splitlines()) == 1
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert len(caught.value.problems) == 5


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path):
    text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    (tmp_path / "config.yaml").write_text(text)
    assert "it has an alias" in refusal(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="it has an alias"):
        read_suite(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="damaged"):
        find_runs([tmp_path])
