"""What each option of a task changes, alone, and the files it is tried on; see `test_dead_options`."""

import json
from pathlib import Path

import image_cases
import listops_cases
import pathfinder_cases
import pytest
import text_cases
from data_files import write_genbank, write_series
from mixer_options import Case

from tsla import build
from tsla.config import Config
from tsla.tasks.images import Images
from tsla.tasks.packages import Package

MQAR = ("task=mqar", "model.causal=true", "task.train=[16/4/30]", "task.val=[16/4/5]", "task.test=[16/4/5]")
PATHFINDER = ("task=pathfinder", "task.train_rows=4", "task.eval_rows=2")
ROWS = ("task=listops_short", "task.train_rows=30", "task.eval_rows=5")
LONG_ROWS = ("task=listops", *ROWS[1:])
LISTS = ("task=listops", "task.source=lra")
SNAKES = ("task=pathfinder", "task.source=hub")
INDUCTION = ("task=induction", "task.train=[16/30]", "task.val=[16/5]", "task.test=[16/5]")
COPY = ("task=selective_copy", "task.train=[16/4/30]", "task.val=[16/4/5]", "task.test=[16/4/5]")
SERIES = ("task=series", "task.path=tiny_TRAIN.ts")
DNA = ("task=dna_strand", "task.path=genome.gbk", "task.length=20", "task.min_gene=60")
IMAGE = ("task=image", "task.train_rows=40")
CIFAR = (*IMAGE, "task.source=lra", "task.path=cifar")
HUB = (*IMAGE, "task.source=hub", "task.hub_id=hub")
GREY = ("task=fashion",)
FILES = ("task=files", "task.path=own.jsonl")
R8, TEXT, PAIRS = ("task=r8",), ("task=text",), ("task=retrieval",)
REVIEWS, PAPERS, ONLINE = (
    ("task.source=lra", "task.path=aclImdb"),
    ("task.source=lra", "task.path=aan"),
    ("task.source=hub",),
)


def write_own_files() -> None:
    """Files of a user's own, in the folder of the moment."""
    for name, first in (("own", 0), ("other", 100), ("val", 200)):
        rows = [
            {"text": f"text {n}", "tokens": f"{n % 7} {n % 5} 3", "label": "odd" if n % 2 else "even", "number": n % 2,
             "part": ("train", "val", "test", "train")[n % 4], "split": ("test", "val", "train", "train")[n % 4]}
            for n in range(first, first + 40)
        ]  # fmt: skip
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, count in (("tiny", 20), ("other", 16)):
        write_series(".", name, rows=count)
    for seed, name in enumerate(("genome", "other")):
        write_genbank(f"{name}.gbk", seed=seed)


def package_file(package: Package, member: str, cache_dir: Path) -> Path:
    """What stands for the files of packages, so that none is fetched."""
    if package.kind == "deb":
        return Path("other.gbk")
    return Path(("tiny" if "JapaneseVowels" in member else "other") + member[member.rindex("_") :])


def write_images(patch: pytest.MonkeyPatch) -> None:
    """Files of images, in the folder of the moment, under which Fashion-MNIST is as if installed."""
    image_cases.installed(patch, Path.cwd())
    image_cases.write_idx(Path("idx"), seed=1)
    for seed, other in enumerate(("", "_other")):
        image_cases.write_cifar(Path(f"cifar{other}"), seed=seed)
        image_cases.write_hub(Path(f"hub{other}"), seed=seed)


def write_texts() -> None:
    """Reviews and pairs of papers, two of each, and a clone of a data set of the Hub."""
    text_cases.papers(Path("aan"))
    text_cases.papers(Path("other_aan"), seed=4)
    text_cases.reviews(Path("aclImdb"))
    text_cases.reviews(Path("other"), seed=5)
    text_cases.hub(Path("imdb"))


def prepare(name: str, patch: pytest.MonkeyPatch) -> None:
    """What the options of that dataclass are tried on, in the folder of the moment."""
    write_own_files()
    if name in ("ImageConfig", "GreyConfig"):
        write_images(patch)
    if name in ("TextConfig", "RetrievalConfig", "R8Config"):
        write_texts()
    if name == "PathfinderConfig":
        for seed, folder in enumerate(("images", "other_images")):
            pathfinder_cases.write_hub(Path(folder), seed=seed)
    if name == "ListOpsConfig":
        files = listops_cases.FILES
        listops_cases.write_files(Path("listops"), files)
        listops_cases.write_files(Path("other_listops"), files | {"val": files["train"]})


def data(config: Config) -> object:
    """The first epoch, how it is loaded, and the folders that were made for it."""
    task = build.build_task(config)
    loaders = build.build_loaders(config, task, ("train", "val", "test"))
    listed = [
        ([(b.inputs.tolist(), b.targets.tolist()) for b in map(loader.rows.__getitems__, loader.batches)],
         loader.rows.slices)
        for loader in loaders
    ]  # fmt: skip
    places = sorted(path.name for path in Path().iterdir())
    return task.spec, listed, [loader.num_workers for loader in loaders], places


def source(config: Config) -> object:
    """Which images will be asked for."""
    task = build.build_task(config)
    assert isinstance(task, Images)
    return task.source.key


def pair_rows(config: Config) -> object:
    """Rows of two documents."""
    task = build.build_task(config)
    return task.spec, [task.split(name).to_list() for name in ("train", "val", "test")]


def head_of_pairs(config: Config) -> object:
    """What the model of a task of pairs has for a head."""
    return repr(build.build_model(config.model, config.mixer, build.build_task(config).spec).head)


TASKS: dict[str, dict[str, Case]] = {
    "ListOpsConfig": {
        "name": Case(data, ("listops_short", "listops"), ROWS),
        "packing": Case(data, ("false", "true"), ROWS),
        "min_length": Case(data, ("20", "21"), ROWS),
        "max_length": Case(data, ("100", "90"), ROWS),
        "max_depth": Case(data, ("10", "4"), ROWS),
        "max_args": Case(data, ("10", "4"), ROWS),
        "train_rows": Case(data, ("30", "31"), ROWS),
        "eval_rows": Case(data, ("5", "6"), ROWS),
        "seed": Case(data, ("0", "1"), ROWS),
        "source": Case(data, ("offline", "lra"), ROWS, "task.source=lra needs task.path"),
        "path": Case(data, ("listops", "other_listops", "null"), LISTS, "task.source=lra needs task.path"),
        "hub_id": Case(data, ("OpenNLPLab/lra", "x"), ROWS, "task.hub_id (x) needs task.source=hub, got offline"),
        "hub_revision": Case(data, ("null", "x"), ROWS, "task.hub_revision (x) needs task.source=hub"),
        "protocol": Case(data, ("default", "lra", "s4"), LONG_ROWS),
        "supervision": Case(data, ("root", "dense"), ROWS),
        "easier": Case(
            data,
            ("[]", "[5/20/3/9]", "[5/20/3/8]", "[5/20/4/9,4/9/2/3]", "[5/20/3]"),
            ROWS,
            "task.easier ('5/20/3') must have the form min_length/max_length/max_depth/rows",
        ),
    },
    "MqarConfig": {
        "name": Case(data, ("mqar", "mqar_mix"), MQAR),
        "packing": Case(data, ("false", "true"), MQAR),
        "vocab_size": Case(data, ("20", "30"), MQAR),
        "train": Case(data, ("[16/4/30]", "[16/4/31]", "[16/3/30]", "[12/3/20,16/3/10]"), MQAR),
        "val": Case(data, ("[16/4/5]", "[16/4/6]"), MQAR),
        "test": Case(data, ("[16/4/5]", "[16/4/6]"), MQAR),
        "power": Case(data, ("0.01", "1"), MQAR),
        "filler": Case(data, ("true", "false"), MQAR),
        "seed": Case(data, ("0", "1"), MQAR),
    },
    "PathfinderConfig": {
        "name": Case(data, ("pathfinder", "pathfinder_64", "pathx"), PATHFINDER),
        "packing": Case(data, ("false", "true"), PATHFINDER),
        "easier": Case(
            data,
            ("[]", "[3/0/2]", "[3/0/3]", "[3/2/2]", "[4/0/2]", "[3/0/2,4/0/2]", "[2/0/2]"),
            PATHFINDER,
            "task.easier ('2/0/2') must have the form contour/clutter/rows",
        ),
        "contour": Case(data, ("14", "9", "6", "7"), PATHFINDER, "task.contour (7) must be 6 or 9 or 14"),
        "kind": Case(data, ("tokens", "series"), PATHFINDER),
        "seed": Case(data, ("0", "1"), PATHFINDER),
        "train_rows": Case(data, ("4", "5"), PATHFINDER),
        "eval_rows": Case(data, ("2", "3"), PATHFINDER),
        "source": Case(data, ("offline", "lra"), PATHFINDER, "task.source=lra needs task.path"),
        "path": Case(data, ("null", "nowhere"), PATHFINDER, "task.path (nowhere) needs task.source=lra, got offline"),
        "hub_id": Case(data, ("images", "other_images", "null"), SNAKES, "task.source=hub needs task.hub_id"),
        "allow_pickle": Case(data, ("false", "true"), PATHFINDER, "task.allow_pickle (true) needs task.source=lra"),
        "hub_revision": Case(data, ("null", "x"), PATHFINDER, "task.hub_revision (x) needs task.source=hub"),
        "protocol": Case(data, ("default", "lra", "s4"), (*SNAKES, "task.hub_id=images", "task.kind=series")),
    },
    "InductionConfig": {
        "name": Case(data, ("induction",), INDUCTION),
        "packing": Case(data, ("false", "true"), INDUCTION),
        "vocab_size": Case(data, ("16", "20"), INDUCTION),
        "train": Case(data, ("[16/30]", "[16/31]", "[12/30]", "[12/10,16/20]"), INDUCTION),
        "val": Case(data, ("[16/5]", "[16/6]"), INDUCTION),
        "test": Case(data, ("[16/5]", "[16/6]"), INDUCTION),
        "seed": Case(data, ("0", "1"), INDUCTION),
    },
    "SelectiveCopyConfig": {
        "name": Case(data, ("selective_copy",), COPY),
        "packing": Case(data, ("false", "true"), COPY),
        "vocab_size": Case(data, ("16", "20"), COPY),
        "train": Case(data, ("[16/4/30]", "[16/4/31]", "[16/3/30]", "[12/3/20,16/3/10]"), COPY),
        "val": Case(data, ("[16/4/5]", "[16/4/6]"), COPY),
        "test": Case(data, ("[16/4/5]", "[16/4/6]"), COPY),
        "seed": Case(data, ("0", "1"), COPY),
    },
    "SeriesConfig": {
        "name": Case(data, ("series",), SERIES),
        "packing": Case(data, ("false", "true"), SERIES),
        "dataset": Case(data, ("JapaneseVowels", "GunPoint"), SERIES[:1]),
        "path": Case(
            data,
            ("tiny_TRAIN.ts", "other_TRAIN.ts", "nowhere"),
            SERIES[:1],
            "path (nowhere) must be a folder with one pair",
        ),
        "val_fraction": Case(data, ("0.2", "0.4"), SERIES),
        "seed": Case(data, ("0", "1"), SERIES),
        "train_rows": Case(data, ("null", "8", "5"), SERIES),
        "eval_rows": Case(data, ("null", "3", "2"), SERIES),
    },
    "DnaStrandConfig": {
        "name": Case(data, ("dna_strand",), DNA),
        "packing": Case(data, ("false", "true"), DNA),
        "path": Case(data, ("genome.gbk", "null", "nowhere"), DNA, "path (nowhere) must be a GenBank file"),
        "length": Case(data, ("20", "40"), DNA),
        "min_gene": Case(data, ("60", "101"), DNA, "or more, in 3 regions of 10000 bases, got 0"),
        "val_fraction": Case(data, ("0.1", "0.25"), DNA),
        "test_fraction": Case(data, ("0.2", "0.4"), DNA),
        "seed": Case(data, ("0", "1"), DNA),
        "train_rows": Case(data, ("null", "8", "5"), DNA),
        "eval_rows": Case(data, ("null", "3", "2"), DNA),
    },
    "FilesConfig": {
        "name": Case(data, ("files",), FILES),
        "packing": Case(data, ("false", "true"), FILES),
        "path": Case(data, ("own.jsonl", "other.jsonl", "null"), FILES, "task.path must be given"),
        "revision": Case(data, ("null", "x"), FILES, "revision ('x') belongs to a data set of the Hub"),
        "input": Case(data, ("text", "tokens"), FILES),
        "label": Case(data, ("[label]", "[part]"), FILES),
        "kind": Case(data, ("bytes", "tokens", "series"), (*FILES, "task.input=tokens")),
        "target": Case(data, ("class", "labels", "numbers"), (*FILES, "task.label=[number]")),
        "split": Case(data, ("fraction", "column"), FILES),
        "val_fraction": Case(data, ("0.1", "0.2"), FILES),
        "test_fraction": Case(data, ("0.1", "0.2"), FILES),
        "split_column": Case(data, ("split", "part"), (*FILES, "task.split=column")),
        "val_path": Case(
            data,
            ("val.jsonl", "other.jsonl", "null"),
            (*FILES, "task.split=file"),
            "task.split=file needs task.val_path, task.test_path or both",
        ),
        "test_path": Case(data, ("null", "other.jsonl"), (*FILES, "task.split=file", "task.val_path=val.jsonl")),
        "seed": Case(data, ("0", "1"), FILES),
        "max_length": Case(data, ("null", "5"), FILES),
        "slices": Case(data, ("[]", "[part]"), FILES),
    },
    "TextConfig": {
        "name": Case(data, ("text", "r8"), TEXT),
        "packing": Case(data, ("false", "true"), TEXT),
        "source": Case(data, ("offline", "lra"), TEXT, "task.source=lra needs task.path"),
        "path": Case(data, ("aclImdb", "other", "null"), (*TEXT, *REVIEWS), "task.source=lra needs task.path"),
        "hub_id": Case(data, ("imdb", "nowhere"), (*TEXT, *ONLINE), "the Hub does not give nowhere"),
        "hub_revision": Case(data, ("null", "x"), TEXT, "task.hub_revision (x) needs task.source=hub, got offline"),
        "protocol": Case(data, ("default", "lra", "s4"), (*TEXT, *REVIEWS, "task.path=aclImdb")),
        "allow_pickle": Case(data, ("false", "true"), TEXT, "task.allow_pickle (true) needs task.source=lra"),
        "max_length": Case(data, ("4096", "50"), TEXT),
        "train_rows": Case(data, ("null", "20", "30"), TEXT),
        "eval_rows": Case(data, ("null", "3", "5"), TEXT),
        "seed": Case(data, ("0", "1"), TEXT),
    },
    "R8Config": {
        "name": Case(data, ("r8",), R8),
        "packing": Case(data, ("false", "true"), R8),
        "max_length": Case(data, ("512", "50"), R8),
        "train_rows": Case(data, ("null", "20", "30"), R8),
        "eval_rows": Case(data, ("null", "3", "5"), R8),
        "seed": Case(data, ("0", "1"), R8),
    },
    "RetrievalConfig": {
        "name": Case(pair_rows, ("retrieval",), PAIRS),
        "packing": Case(data, ("false", "true"), PAIRS),
        "source": Case(pair_rows, ("offline", "lra"), PAIRS, "task.source=lra needs task.path"),
        "path": Case(pair_rows, ("aan", "other_aan", "null"), (*PAIRS, *PAPERS), "task.source=lra needs task.path"),
        "hub_id": Case(pair_rows, ("OpenNLPLab/lra", "x"), PAIRS, "task.hub_id (x) needs task.source=hub, got offline"),
        "hub_revision": Case(pair_rows, ("null", "x"), PAIRS, "task.hub_revision (x) needs task.source=hub"),
        "protocol": Case(pair_rows, ("default", "lra", "s4"), (*PAIRS, *PAPERS, "task.path=aan")),
        "allow_pickle": Case(pair_rows, ("false", "true"), PAIRS, "task.allow_pickle (true) needs task.source=lra"),
        "pairs": Case(head_of_pairs, ("nli", "concat", "normed"), PAIRS),
        "max_length": Case(pair_rows, ("4000", "50"), PAIRS),
        "train_rows": Case(pair_rows, ("null", "20", "30"), PAIRS),
        "eval_rows": Case(pair_rows, ("null", "3", "5"), PAIRS),
        "seed": Case(pair_rows, ("0", "1"), PAIRS),
    },
    "DigitsConfig": {
        "name": Case(data, ("digits",)),
        "packing": Case(data, ("false", "true")),
        "train_rows": Case(data, ("null", "100", "90")),
        "eval_rows": Case(data, ("null", "20", "10")),
        "seed": Case(data, ("0", "1")),
    },
    "ImageConfig": {
        "name": Case(data, ("image",), IMAGE),
        "packing": Case(data, ("false", "true"), IMAGE),
        "source": Case(data, ("offline", "lra"), IMAGE, "task.source=lra needs task.path"),
        "path": Case(data, ("cifar", "cifar_other", "null"), CIFAR, "task.source=lra needs task.path"),
        "hub_id": Case(data, ("hub", "hub_other"), HUB),
        "hub_revision": Case(source, ("null", "x"), HUB),
        "kind": Case(data, ("tokens", "series"), IMAGE),
        "order": Case(data, ("row", "snake", "hilbert", "permuted"), IMAGE),
        "order_seed": Case(data, ("0", "1"), (*IMAGE, "task.order=permuted")),
        "protocol": Case(data, ("default", "lra", "s4"), CIFAR),
        "allow_pickle": Case(data, ("false", "true"), IMAGE, "task.allow_pickle (true) needs task.source=lra"),
        "seed": Case(data, ("0", "1"), IMAGE),
        "train_rows": Case(data, ("40", "41"), IMAGE),
        "eval_rows": Case(data, ("null", "5"), IMAGE),
    },
    "GreyConfig": {
        "name": Case(data, ("fashion", "smnist"), (*GREY, "task.path=idx")),
        "packing": Case(data, ("false", "true"), GREY),
        "path": Case(data, ("null", "idx"), GREY),
        "side": Case(data, ("14", "28", "20"), GREY, "task.side (20) must be 28 or 14"),
        "kind": Case(data, ("tokens", "series"), GREY),
        "order": Case(data, ("row", "snake", "hilbert", "permuted"), GREY),
        "order_seed": Case(data, ("0", "1"), (*GREY, "task.order=permuted")),
        "seed": Case(data, ("0", "1"), GREY),
        "train_rows": Case(data, ("null", "40"), GREY),
        "eval_rows": Case(data, ("null", "5"), GREY),
    },
}
