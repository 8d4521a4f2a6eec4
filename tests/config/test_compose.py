"""From arguments to a config: what is accepted, and how everything else is refused, all of it at once."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from tsla.config import GROUPS, ConfigError, compose, group_choices, members
from tsla.config.compose import config_root
from tsla.config.tasks import IMAGES
from tsla.tasks.digits import Digits
from tsla.tasks.images import SIDES, Images
from tsla.tasks.pathfinder import SIZES as PATHFINDER_SIZES

YAMLS = sorted(path.relative_to(config_root()) for path in config_root().rglob("*.yaml"))
EXPERIMENTS, MIXERS = group_choices("experiment"), group_choices("mixer")


def problems(*arguments: str) -> list[str]:
    """What `compose` says is wrong."""
    with pytest.raises(ConfigError) as caught:
        compose(arguments)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def content(path: Path | str) -> dict[str, dict[str, object]]:
    return yaml.safe_load((config_root() / path).read_text())


PRESETS = ("based", "transnormer")  # encoders of which a file sets some options
LRA = [name for name in EXPERIMENTS if name.startswith("lra_")]
NEEDS = {"mqar": ("model.causal=true",), "mqar_mix": ("model.causal=true",), "files": ("task.path=x",),
         "causal": ("model.causal=true",)}  # fmt: skip
NEEDS |= {name: ("task.path=x", "model.pool=mean") for name in LRA}  # pool=cls, as most have it, is not for every model


@pytest.mark.parametrize("path", [path for path in YAMLS if path.parent.name in GROUPS], ids=str)
def test_a_choice_sets_what_its_file_says(path):
    group = path.parent.name
    needs = NEEDS.get(path.stem, ())
    if group == "mixer" and "bidirectional" not in members("mixer")[path.stem].directions:
        needs = ("model.causal=true",)
    chosen = asdict(getattr(compose([f"{group}={path.stem}", "experiment=digits", *needs]), group))
    expected = content(path) | content("experiment/digits.yaml").get(group, {})  # the experiment goes before a group
    if group == "model":
        expected |= content(path)  # but not before a model
    if group == "model" and path.stem not in PRESETS:
        expected |= content(f"recipe/digits_{path.stem}.yaml")["model"]
    assert expected.items() <= chosen.items()
    assert path.stem == chosen["name"]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_with_every_mixer(name, mixer):
    arguments = [f"experiment={name}", f"mixer={mixer}", *NEEDS.get(name, ())]
    if len(able := members("mixer")[mixer].directions) == 1:
        causal = str("causal" in able).lower()
        if name.startswith("mqar") and causal == "false":
            assert problems(*arguments) == [f"mixer={mixer} needs model.causal=false: it is bidirectional only"]
            return
        arguments.append(f"model.causal={causal}")
    config = compose(arguments)
    assert (config.experiment, config.mixer.name) == (name, mixer)
    assert type(config.mixer) is members("mixer")[mixer]


def test_no_file_lies_about_unread():
    assert {path.parent.name for path in YAMLS} == {*GROUPS, "experiment", "recipe", "suite", ""}
    known = {f"{experiment}_{model}" for experiment in EXPERIMENTS for model in group_choices("model")}
    assert {path.stem for path in YAMLS if path.parent.name == "recipe"} <= known
    assert [path for path in YAMLS if not path.parent.name] == [Path("train.yaml")]
    for group in GROUPS:
        assert group_choices(group) == sorted(members(group)), group


def test_every_task_has_an_experiment_of_its_name():
    for task in group_choices("task"):
        assert compose([f"experiment={task}", *NEEDS.get(task, ())]).task.name == task
    assert compose([]) == compose(["experiment=quickstart"])


def test_arguments_go_before_the_experiment_in_any_order():
    expected = compose(["experiment=digits", "mixer=softmax", "model.dim=32", "task=listops_short", "seed=3"])
    assert expected.model.dim == 32 and expected.model.positions == "learned"  # the second is the experiment's
    assert expected.task.name == "listops_short" and expected.seed == 3
    assert expected == compose(["seed=3", "task=listops_short", "model.dim=32", "mixer=softmax", "experiment=digits"])
    assert compose(["seed=1", "seed=2"]).seed == 2
    assert compose(["+model.dim=32"]) == compose(["++model.dim=32"]) == compose(["model.dim=32"])


def test_an_experiment_may_set_options_of_one_model_only():
    encoder, vision = compose(["experiment=digits"]).model, compose(["experiment=digits", "model=vision"]).model
    assert (encoder.name, encoder.short_conv, encoder.positions) == ("encoder", 19, "learned")
    assert (vision.name, vision.patch_size, vision.positions) == ("vision", 2, "sinusoidal")
    assert encoder.dim == vision.dim == content("experiment/digits.yaml")["model"]["dim"]
    assert compose(["model=vision", "model.short_conv=7", "experiment=digits"]).model.short_conv == 7
    (problem,) = problems("experiment=digits", "model=vision", "recipe=digits_encoder")
    assert problem.startswith("recipe is not an option")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_presets_of_models_stay_what_they_are_in_every_experiment(name):
    """Only what is typed goes before them."""
    arguments = [f"experiment={name}", *NEEDS.get(name, ())]
    plain = asdict(compose(arguments).model)
    for preset in PRESETS:
        own, made = content(f"model/{preset}.yaml"), asdict(compose([*arguments, f"model={preset}"]).model)
        assert own.items() <= made.items()
        recipe = f"recipe/{name}_encoder.yaml"
        of_model = content(recipe)["model"] if Path(recipe) in YAMLS else {}
        for key in plain.keys() - own.keys() - of_model.keys():
            assert made[key] == plain[key], key
    based = compose([*arguments, "model=based", "model.depth=10", "model.positions=learned"]).model
    assert (based.depth, based.positions, len(based.layers)) == (10, "learned", 5)
    (problem,) = problems(*arguments, "model=based", "mixer=softmax")
    assert "leaves out mixer=softmax: choose one of gated_conv, taylor, window as mixer" in problem


OF_IMAGES = (*IMAGES, "psmnist", *(name for name in LRA if name.split("_")[1] in IMAGES))


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in OF_IMAGES])
def test_a_vision_model_without_images_is_one_clear_problem(experiment):
    (problem,) = problems(f"experiment={experiment}", "model=vision", *NEEDS.get(experiment, ()))
    task = compose([f"experiment={experiment}", *NEEDS.get(experiment, ())]).task.name
    assert problem == (f"model=vision needs a task of images ({', '.join(IMAGES)}), which task={task} is not: "
                       "choose another task or model=encoder")  # fmt: skip


def test_tasks_of_images_are_those_that_say_so():
    for task in group_choices("task"):
        arguments = ["experiment=digits", "model=vision", f"task={task}", *NEEDS.get(task, ())]
        assert compose(arguments).task.name if task in IMAGES else problems(*arguments)


def test_config_and_task_agree_on_the_size_of_images():
    assert set(IMAGES) == {"digits", *SIDES, *PATHFINDER_SIZES}
    assert compose(["experiment=digits"]).task.image() == Digits().spec.image
    for name, size in PATHFINDER_SIZES.items():
        assert compose([f"task={name}"]).task.image() == (size, size)
    for name, sides in SIDES.items():
        for side in sides:
            for order in ("row", "snake", "hilbert", "permuted"):
                size = [] if name == "image" else [f"task.side={side}"]
                own = compose([f"experiment={name}", *size, f"task.order={order}"]).task.image()
                assert (own or ()) == Images(name=name, side=side, order=order).spec.image


def test_pixels_in_another_order_are_no_image():
    for arguments in (["psmnist"], ["image", "task.order=hilbert"], ["fashion", "task.order=snake"]):
        assert problems(f"experiment={arguments[0]}", *arguments[1:], "model=vision") == [
            "model=vision needs task.order=row: in another order the pixels are no image"
        ]
    assert compose(["experiment=smnist", "model=vision", "model.patch_size=4"]).task.image() == (28, 28)


def test_values_keep_their_types():
    config = compose(["optim.lr=1", "model.causal=true", "mixer.head_dim=null", "model.layers=[window,taylor]"])
    assert config.optim.lr == 1.0 and type(config.optim.lr) is float
    assert config.model.causal is True and config.mixer.head_dim is None
    assert config.model.layers == ["window", "taylor"]
    assert compose(["model.layers=[]"]).model.layers == []
    assert compose(["model.layers=taylor"]).model.layers == ["taylor"]
    assert compose(["mixer={name:softmax,heads:4}"]).mixer == members("mixer")["softmax"](heads=4)


@pytest.mark.parametrize(
    "text", ["1e5", "007", "2024_01", "true", "off", "1.0", "0x10", "inf", "/tmp/two words", "$HOME", "a:b", "5"]
)
def test_a_text_stays_as_it_was_typed(text):
    assert compose([f"run_dir={text}"]).run_dir == text


@pytest.mark.parametrize("text", ["/tmp/läuft", "~/a", "a=b", "a(b)", "(1)", "x[y", "tr'un"])
def test_a_text_with_special_characters_says_that_it_needs_quotes(text):
    (problem,) = problems(f"run_dir={text}")
    assert "quotes" in problem and text in problem
    quoted = text.replace("'", "\\'")
    assert compose([f"run_dir='{quoted}'"]).run_dir == text


UNREADABLE = "cannot be read"
WRONG = {
    "mixer": "argument 'mixer' must have the form key=value",
    "~model.dim": "argument '~model.dim' must have the form key=value",
    "~model.dim=3": "an option can be set to one value, not removed or swept",
    "model.dim=1,2": "an option can be set to one value, not removed or swept",
    "model.dim=range(1,3)": "an option can be set to one value, not removed or swept",
    "model..dim=3": UNREADABLE,
    "model.dim=[": UNREADABLE,
    "mixer=tayler": f"must be one of {', '.join(MIXERS)} (did you mean 'taylor'?)",
    "experiment=digit": "(did you mean 'digits'?)",
    "experiment={a:1}": "experiment ({'a': 1}) must be one of",
    "mixer=[taylor]": "mixer (['taylor']) must be one of",
    "mixer=null": "mixer (None) must be one of",
    "mixer=": "mixer ('') must be one of",
    "task@other=digits": "argument 'task@other=digits' must have the form key=value",
    "model.dims=3": "model.dims is not an option of model=encoder (did you mean 'dim'?)",
    "+model.dims=3": "model.dims is not an option of model=encoder (did you mean 'dim'?)",
    "mixer.window=3": "mixer.window is not an option of mixer=taylor",
    "dim=3": "dim is not an option (did you mean 'model.dim'?)",
    "dropout=0": "dropout is not an option (did you mean 'mixer.dropout' or 'model.dropout'?)",
    "sed=3": "sed is not an option (did you mean 'seed'?)",
    "hydra.run.dir=x": "hydra is not an option",
    "mixer._target_=os.system": "mixer._target_ is not an option of mixer=taylor",
    "_target_=os.system": "_target_ is not an option",
    "seed.x=3": "seed ({'x': '3'}) must be a whole number",
    "mixer.head_dim.x.y=3": "mixer.head_dim ({'x': {'y': '3'}}) must be a whole number or null",
    "seed.x.y=3": "must be a whole number",
    "model.dim=abc": "model.dim ('abc') must be a whole number",
    "model.dim=64.5": "model.dim ('64.5') must be a whole number",
    "model.dim=true": "model.dim ('true') must be a whole number",
    "model.dim=null": "model.dim (None) must be a whole number",
    "model.dim=???": "model.dim ('???') must be a plain value: ${...} and ??? are not read",
    "model.causal=5": "model.causal ('5') must be true or false",
    "model.causal=maybe": "model.causal ('maybe') must be true or false",
    "optim.lr=fast": "optim.lr ('fast') must be a number",
    "optim.lr=nan": "optim.lr (nan) must be finite",
    "optim.lr=inf": "optim.lr (inf) must be finite",
    "optim.lr=-inf": "optim.lr (-inf) must be finite",
    "optim.lr=0": "optim.lr (0.0) must be above 0",
    "model.depth=0": "model.depth (0) must be at least 1",
    "model.dropout=1.5": "model.dropout (1.5) must be at most 1",
    "model.pool=cls_token": "model.pool ('cls_token') must be one of mean, cls, attention",
    "model.layers=[1]": "model.layers ([1]) must be a name, or a list of names such as [layers,other]",
    "model.layers=[taylor,windw]": "model.layers ('windw') must be one of none, taylor, taylorshift",
    "seed=-1": "seed (-1) must be at least 0",
    "seed=4294967296": "seed (4294967296) must be at most 4294967295",
    "run_dir=???": "run_dir ('???') must be a plain value",
    "run_dir=[a]": "run_dir (['a']) must be a text or null",
    "run_dir=${oc.env:HOME}": "run_dir ('${oc.env:HOME}') must be a plain value: ${...} and ??? are not read",
    "model.dim=${model.depth}": "model.dim ('${model.depth}') must be a plain value: ${...} and ??? are not read",
    "mixer.name=[a]": "mixer.name (['a']) must be one of",
    "mixer.name={a:1}": "mixer.name ({'a': 1}) must be one of",
    "mixer.name=bogus": "mixer.name ('bogus') must be one of",
    "model={dim:3}": "model.name (None) must be one of encoder",
}


@pytest.mark.parametrize("argument", WRONG)
def test_one_wrong_argument_is_one_problem(argument):
    (problem,) = problems(argument)
    assert WRONG[argument] in problem


COMBINATIONS = {
    "task.min_length=99": "task.min_length (99) must be below task.max_length - 1 (99)",
    "mixer.order=3": "mixer.order (3) must be even: an odd polynomial gives negative attention weights",
    "mixer=taylor_poly model.causal=false mixer.order=3": "mixer.order (3) must be even: an odd polynomial gives",
    "mixer=taylor_poly": "mixer=taylor_poly needs model.causal=false: it is bidirectional only",
    "model.layers=[taylor,taylor_poly]": "mixer=taylor_poly needs model.causal=false: it is bidirectional only",
    "mixer=linformer": "mixer=linformer needs model.causal=false: it is bidirectional only",
    "mixer=primal mixer.heads=3": "mixer.heads (3) must divide model.dim (128)",
    "mixer=primal mixer.trace=weights mixer.ksvd=0 model.causal=false": "mixer.trace=weights needs a mixer.ksvd above",
    "mixer=primal mixer.rank_multi=4": "mixer.rank_multi (4) needs model.causal=false: no tokens are chosen otherwise",
    "mixer=primal mixer.trace=weights": "mixer.trace=weights needs model.causal=false: both are the same otherwise",
    "mixer=primal mixer.ksvd=-1": "mixer.ksvd (-1.0) must be at least 0",
    "mixer=taylor_poly mixer.root=gate": "mixer.root ('gate') must be one of none, value, sigmoid",
    "mixer.local_heads=8": "mixer.local_heads (8) must be below mixer.heads (8)",
    "mixer.kv_heads=3": "mixer.kv_heads (3) must divide the heads (8)",
    "mixer.kv_heads=4 mixer.local_heads=2": "mixer.kv_heads (4) must divide the heads (6 and 2 local)",
    "mixer.heads=3": "mixer.heads (3) must divide model.dim (128), or give mixer.head_dim and value_dim",
    "mixer=softmax mixer.heads=3 mixer.value_dim=8": "mixer.heads (3) must divide model.dim (128)",
    "model.positions=rotary mixer.head_dim=5": "model.positions=rotary needs an even head dim, got 5",
    "mixer=softmax model.positions=rotary model.dim=24": "model.positions=rotary needs an even head dim, got 3",
    "mixer.output_projection=false mixer.value_dim=8": "needs heads * value_dim (64) equal to model.dim (128)",
    "model.dim=9 mixer=none model.positions=sinusoidal": "model.dim (9) must be even for sinusoidal positions",
    "model.pool=cls model.causal=true": "model.pool=cls puts a token first, where model.causal=true sees nothing",
    "model.depth=1 model.layers=[window,taylor]": "model.layers names 2 layers, but model.depth is 1",
    "mixer=none model.layers=[window]": "model.layers (window) leaves out mixer=none: choose one of window as mixer",
    "mixer.order=4 model.layers=[window,softmax]": "leaves out mixer=taylor: choose one of window, softmax as mixer",
    "mixer=none model.layers=[none,window]": "model.layers=['none', 'window'] needs the heads of a mixer",
    "mixer=gated_conv model.layers=[gated_conv,window]": "needs the heads of a mixer: choose one of window as",
    "mixer.heads=3 mixer.value_dim=8 model.layers=[taylor,luna]": "mixer.heads (3) must divide model.dim (128)",
    "mixer.heads=3 mixer.value_dim=8 model.layers=[primal,taylor]": "mixer.heads (3) must divide model.dim (128)",
    "experiment=digits model=vision model.patch_size=3": "(3) must divide the images of task=digits, 8 x 8 pixels",
    "experiment=digits model=vision mixer=none model.dim=18": "model.dim (18) must be a multiple of 4 for sinusoidal",
    "experiment=fashion model=vision model.patch_size=4": "(4) must divide the images of task=fashion, 14 x 14 pixels",
    "task=fashion task.side=20": "task.side (20) must be 28 or 14",
    "task=fashion task.order_seed=1": "task.order_seed (1) needs task.order=permuted, got row",
    "task=image task.source=lra": "task.source=lra needs task.path: a folder with CIFAR-10",
    "task=image task.path=x": "task.path (x) needs task.source=lra, got offline",
    "task=image task.hub_id=x": "task.hub_id (x) needs task.source=hub, got offline",
    "task=image task.hub_revision=x": "task.hub_revision (x) needs task.source=hub, got offline",
    "task=image task.protocol=s4": "task.protocol=s4 is of Long Range Arena's data, and task.source=offline has",
    "task=image task.source=hub task.protocol=lra task.seed=1": "task.seed (1) draws nothing: task.protocol=lra says",
    "optim.decay=rsqrt optim.final_lr=0.1": "optim.final_lr (0.1) needs optim.decay=cosine, got rsqrt",
    "optim.decay=rsqrt optim.warmup_steps=0": "optim.decay=rsqrt needs optim.warmup_steps above 0",
    "pretrain=causal model.causal=false": "pretrain=causal needs model.causal=true: a token that sees the next one has",
    "experiment=mqar pretrain=masked": "pretrain=masked has nothing to learn from task=mqar: its tokens are drawn at",
    "experiment=selective_copy pretrain=masked": "pretrain=masked has nothing to learn from task=selective_copy: its",
    "experiment=induction pretrain=causal model.causal=true": "pretrain=causal has nothing to learn from task=induct",
    "experiment=digits model=vision pretrain=masked": "pretrain=masked needs model=encoder: it asks for tokens, and",
    "pretrain.mask=0.5": "pretrain.mask is not an option of pretrain=none",
    "pretrain=causal pretrain.mask=0.5": "pretrain.mask is not an option of pretrain=causal",
    "trainer.max_steps=null": "give trainer.max_steps, trainer.max_epochs or trainer.max_minutes",
}


@pytest.mark.parametrize("arguments", COMBINATIONS)
def test_what_does_not_go_together_is_refused(arguments):
    (problem,) = problems(*arguments.split())
    assert COMBINATIONS[arguments] in problem


EDGES = (
    "task.min_length=97",  # rows of 98 tokens
    "mixer.heads=3 mixer.value_dim=8",
    "mixer=softmax mixer.heads=3 mixer.head_dim=5 mixer.value_dim=8 model.positions=none",
    "mixer.kv_heads=2 mixer.local_heads=2",
    "mixer.output_projection=false",
    "model.depth=2 model.layers=[window,taylor]",
    "model.depth=2 model.layers=[none,taylor]",
    "mixer=none model.depth=2 model.layers=[none,none]",
    "mixer=none model.depth=2 model.layers=[none,gated_conv]",
    "mixer=gated_conv model.depth=2 model.layers=[none,gated_conv]",
    "mixer=primal model.depth=2 model.layers=[primal,gated_conv]",
    "mixer=softmax model.depth=2 model.layers=[softmax,primal]",
    "experiment=digits model=vision model.patch_size=8 model.dim=24",
    "experiment=digits model=vision mixer=none model.dim=18 model.positions=learned",
    "task=image task.source=lra task.path=x task.protocol=s4",
    "task=image task.source=hub task.hub_id=x task.hub_revision=y task.seed=1",
    "task=smnist task.path=x task.side=14 task.order=permuted task.order_seed=1",
    "trainer.max_steps=null trainer.max_minutes=1",
    "pretrain=causal",
    "pretrain=masked pretrain.mask=1",
    "experiment=digits pretrain=masked model.causal=true",
)


@pytest.mark.parametrize("arguments", EDGES)
def test_combinations_on_the_edge_are_accepted(arguments):
    assert compose(arguments.split())


def test_all_problems_are_told_at_once():
    told = problems(
        "mixr=taylor", "modl.dim=3", "model.dims=3", "model.depth=0", "seed=-1", "optim.lr=x", "trainer", "x=["
    )
    assert len(told) == 8
    for part in ("mixr", "modl", "model.dims", "model.depth (0)", "seed (-1)", "optim.lr ('x')", "'trainer'", "'x=['"):
        assert sum(part in line for line in told) == 1, part
    assert len(problems("mixer.order=3", "model.dim=30", "model.pool=cls", "model.causal=true")) == 3


def test_the_options_of_an_unknown_choice_are_not_judged():
    (problem,) = problems("mixer=performr", "mixer.features=64", "mixer.heads=four")
    assert problem.startswith("mixer ('performr')")
