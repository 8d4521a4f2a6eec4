"""A vision transformer from the command line: trained, resumed, evaluated, asked, taken over, told of."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import train_runs as runs

from tsla import VisionTransformer, build, cli, load_model
from tsla.config import ConfigError, compose
from tsla.tasks.base import TaskSpec, parse_spec
from tsla.tasks.digits import Digits

VISION = (*runs.DIGITS, *runs.HEADS, "model=vision")
SHORT = ("trainer.max_steps=2", "trainer.validate_every=1", "trainer.checkpoint_every=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("vision") / "run"
    assert runs.train(*VISION, *SHORT, f"run_dir={run}") == 0
    return run


def test_a_run_and_its_result(trained):
    result, model = runs.result(trained), load_model(trained / "model")
    assert result["task"] == "digits" and 0 <= result["metrics"]["test/accuracy"] <= 1
    assert result["params"] == sum(p.numel() for p in model.parameters())
    state = 4 * 2 * 45 * (8 + 1)  # float32 of 2 heads: 45 features of 8 numbers, by 8 values and the denominator
    assert result["state_bytes"] == state
    assert isinstance(model, VisionTransformer) and not model.training
    assert (model.image_size, model.patch_size, model.levels) == ((8, 8), 2, 17)
    assert "model=vision" in result["command"] and "short_conv" not in result["command"]


def test_its_saved_model_reads_images_and_rows(trained):
    model = load_model(trained / "model")
    ids = torch.tensor(Digits().split("val")[:5]["input_ids"])
    grey = (ids - 1) / 16  # 0 to 1
    assert model(ids).shape == (5, 10)
    torch.testing.assert_close(model((grey * 2 - 1).reshape(5, 1, 8, 8)), model(ids))
    saved = json.loads((trained / "model" / "config.json").read_text())
    assert saved["task"]["image"] == [8, 8] and saved["model"]["name"] == "vision"


def test_eval(trained, capsys):
    assert cli.main(["eval", str(trained)]) == 0
    assert f"{runs.result(trained)['metrics']['test/accuracy']:.4f}" in capsys.readouterr().out


def test_predict(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.array(Digits().split("val")[:6]["input_ids"]) - 1
    rows = "".join(" ".join(map(str, row)) + "\n" for row in pixels)
    Path("new.csv").write_text("tokens\n" + rows)
    assert cli.main(["predict", str(trained), "new.csv"]) == 0
    with Path("new.predictions.csv").open(newline="") as file:
        assert len([int(row["prediction"]) for row in csv.DictReader(file)]) == 6
    Path("short.csv").write_text("tokens\n" + rows + "1 2 3\n")
    assert cli.main(["predict", str(trained), "short.csv", "out=out.csv"]) == 1
    assert not Path("out.csv").exists()


def test_an_image_of_another_size_is_told_with_its_row(trained, tmp_path):
    from tsla.predict import predict

    path = tmp_path / "new.csv"
    path.write_text("tokens\n" + "1 " * 64 + "\n1 2 3\n")
    with pytest.raises(ValueError, match=r"row 2: 3 pixels, but this model looks at images of 8 x 8 \(model=vision\)"):
        predict(trained, path, tmp_path / "out.csv")


def test_resume_is_the_run_that_was_not_stopped(trained, tmp_path):
    arguments = (*VISION, *SHORT, "model.dropout=0.3", "trainer.max_steps=6")
    assert runs.train(*arguments, f"run_dir={tmp_path / 'whole'}") == 0
    assert runs.stopped_at_batch(4, *arguments, f"run_dir={tmp_path / 'cut'}") == 130
    assert runs.train(f"resume={tmp_path / 'cut'}") == 0
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_weights_of_another_run_and_a_head_of_another_task(trained, tmp_path):
    spec = Digits().spec
    config = compose([*VISION, "trainer.max_steps=1"])
    same, other = (build.build_model(config.model, config.mixer, s) for s in (spec, spec._replace(outputs=3)))
    fresh = other.classifier.head.weight.clone()
    build.load_initial(same, spec, trained / "model")
    build.load_initial(other, spec._replace(outputs=3), trained / "model")
    saved = runs.weights(trained)
    assert runs.same_weights(dict(same.state_dict()), saved)
    assert torch.equal(other.classifier.head.weight, fresh)
    name = "classifier.encoder.blocks.0.mixer.to_q.weight"
    assert torch.equal(other.state_dict()[name], saved[name])
    assert runs.train(*VISION, *SHORT, f"init_from={trained}", f"run_dir={tmp_path / 'next'}") == 0


def test_a_report_tells_it_from_the_encoder(trained, tmp_path):
    encoder = tmp_path / "encoder"
    assert runs.train(*runs.DIGITS, *runs.HEADS, *SHORT, f"run_dir={encoder}") == 0
    assert cli.main(["report", str(trained), str(encoder), f"out={tmp_path / 'report'}"]) == 0
    told = (tmp_path / "report" / "report.md").read_text()
    assert "vision" in told and "encoder" in told and "patch_size" in told


def test_a_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert runs.train(*VISION, "dry_run=true") == 0
    out = capsys.readouterr().out
    assert "GridConv" in out and "TaylorAttention" in out and "1 × 16 × 16" in out


def test_without_images_it_is_refused_before_anything_is_loaded(capsys):
    assert runs.train("model=vision") == 2
    assert (
        "model=vision needs a task of images (digits, image, fashion, smnist, pathfinder, "
        "pathfinder_64, pathx), which task=listops_short is not" in capsys.readouterr().err
    )
    config = compose(VISION)
    with pytest.raises(ValueError, match=r"model=vision needs a task of images, which x is not"):
        build.build_model(config.model, config.mixer, runs.spec())
    with pytest.raises(ValueError, match=r"one answer per image, and x asks for one per pixel"):
        build.build_model(config.model, config.mixer, runs.spec(target="tokens", image=(8, 8)))


def test_images_of_numbers_and_of_other_questions():
    """Colours are a series; labels and numbers are answered by a head as classes are."""
    config = compose(VISION)
    for target in ("class", "labels", "numbers"):
        spec = runs.spec(None, 3, 32, inputs="series", channels=2, image=(4, 8), target=target)
        made = build.build_model(config.model, config.mixer, spec)
        assert made(torch.randn(2, 32, 2)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"patch_size \(2\) must divide the image, 5 x 8 pixels"):
        build.build_model(config.model, config.mixer, runs.spec(max_length=40, image=(5, 8)))


def test_specs_say_the_size_of_an_image():
    spec, problems = Digits().spec, []
    plain = json.loads(json.dumps(spec._asdict()))
    assert parse_spec(plain, problems) == spec and spec.image == (8, 8)
    del plain["image"]  # as saved before there were any
    assert parse_spec(plain, problems) == spec._replace(image=()) and problems == []
    assert isinstance(parse_spec({**plain, "image": [16, 4]}, problems), TaskSpec)
    for wrong in ([8], [8, 9], [8, 8, 1], [8, -8], [-8, -8], [64.0, 1], [True, 64], "64", None, 64, {"a": 1}):
        problems.clear()
        assert parse_spec({**plain, "image": wrong}, problems) is None
        assert "must be [], or a height and a width in pixels whose product is task.max_length (64)" in problems[0]


def test_a_hostile_saved_model_is_one_clear_error(trained, tmp_path):
    saved = json.loads((trained / "model" / "config.json").read_text())
    for part, change, message in (
        ("model", {"patch_size": 3}, "patch_size (3) must divide"), ("model", {"patch_size": 0}, "at least 1"),
        ("model", {"short_conv": 5}, "holds another model"), ("model", {"pool": "cls"}, "must be one of mean"),
        ("task", {"image": []}, "needs a task of images"), ("task", {"image": [4, 16]}, None),
        ("task", {"vocab_size": 2}, "levels (1) must be at least 2"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**saved, part: {**saved[part], **change}}))
        (tmp_path / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes())
        if message is None:  # the weights know no shape of the grid: such a model is another, but whole
            assert load_model(tmp_path).image_size == (4, 16)
            continue
        with pytest.raises((ValueError, ConfigError)) as caught:
            load_model(tmp_path)
        assert message in str(caught.value)
