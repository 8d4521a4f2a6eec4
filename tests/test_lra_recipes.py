"""The recipes of Long Range Arena: published sizes, costs on the meta device, two steps on little data; their page."""

import math
from pathlib import Path

import lra_cases
import pytest
import torch
import train_runs as runs
from script_files import load_script

from tsla import build
from tsla.config import compose
from tsla.tasks.base import TaskSpec

# Of the public configurations: width, depth, width of queries and of the hidden layer; heads; rows of a batch, steps,
# warm-up; peak rate, weight decay, pooling.
TRANSFORMERS = {
    "lra_listops": (512, 4, 512, 1024, 8, 32, 5_000, 1_000, 0.05 / math.sqrt(1_000), 0.1, "cls"),
    "lra_text": (256, 4, 256, 1024, 4, 32, 20_000, 8_000, 0.05 / math.sqrt(8_000), 0.1, "cls"),
    "lra_retrieval": (128, 4, 128, 512, 4, 32, 5_000, 8_000, 0.05 / math.sqrt(8_000), 0.1, "cls"),
    "lra_image": (128, 1, 64, 128, 8, 256, 35_000, 45_000 // 256, 5e-4, 0, "cls"),
    "lra_pathfinder": (32, 4, 16, 32, 4, 512, 62_400, 160_000 // 512, 1e-3, 0, "mean"),
    "lra_pathx": (32, 1, 16, 32, 2, 64, 500_000, 160_000 // 64, 1e-3, 0, "mean"),
}
S4 = {
    "lra_listops_s4": (256, 6, 32, 120_000, 12_000, 0.01, 0),
    "lra_text_s4": (256, 6, 16, 50_000, 5_000, 0.01, 0),
    "lra_retrieval_s4": (256, 6, 64, 50_000, 5_000, 0.01, 0),
    "lra_image_s4": (512, 6, 50, 180_000, 18_000, 0.01, 0.1),
    "lra_pathfinder_s4": (256, 6, 64, 500_000, 50_000, 0.004, 0),
    "lra_pathx_s4": (256, 6, 16, 500_000, 50_000, 0.001, 0),
}


@pytest.fixture(scope="module")
def script():
    return load_script("lra_recipes")


def test_every_recipe_is_here():
    assert sorted([*TRANSFORMERS, *S4]) == lra_cases.RECIPES


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_published_numbers_of_the_transformers(name):
    config = compose([f"experiment={name}", "task.path=x"])
    dim, depth, _, hidden, _, rows, steps, warmup, rate, decay, pool = TRANSFORMERS[name]
    model, optim, trainer = config.model, config.optim, config.trainer
    assert (model.dim, model.depth, model.feed_forward_mult * model.dim, model.pool) == (dim, depth, hidden, pool)
    assert (trainer.batch_rows, trainer.max_steps, optim.warmup_steps) == (rows, steps, warmup)
    assert optim.lr == pytest.approx(rate, rel=1e-2) and optim.weight_decay == decay
    assert optim.decay == ("rsqrt" if decay else "cosine") and (optim.clip_norm == 0) == (name != "lra_pathx")
    assert (config.task.source, config.task.protocol) == ("lra", "lra")


@pytest.mark.parametrize("name", S4)
def test_published_numbers_of_s4(name):
    config = compose([f"experiment={name}", "task.path=x"])
    model, optim, trainer = config.model, config.optim, config.trainer
    assert (model.dim, model.depth, trainer.batch_rows, trainer.max_steps, optim.warmup_steps, optim.lr,
            model.dropout) == S4[name]  # fmt: skip
    assert (optim.weight_decay, optim.decay, model.pool, config.task.protocol) == (0.05, "cosine", "mean", "s4")
    assert getattr(config.task, "kind", "series") == "series"


@pytest.mark.parametrize("name", lra_cases.RECIPES)
def test_a_batch_has_room_for_its_rows(script, name):
    config = compose([f"experiment={name}", "task.path=x"])
    spec = script.published(config.task.name, config.task.protocol)
    needed = config.trainer.batch_rows * spec.max_length * (1 + bool(spec.pairs))
    assert needed <= config.trainer.batch_tokens <= 1.3 * needed


def parameters(config, spec: TaskSpec, query: int, hidden: int) -> int:
    """Of a Transformer, its biases and norms aside, by its formula."""
    dim, learned = config.model.dim, config.model.positions == "learned"
    blocks = config.model.depth * (4 * dim * query + 2 * dim * hidden)
    head = 2 * dim * dim if spec.pairs else dim * spec.outputs
    return blocks + (spec.vocab_size or 1) * dim + learned * spec.max_length * dim + head


@pytest.mark.parametrize("name", lra_cases.RECIPES)
def test_sizes_are_the_published_ones(script, name, monkeypatch):
    """With exact softmax and the published heads; on the meta device, as in tests/models/test_meta.py."""
    monkeypatch.undo()
    torch.utils._device._device_constructors.cache_clear()
    base = [f"experiment={name}", "task.path=x", "mixer=softmax"]
    if name in TRANSFORMERS:
        _, _, query, hidden, heads, *_ = TRANSFORMERS[name]
        base += [f"mixer.heads={heads}", f"mixer.head_dim={query // heads}", f"mixer.value_dim={query // heads}"]
    config = compose(base)
    spec = script.published(config.task.name, config.task.protocol, getattr(config.task, "kind", "tokens"))
    with torch.device("meta"):
        model = build.build_model(config.model, config.mixer, spec)
    if name not in TRANSFORMERS:
        query = hidden = config.model.dim
        spec = spec._replace(pairs="")  # [a, b, a - b, a b] is for the count below
    count, expected = sum(p.numel() for p in model.parameters()), parameters(config, spec, query, hidden)
    pairs = 4 * config.model.dim**2 if name == "lra_retrieval_s4" else 0
    assert all(p.is_meta for p in model.parameters()) and count == pytest.approx(expected + pairs, rel=0.05)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "pathx" in name else ()) for name in lra_cases.RECIPES]
)
def test_two_steps(name, tmp_path, monkeypatch):
    """What a recipe says stands, but for the width, the rows of a batch and what needs a GPU."""
    monkeypatch.chdir(tmp_path)
    short = lra_cases.write(name, tmp_path, monkeypatch)
    status = runs.train(
        f"experiment={name}", *short, "model.dim=16", "trainer.max_steps=2", "trainer.accelerator=cpu", "run_dir=run",
    )  # fmt: skip
    assert status == 0
    result = runs.result("run")
    assert result["steps"] == 2 and result["task"].split("_")[0] == name.split("_")[1]


def test_the_page_has_every_recipe_as_the_script_counts_it(script):
    page = script.PAGE.read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `lra_")]
    assert [line.split("`")[1] for line in rows] == script.RECIPES
    for name in ("lra_image", "lra_pathfinder"):  # those that are counted in a second
        assert script.row(name) in rows
    table = page.partition(script.MARKS[0])[2].partition(script.MARKS[1])[0]
    assert script.written(page.replace(table, ""), table) == page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lra_listops", "lra_text", "lra_image_s4", "lra_retrieval_s4"])
def test_the_page_counts_long_rows_as_the_script_does(script, name):
    assert script.row(name) in script.PAGE.read_text().splitlines()


@pytest.mark.parametrize("size", [None, 10**4, 10**15])
def test_a_dry_run_tells_costs_and_tries_what_fits(size, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tsla.dry_run.memory_of", lambda device: size)
    short = lra_cases.write("lra_listops", tmp_path, monkeypatch)
    assert runs.train("experiment=lra_listops", *short, "model.dim=16", "trainer.accelerator=cpu", "dry_run=true") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a step of 2 x 8 tokens: " in out and "for weights, gradients and averages" in out
    assert ("no step is tried" in out) == (size == 10**4) == ("after two steps" not in out)
    assert not Path("runs").exists()


def test_a_dry_run_tries_no_step_of_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tsla.dry_run.CPU_FLOPS", 1)
    assert runs.train(*runs.DIGITS, "trainer.max_steps=9", "dry_run=true") == 0
    out = capsys.readouterr().out
    assert "a step of 100 x 64 tokens: " in out and out.endswith("minutes on a CPU: no step is tried\n")
