"""The options of every task, one dataclass for each kind of data; `TaskConfig`, last, is the list of them."""

# ruff: noqa: RUF009 - `option` makes a dataclass field, and a new list for each config

from dataclasses import dataclass

from tsla.config.options import option

LISTOPS = ("listops", "listops_medium", "listops_short")
MQAR = ("mqar", "mqar_mix")
GREY = ("fashion", "smnist")
SOURCES = ("offline", "lra", "hub")
PICKLES = "for source=lra: path may hold TASK.{train,dev,test}.pickle; arrays of numbers are read, no code is run"
PROTOCOLS = ("default", "lra", "s4")
LRA_HUB = "OpenNLPLab/lra"  # on the Hub, files of Long Range Arena
PATHFINDER = ("pathfinder", "pathfinder_64", "pathx")
SERIES = ("ACSF1", "ArrowHead", "BasicMotions", "Covid3Month_disc", "GunPoint", "ItalyPowerDemand", "JapaneseVowels",
          "OSULeaf", "PickupGestureWiimoteZ")  # fmt: skip


@dataclass
class TaskOptions:
    """The options of every task."""

    name: str = option("", "the task")
    packing: bool = option(False, "rows of a training batch stand one after another, not padded to the longest")

    def image(self) -> tuple[int, int] | None:
        """Height and width of the images that rows are; None if they are none."""
        return None


@dataclass
class SourcedConfig(TaskOptions):
    """What the tasks of Long Range Arena have in common: whose rows, by whose rules, and how many of them."""

    source: str = option("offline", "of the rows: made or found here, your own files, the Hub", choices=SOURCES)
    path: str | None = option(None, "for source=lra, which needs it: a folder with the data")
    hub_id: str | None = option(None, "for source=hub: the data set")
    hub_revision: str | None = option(None, "for source=hub: a branch, tag or commit")
    protocol: str = option("default", "whose splits, tokens and length: ours, LRA's or S4's; see docs/lra.md",
                           choices=PROTOCOLS)  # fmt: skip
    train_rows: int | None = option(None, "rows of the training split; null: all", low=1)
    eval_rows: int | None = option(None, "rows of the validation and of the test split; null: all", low=1)
    seed: int = option(0, "of what is generated, drawn or held out, apart from the run's seed", low=0)


@dataclass
class ListOpsConfig(SourcedConfig):
    """ListOps as Long Range Arena defines it, generated here or read from its files."""

    name: str = option("listops", "which size; its numbers stand in configs/task", choices=LISTOPS)
    min_length: int = option(500, "generated rows are longer than this, in tokens", low=1)
    max_length: int = option(2000, "generated rows are shorter than this, in tokens", low=3)
    max_depth: int = option(10, "depth at which every node is a digit; the root has depth 1", low=2)
    max_args: int = option(10, "most arguments of an operator", low=2)
    hub_id: str | None = option(LRA_HUB, "for source=hub: a data set that holds basic_{train,val,test}.tsv")
    supervision: str = option("root", "what is learnt: the value of the whole, or, at every closing bracket, of what "
                              "it closes", choices=("root", "dense"))  # fmt: skip
    easier: list[str] = option([], "more training rows, generated within other bounds, each min_length/max_length/"
                               "max_depth/rows, such as 20/100/5/24000; see trainer.curriculum")  # fmt: skip
    train_rows: int | None = option(None, "rows of the training split; null: all, or 96000 generated", low=1)
    eval_rows: int | None = option(None, "rows of validation and of test; null: all, or 2000 generated, and 10000 "
                                   "to test listops_short", low=1)  # fmt: skip


@dataclass
class DigitsConfig(TaskOptions):
    """The 8x8 digits of scikit-learn as sequences of 64 pixels."""

    name: str = option("digits", "the task", choices=("digits",))
    train_rows: int | None = option(None, "rows of the training split at most; null takes all", low=1)
    eval_rows: int | None = option(None, "rows of the validation and of the test split at most; null takes all", low=1)
    seed: int = option(0, "of the split into train, val and test", low=0)

    def image(self) -> tuple[int, int]:
        return 8, 8


@dataclass
class PixelsConfig(TaskOptions):
    """What tasks of images have in common that are read pixel by pixel."""

    kind: str = option("tokens", "a pixel is a token (its grey value) or a number of a series",
                       choices=("tokens", "series"))  # fmt: skip
    order: str = option("row", "of the pixels: row by row, every other row backwards, along Hilbert's curve, or one "
                        "random order", choices=("row", "snake", "hilbert", "permuted"))  # fmt: skip
    order_seed: int = option(0, "of order=permuted", low=0)
    seed: int = option(0, "of the draw of validation rows, apart from the run's seed", low=0)
    train_rows: int | None = option(None, "rows of the training split, the first of a fixed shuffle; null: all", low=1)
    eval_rows: int | None = option(None, "rows of the validation and of the test split, likewise", low=1)


@dataclass
class ImageConfig(PixelsConfig, SourcedConfig):
    """Image of Long Range Arena, CIFAR-10 in grey, 32 by 32; offline, Fashion-MNIST in its place (image_fashion)."""

    name: str = option("image", "the task", choices=("image",))
    hub_id: str | None = option("uoft-cs/cifar10", "for source=hub: the data set")
    allow_pickle: bool = option(False, PICKLES)

    def image(self) -> tuple[int, int] | None:
        return (32, 32) if self.order == "row" else None


@dataclass
class GreyConfig(PixelsConfig):
    """Sequential Fashion-MNIST and MNIST; of the latter 5000 images come in a package (smnist_5k)."""

    name: str = option("fashion", "which images", choices=GREY)
    path: str | None = option(None, "a folder with the four idx files to read instead of the package's")
    side: int = option(28, "pixels of a row: 28, or 14 by means of 2 by 2", low=14, high=28)

    def image(self) -> tuple[int, int] | None:
        return (self.side, self.side) if self.order == "row" else None


@dataclass
class MqarConfig(TaskOptions):
    """Multi-query associative recall, generated. Segments are written as length/pairs/rows."""

    name: str = option("mqar", "one kind of rows, or the standard mix of lengths; see configs/task", choices=MQAR)
    vocab_size: int = option(256, "tokens; one half are keys, the other values", low=4)
    train: list[str] = option(["64/4/20000"], "segments of the training split")
    val: list[str] = option(["64/4/1000"], "segments of the validation split")
    test: list[str] = option(["64/4/3000"], "segments of the test split")
    power: float = option(0.01, "queries stand near the pairs at small values, anywhere at 1", above=0)
    filler: bool = option(True, "random tokens between the queries instead of zeros")
    seed: int = option(0, "of the rows, apart from the run's seed", low=0)


@dataclass
class InductionConfig(TaskOptions):
    """Induction heads, generated: what followed a special token. Segments are written as length/rows."""

    name: str = option("induction", "the task", choices=("induction",))
    vocab_size: int = option(16, "tokens, the last of them the special one", low=4, high=65_535)
    train: list[str] = option(["256/20000"], "segments of the training split")
    val: list[str] = option(["256/1000"], "segments of the validation split")
    test: list[str] = option(["256/1000", "512/1000", "1024/1000"], "segments of the test split")
    seed: int = option(0, "of the rows, apart from the run's seed", low=0)


@dataclass
class SelectiveCopyConfig(TaskOptions):
    """Selective copying, generated: the tokens among noise, in order. Segments are written as length/data/rows."""

    name: str = option("selective_copy", "the task", choices=("selective_copy",))
    vocab_size: int = option(16, "tokens: noise, the one that asks, and data", low=4, high=65_535)
    train: list[str] = option(["256/8/20000"], "segments of the training split")
    val: list[str] = option(["256/8/1000"], "segments of the validation split")
    test: list[str] = option(["256/8/1000", "512/8/1000"], "segments of the test split")
    seed: int = option(0, "of the rows, apart from the run's seed", low=0)


@dataclass
class SeriesConfig(TaskOptions):
    """Real-valued series of the UCR and UEA archives, from the package aeon, or your own pair of .ts files."""

    name: str = option("series", "the task", choices=("series",))
    dataset: str = option("JapaneseVowels", "which of those in the package", choices=SERIES)
    path: str | None = option(
        None, "a folder with one NAME_TRAIN.ts and NAME_TEST.ts, or the first file, to read instead"
    )
    val_fraction: float = option(0.2, "of the training rows, for validation", above=0, high=0.9)
    seed: int = option(0, "of the draw of validation rows, apart from the run's seed", low=0)
    train_rows: int | None = option(None, "rows of the training split at most; null keeps all", low=1)
    eval_rows: int | None = option(None, "rows of the validation and of the test split at most; null keeps all", low=1)


@dataclass
class DnaStrandConfig(TaskOptions):
    """The strand that a gene is on, from windows of the genome in the package any2fasta-examples, or of your own."""

    name: str = option("dna_strand", "the task", choices=("dna_strand",))
    path: str | None = option(None, "a GenBank file to read instead, gzipped or not")
    length: int = option(512, "bases of a window", low=6, high=10_000)
    min_gene: int = option(600, "genes of fewer bases are left out", low=12)
    val_fraction: float = option(0.1, "of the regions of 10,000 bases, for validation", above=0, high=1)
    test_fraction: float = option(0.2, "of the regions, for the test", above=0, high=1)
    seed: int = option(0, "of windows and splits, apart from the run's seed", low=0)
    train_rows: int | None = option(None, "rows of the training split at most; null keeps all", low=1)
    eval_rows: int | None = option(None, "rows of the validation and of the test split at most; null keeps all", low=1)


@dataclass
class FilesConfig(TaskOptions):
    """Your own data: files, folders of texts, a saved data set or one of the Hub. See `tsla data inspect`."""

    name: str = option("files", "the task", choices=("files",))
    path: str | None = option(None, "a CSV, TSV, JSONL or Parquet file, a folder, or an id on the Hub; must be given")
    revision: str | None = option(None, "of a data set on the Hub: a branch, tag or commit")
    input: str = option("text", "the column to learn from")
    label: list[str] = option(["label"], "the columns to learn; several where target is labels or numbers")
    kind: str = option("bytes", "what inputs are", choices=("bytes", "tokens", "series"))
    target: str = option("class", "one class, any number of labels, or numbers", choices=("class", "labels", "numbers"))
    split: str = option("fraction", "drawn, by a column or the data's own parts, or by files",
                        choices=("fraction", "column", "file"))  # fmt: skip
    val_fraction: float = option(0.1, "rows for validation, where the data itself does not say which", above=0, high=1)
    test_fraction: float = option(0.1, "rows for the test, where the data itself does not say which", above=0, high=1)
    split_column: str = option("split", "for split=column: holds train, val or test; data in parts needs none")
    val_path: str | None = option(None, "for split=file: rows for validation")
    test_path: str | None = option(None, "for split=file: rows for the test")
    max_length: int | None = option(None, "longer inputs lose their end; null keeps all", low=1)
    slices: list[str] = option([], "further columns, for whose values scores are told")
    seed: int = option(0, "of the drawn splits, apart from the run's seed", low=0)


@dataclass
class TextConfig(SourcedConfig):
    """Text of Long Range Arena, reviews of IMDb byte by byte; offline 20 Newsgroups in its place, and named so."""

    name: str = option("text", "the task", choices=("text",))
    hub_id: str | None = option("stanfordnlp/imdb", "for source=hub: the data set")
    allow_pickle: bool = option(False, PICKLES)
    max_length: int = option(4096, "longer texts lose their end, in tokens", low=1)


@dataclass
class R8Config(TaskOptions):
    """News of Reuters (R8) in eight classes, byte by byte."""

    name: str = option("r8", "the task", choices=("r8",))
    max_length: int = option(512, "longer texts lose their end, in bytes", low=1)
    train_rows: int | None = option(None, "rows of the training split at most; null takes all", low=1)
    eval_rows: int | None = option(None, "rows of the validation and of the test split at most; null takes all", low=1)
    seed: int = option(0, "of the order of rows and of what is held out, apart from the run's seed", low=0)


@dataclass
class RetrievalConfig(SourcedConfig):
    """Retrieval of Long Range Arena, pairs of papers; offline pairs of halves of documents, and named so."""

    name: str = option("retrieval", "the task", choices=("retrieval",))
    hub_id: str | None = option(LRA_HUB, "for source=hub: a data set that holds new_aan_pairs.{train,eval,test}.tsv")
    allow_pickle: bool = option(False, PICKLES)
    pairs: str = option("nli", "the head over vectors a and b of the two: of [a, b, a - b, a b] or [a, b]; normed is "
                        "nli of vectors standardised over the batch", choices=("nli", "concat", "normed"))  # fmt: skip
    max_length: int = option(4000, "longer documents lose their end, in tokens", low=1)


@dataclass
class PathfinderConfig(SourcedConfig):
    """Pathfinder: are two markers on one snake? Images generated here, or read from a folder of Long Range Arena."""

    name: str = option("pathfinder", "images of 32, 64 or 128 pixels a side; see configs/task", choices=PATHFINDER)
    contour: int = option(14, "paddles of a snake: 6, 9 or 14; above 32 pixels 14", low=6, high=14)
    kind: str = option("tokens", "pixels are ids of grey values, or numbers", choices=("tokens", "series"))
    hub_id: str | None = option(None, "for source=hub, which needs it: a data set with the columns image and label")
    allow_pickle: bool = option(False, PICKLES)
    easier: list[str] = option([], "more training rows, generated, each contour/clutter/rows, such as 3/0/20000, the "
                               "clutter in paddles; see trainer.curriculum")  # fmt: skip
    train_rows: int | None = option(None, "rows of the training split; null is all, 160000", low=1, high=160_000)
    eval_rows: int | None = option(None, "rows of validation and of test; null is all, 20000", low=1, high=20_000)

    def image(self) -> tuple[int, int]:
        side = {"pathfinder": 32, "pathfinder_64": 64, "pathx": 128}[self.name]
        return side, side


# Tasks of images, as long as their pixels are read row by row.
IMAGES = ("digits", "image", "fashion", "smnist", *PATHFINDER)
TaskConfig = (
    ListOpsConfig | DigitsConfig | ImageConfig | GreyConfig | PathfinderConfig | MqarConfig | InductionConfig
    | SelectiveCopyConfig | TextConfig | R8Config | RetrievalConfig | SeriesConfig | DnaStrandConfig | FilesConfig
)  # fmt: skip
