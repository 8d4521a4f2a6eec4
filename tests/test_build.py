"""From a config to what it describes, and back from a saved folder."""

import json
from dataclasses import replace

import pytest
import torch
import train_runs as runs

from tsla import build, load_model
from tsla.build_mixer import Place, build_mixer
from tsla.config import ConfigError, compose, members
from tsla.config.mixers import MIXERS
from tsla.mixers import (
    FourierAttention,
    GatedConv,
    HeadSplit,
    LinformerAttention,
    LunaAttention,
    NoMixer,
    PrimalAttention,
    ScatterbrainAttention,
    SoftmaxAttention,
    TaylorAttention,
    TaylorPolyAttention,
    TaylorShiftAttention,
    WindowAttention,
)
from tsla.models import SequenceClassifier, SRMSNorm
from tsla.tasks.digits import Digits
from tsla.tasks.listops import ListOps
from tsla.tasks.listops_grammar import TOKENS
from tsla.training.clock import Limits

SPEC = runs.spec(image=(8, 8))
BASE = ("experiment=digits", "model.dim=32", "model.positions=none")


def built(*arguments: str) -> SequenceClassifier:
    config = compose([*BASE, *arguments])
    torch.manual_seed(0)
    return build.build_model(config.model, config.mixer, SPEC)


def mixers(*arguments: str) -> list[torch.nn.Module]:
    return [block.mixer for block in built(*arguments).encoder.blocks]


def test_tasks(tmp_path):
    assert isinstance(build.build_task(compose(["experiment=digits", "task.seed=3"])), Digits)
    task = build.build_task(compose(["task=listops_medium", f"data_dir={tmp_path}", "task.seed=5"]))
    assert isinstance(task, ListOps) and task.cache_dir == tmp_path and task.seed == 5
    assert (task.grammar.min_length, task.grammar.max_length) == (200, 500)
    assert list(tmp_path.iterdir()) == []  # nothing is made before it is asked for


@pytest.mark.parametrize(
    ("name", "kind"),
    [("none", NoMixer), ("taylor", TaylorAttention), ("taylorshift", TaylorShiftAttention),
     ("taylor_poly", TaylorPolyAttention), ("softmax", SoftmaxAttention), ("window", WindowAttention),
     ("gated_conv", GatedConv), ("linformer", LinformerAttention), ("primal", PrimalAttention),
     ("fourier", FourierAttention), ("luna", LunaAttention), ("scatterbrain", ScatterbrainAttention)],
)  # fmt: skip
def test_a_name_is_a_mechanism(name, kind):
    assert [type(m) for m in mixers(f"mixer={name}")] == [kind, kind]


@pytest.mark.parametrize("name", ["taylor", "softmax", "window"])
def test_options_of_heads_arrive(name):
    (m, _) = mixers(
        f"mixer={name}", "mixer.heads=4", "mixer.head_dim=6", "mixer.value_dim=5", "mixer.kv_heads=2",
        "mixer.gate=true", "mixer.qk_norm=true", "mixer.bias=true", "mixer.dropout=0.25",
        "model.causal=true", "model.positions=rotary", "model.dropout=0.5",
    )  # fmt: skip
    assert (m.heads, m.head_dim, m.value_dim, m.kv_heads) == (4, 6, 5, 2)
    assert (m.causal, m.rotary, m.dropout.p) == (True, True, 0.25)
    assert m.to_gate is not None and not isinstance(m.q_norm, torch.nn.Identity)
    assert all(layer.bias is not None for layer in (m.to_q, m.to_k, m.to_v, m.to_out))
    assert mixers(f"mixer={name}", "model.dropout=0.5")[0].dropout.p == 0.5
    assert isinstance(mixers(f"mixer={name}", "mixer.output_projection=false")[0].to_out, torch.nn.Identity)


@pytest.mark.parametrize("name", ["taylor", "softmax", "window"])
def test_null_widths_are_the_models(name):
    (m, _) = mixers(f"mixer={name}", "mixer.heads=4", "mixer.head_dim=null")
    assert (m.head_dim, m.value_dim, m.kv_heads) == (8, 8, 4)


def test_options_of_one_mechanism_arrive():
    (m, _) = mixers("mixer.order=4", "mixer.impl=direct")
    assert (m.order, m.impl, m.head_dim) == (4, "direct", 16)
    assert mixers("mixer=window", "mixer.window=7")[0].window == 7
    (m, _) = mixers("mixer=gated_conv", "mixer.kernel=5", "mixer.expand=3", "mixer.dropout=0.25", "model.causal=true")
    assert (m.conv.weight.shape, m.dropout.p, m.causal) == ((96, 1, 5), 0.25, True)
    assert mixers("mixer=gated_conv", "model.dropout=0.5")[0].dropout.p == 0.5
    (m, _) = mixers("mixer=linformer", "mixer.rank=7", "mixer.sharing=none", "mixer.max_length=70", "mixer.kv_heads=2")
    assert (m.sharing, m.projection.keys.shape) == ("none", (2, 70, 7))
    (m, _) = mixers(
        "mixer=primal", "mixer.heads=4", "mixer.rank=7", "mixer.rank_multi=2", "mixer.bias=true", "mixer.dropout=0.25",
        "mixer.ksvd=0.5", "mixer.trace=weights",
    )  # fmt: skip
    assert (m.heads, m.rank, m.rows, m.dropout.p, m.ksvd, m.trace) == (4, 7, 14, 0.25, 0.25, "weights")
    assert all(layer.bias is not None for layer in (m.to_q, m.to_k, m.to_out))
    (m, _) = mixers("mixer=primal", "model.causal=true", "model.dropout=0.5")
    assert (m.heads, m.rank, m.rows, m.causal, m.dropout.p, m.ksvd) == (8, 20, 4, True, 0.5, 0.025)
    (m, _) = mixers(
        "mixer=taylor_poly", "mixer.order=4", "mixer.normalize_first=true", "mixer.root=value", "mixer.impl=linear"
    )
    assert (m.order, m.normalize_first, m.root, m.impl) == (4, True, "value", "linear")
    assert (m.head_dim, m.to_root.weight.shape) == (16, (32, 32)) and not isinstance(m.middle_norm, torch.nn.Identity)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_config_refuses_the_directions_that_the_mixer_does(name, causal):
    """Both say what a mechanism can do: the config before torch is loaded, the mixer to whoever builds one."""
    direction = "causal" if causal else "bidirectional"
    config = members("mixer")[name]()
    model = replace(compose(BASE).model, causal=causal)
    if direction in config.directions:
        assert direction in build_mixer(config, model, Place(0, 1, 64, {})).supports
    else:
        with pytest.raises(ValueError, match=f"does not support '{direction}'"):
            build_mixer(config, model, Place(0, 1, 64, {}))


@pytest.mark.parametrize("name", ["taylor", "softmax", "window"])
def test_local_heads_stand_beside_the_others(name):
    (m, _) = mixers(
        f"mixer={name}", "mixer.heads=4", "mixer.local_heads=1", "mixer.local_window=5", "mixer.dropout=0.25",
        "mixer.head_dim=6", "model.causal=true", "mixer.gate=true",
    )  # fmt: skip
    assert isinstance(m, HeadSplit) and m.dropout.p == 0.25 and m.causal
    assert (m.far.heads, m.near.heads, m.near.window) == (3, 1, 5)
    for part in (m.far, m.near):
        assert (part.head_dim, part.value_dim, part.dropout.p) == (6, 8, 0.0)
        assert part.to_gate is not None and isinstance(part.to_out, torch.nn.Identity)
    assert m.to_out.weight.shape == (32, 32) and m.to_out.bias is None
    assert m(torch.randn(1, 7, 32)).shape == (1, 7, 32)


def test_local_heads_without_a_projection():
    (m, _) = mixers("mixer.local_heads=2", "mixer.output_projection=false")
    assert isinstance(m.to_out, torch.nn.Identity) and m.width == 32


def test_layers_follow_their_pattern_with_the_heads_of_the_mixer():
    found = mixers(
        "model.layers=[window,taylor,none]", "model.depth=7", "mixer.heads=4", "mixer.head_dim=8", "mixer.order=4",
        "mixer.kv_heads=2",
    )  # fmt: skip
    assert [type(m) for m in found] == [*[WindowAttention, TaylorAttention, NoMixer] * 2, WindowAttention]
    for m in found:
        if not isinstance(m, NoMixer):
            assert (m.heads, m.head_dim, m.kv_heads) == (4, 8, 2)
    assert found[1].order == 4 and found[0].window == 64
    assert build.mixer_name(compose([*BASE, "model.layers=[window,taylor]"])) == "window+taylor"
    assert build.mixer_name(compose([*BASE, "mixer=softmax"])) == "softmax"


def test_a_convolution_in_a_pattern_of_another_mixer_has_its_own_widths():
    conv, taylor = mixers("model.layers=[gated_conv,taylor]", "mixer.heads=4", "model.dropout=0.5")
    assert (type(conv), conv.conv.weight.shape, conv.dropout.p) == (GatedConv, (64, 1, 3), 0.5)
    assert taylor.heads == 4
    assert [type(m) for m in mixers("mixer=gated_conv", "model.layers=[gated_conv,none]")] == [GatedConv, NoMixer]


def test_primal_attention_in_a_pattern_has_its_heads_and_the_whole_loss():
    softmax, primal = mixers("mixer=softmax", "model.layers=[softmax,primal]", "mixer.heads=4", "mixer.head_dim=5")
    assert (softmax.head_dim, type(primal), primal.heads, primal.ksvd) == (5, PrimalAttention, 4, 0.05)


def test_mixers_that_own_their_projections_take_heads_from_one_another():
    primal, luna = mixers("mixer=primal", "model.layers=[primal,luna]", "mixer.heads=4")
    assert (primal.heads, type(luna), luna.heads) == (4, LunaAttention, 4)


def test_taylor_in_a_pattern_of_another_mixer_has_its_widths():
    softmax, taylor = mixers("mixer=softmax", "model.layers=[softmax,taylor]", "mixer.heads=4")
    assert softmax.head_dim == taylor.head_dim == 8


def test_bracket_depth_knows_the_brackets_of_the_task():
    config = compose(["experiment=listops_short", "model.bracket_depth=true", "model.dim=32"])
    model = build.build_model(config.model, config.mixer, runs.spec(inputs="listops", vocab_size=len(TOKENS)))
    steps = dict(zip(TOKENS, model.encoder.brackets.steps.tolist(), strict=True))
    assert {token for token, step in steps.items() if step == 1} == {"[MIN", "[MAX", "[MED", "[SM"}
    assert {token for token, step in steps.items() if step == -1} == {"]"}
    with pytest.raises(ValueError, match=r"bracket_depth=true needs a task of brackets, which x is not"):
        build.build_model(config.model, config.mixer, SPEC)
    with pytest.raises(ConfigError, match=r"model.bracket_depth=true needs a task of brackets \(listops, .*got digits"):
        compose(["experiment=digits", "model.bracket_depth=true"])


def test_the_model_fits_the_task():
    model = built("model.positions=learned", "model.pool=attention", "model.dropout=0.5")
    assert model.encoder.embedding.weight.shape == (18, 32) and model.head.weight.shape == (10, 32)
    assert model.encoder.positions.table.weight.shape == (64, 32)
    assert model.dropout.p == model.encoder.dropout.p == 0.5


def test_loaders_shuffle_training_only():
    config = compose([*BASE, "seed=7", "trainer.batch_tokens=640", "trainer.devices=2", "trainer.workers=1"])
    train, val, test = build.build_loaders(config, Digits(), ("train", "val", "test"), rank=1, world=2)
    assert train.batches.seed == 7 and val.batches.seed is None is test.batches.seed
    assert (train.num_workers, val.num_workers) == (1, 0)
    assert [loader.batches.rank for loader in (train, val, test)] == [1, 1, 1]
    assert len(train) == 126 // 2 and len(val) == 18 // 2
    assert sum(len(rows) for rows in val.batches) == 90
    (alone,) = build.build_loaders(config, Digits(), ("test",))  # however many processes have trained
    assert sum(len(rows) for rows in alone.batches) == 360
    with pytest.raises(
        ValueError, match=r"the val split makes 18 batches of trainer.batch_tokens \(640\), too few for"
    ):
        build.build_loaders(config, Digits(), ("train", "val"), rank=1, world=19)


def test_settings_are_those_of_the_config():
    config = compose(
        [*BASE, "optim.lr=0.5", "optim.final_lr=0.1", "optim.warmup_steps=7", "optim.weight_decay=0.2",
         "optim.beta1=0.6", "optim.beta2=0.7", "optim.clip_norm=0.3",
         "trainer.max_steps=5", "trainer.max_epochs=6", "trainer.max_minutes=7", "trainer.accumulate=2",
         "trainer.validate_every=3", "trainer.checkpoint_every=4", "trainer.precision=bf16",
         "trainer.accelerator=cpu", "trainer.devices=2", "trainer.compile=true", "trainer.batch_tokens=640",
         "trainer.ema=0.5", "trainer.patience=8"]
    )  # fmt: skip
    assert tuple(build.build_optim(config)) == (0.5, 0.1, 7, 0.2, 0.6, 0.7, 0.3, "cosine")
    assert tuple(build.build_fit(config)) == (Limits(5, 6, 7.0), 640, 2, 3, 4, "bf16", "cpu", 2, True, 0.5, 8, False)
    assert build.build_fit(compose([*BASE, "mixer=none"])).idle_parameters
    assert build.build_fit(compose([*BASE, "model.layers=[taylor,none]"])).idle_parameters


def test_the_layers_of_based():
    """Taylor attention at 1, 6, 11, ..., a window after it, and convolutions everywhere else."""
    made = built("model=based", "model.depth=25")
    kinds = {1: TaylorAttention, 2: WindowAttention}
    assert [type(b.mixer) for b in made.encoder.blocks] == [kinds.get(layer % 5, GatedConv) for layer in range(25)]
    assert made.encoder.blocks[0].feed_forward.out.weight.shape == (32, 64)  # a hidden width of twice dim
    assert all(block.conv is None for block in made.encoder.blocks)


def test_the_parts_of_transnormer():
    made = built("model=transnormer", "model.depth=2")
    norms = [made.encoder.norm, *(n for b in made.encoder.blocks for n in (b.mixer_norm, b.feed_forward_norm))]
    assert [type(norm) for norm in norms] == [SRMSNorm] * 5
    assert made.encoder.embedding_scale and {b.feed_forward.kind for b in made.encoder.blocks} == {"sglu"}
    model = built("model=vision", "model.norm=srms", "model.feed_forward=sglu").classifier.encoder
    assert isinstance(model.norm, SRMSNorm) and model.blocks[0].feed_forward.kind == "sglu"


ARCHITECTURES = {
    "plain": (),
    "learned": ("model.positions=learned", "model.pool=cls", "model.short_conv=3"),
    "causal": ("model.positions=rotary", "model.causal=true", "model.pool=attention", "mixer.gate=true"),
    "split": ("mixer.local_heads=2", "mixer.kv_heads=1", "mixer.qk_norm=true", "model.feed_forward=swiglu"),
    "pattern": ("model.layers=[window,taylor]", "model.positions=sinusoidal"),
    "none": ("mixer=none",),
    "linformer": ("mixer=linformer", "mixer.sharing=layer", "mixer.rank=7", "model.pool=cls"),
    "primal": ("mixer=primal", "mixer.bias=true"),
    "based": ("model=based",),
    "transnormer": ("model=transnormer", "model.conv_embedding=true"),
    "vision": ("model=vision", "model.positions=sinusoidal", "model.short_conv=3"),
    "vision, learned": ("model=vision", "model.positions=learned", "model.pool=attention", "mixer=softmax"),
}


@pytest.fixture(params=ARCHITECTURES)
def saved(request, tmp_path):
    config = compose([*BASE, *ARCHITECTURES[request.param]])
    model = built(*ARCHITECTURES[request.param])
    build.save(model, config, SPEC, tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_comes_back_bit_for_bit(saved):
    model, folder = saved
    back = load_model(folder)
    ids, mask = torch.randint(18, (2, 64)), torch.arange(64) < torch.tensor([[64], [40]])
    assert torch.equal(back(ids, mask), model.eval()(ids, mask))
    assert not back.training and repr(back) == repr(model)
    assert torch.equal(load_model(str(folder))(ids), back(ids))


HOSTILE = {
    "mixer": [None, "taylor", {"name": "bogus"}, {"name": "taylor", "order": 3}, {"name": "taylor", "heads": 7},
              {"name": "taylor", "colour": 1}, {"name": "taylor", "_target_": "os.system"}, {"name": []}],
    "model": [None, {"name": "encoder", "depth": 0}, {"name": "encoder", "layers": ["bogus"]},
              {"name": "encoder", "dim": "x"}, {"name": "encoder", "dim": 64}, {"name": "encoder", "dropout": 3.0},
              {"name": "encoder", "pool": "cls", "causal": True},
              {"name": "encoder", "feed_forward_mult": float("nan")}],
    "task": [None, {}, [1], {"name": "x"}, SPEC._asdict() | {"vocab_size": "18"}, SPEC._asdict() | {"outputs": 0},
             SPEC._asdict() | {"max_length": -5}, SPEC._asdict() | {"more": 1}, SPEC._asdict() | {"vocab_size": 19}],
}  # fmt: skip


@pytest.mark.parametrize(("part", "at"), [(part, at) for part, values in HOSTILE.items() for at in range(len(values))])
def test_a_hostile_config_is_one_clear_error(tmp_path, part, at):
    config = compose([*BASE, "model.depth=1"])
    build.save(built("model.depth=1"), config, SPEC, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: HOSTILE[part][at]}))
    with pytest.raises(ValueError) as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) > 20


def test_several_problems_of_a_saved_config_are_told_at_once(tmp_path):
    build.save(built(), compose(list(BASE)), SPEC, tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"format": "tsla/1", "mixer": {"name": "taylr"}, "model": {"name": "encoder", "depth": 0}, "task": {}}
        )
    )
    with pytest.raises(ValueError) as caught:
        load_model(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(str(tmp_path / "config.json") in line for line in lines)
    assert "(did you mean 'taylor'?)" in lines[0]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        load_model(tmp_path)
    build.save(built(), compose(list(BASE)), SPEC, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors"):
        load_model(tmp_path)


def test_the_horizon_is_that_of_the_longest_input():
    """Of the cosine map: the task's, and the token that goes first; a shorter one is refused before any training."""
    cosine = ("mixer=linear", "mixer.map=cosine")
    assert mixers(*cosine)[0].feature_map.horizon == 64
    assert mixers(*cosine, "model.pool=cls")[0].feature_map.horizon == 65
    assert mixers(*cosine, "mixer.horizon=70", "model.pool=cls")[0].feature_map.horizon == 70
    for more, longest in ((), 64), (("model.pool=cls",), 65):
        message = rf"^mixer.horizon \({longest - 1}\) must be at least the longest input \({longest}\)$"
        with pytest.raises(ValueError, match=message):
            mixers(*cosine, f"mixer.horizon={longest - 1}", *more)
