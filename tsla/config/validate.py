"""What single options cannot tell: combinations that do not work. Says so before torch is imported or data touched."""

from collections.abc import Iterator

from tsla.config.mixers import HeadsConfig, OwnHeadsConfig
from tsla.config.schema import (
    CausalPretrainConfig,
    Config,
    EncoderConfig,
    PretrainOptions,
    VisionConfig,
    members,
)
from tsla.config.tasks import (
    IMAGES,
    LISTOPS,
    PATHFINDER,
    DnaStrandConfig,
    FilesConfig,
    GreyConfig,
    ImageConfig,
    InductionConfig,
    ListOpsConfig,
    MqarConfig,
    PathfinderConfig,
    PixelsConfig,
    RetrievalConfig,
    SelectiveCopyConfig,
    SeriesConfig,
    SourcedConfig,
    TextConfig,
)

RANDOM_TOKENS = (MqarConfig, InductionConfig, SelectiveCopyConfig)  # tasks whose rows are made of them


def find_problems(config: Config) -> list[str]:
    """Every problem of a config whose single options are fine, in the order of its groups."""
    return [*_task(config), *_mixer(config), *_model(config), *_optim(config), *_trainer(config), *_pretrain(config),
            *_frozen(config)]  # fmt: skip


def _task(config: Config) -> Iterator[str]:
    task = config.task
    if isinstance(task, SourcedConfig):
        yield from _source(task)
    if isinstance(task, ListOpsConfig):
        yield from _listops(task)
    if isinstance(task, MqarConfig):
        for split in ("train", "val", "test"):
            yield from _segments(task, split)
    if isinstance(task, InductionConfig | SelectiveCopyConfig):
        for split in ("train", "val", "test"):
            yield from _recall(task, split)
    if isinstance(task, SeriesConfig) and task.path is not None and task.dataset != "JapaneseVowels":
        yield f"task.dataset ({task.dataset}) is of the package: leave it out where task.path ({task.path}) is read"
    if isinstance(task, DnaStrandConfig):
        yield from _dna(task)
    if isinstance(task, FilesConfig):
        yield from _files(task)
    if isinstance(task, PathfinderConfig):
        yield from _pathfinder(task)
    if isinstance(task, PixelsConfig):
        yield from _pixels(task)


def _pixels(task: PixelsConfig) -> Iterator[str]:
    if task.order_seed and task.order != "permuted":
        yield f"task.order_seed ({task.order_seed}) needs task.order=permuted, got {task.order}"
    if isinstance(task, GreyConfig) and task.side not in (14, 28):
        yield f"task.side ({task.side}) must be 28 or 14"
    if isinstance(task, ImageConfig) and task.protocol != "default" and task.seed:
        yield f"task.seed ({task.seed}) draws nothing: task.protocol={task.protocol} says which rows validate"


HOLDS: dict[type[SourcedConfig], str] = {
    ListOpsConfig: "the unpacked release of Long Range Arena, or its folder listops-1000",
    ImageConfig: "a folder with CIFAR-10, the binary or the Python version",
    TextConfig: "an aclImdb folder, or one that holds it",
    RetrievalConfig: "the unpacked release of Long Range Arena, or its folder tsv_data",
    PathfinderConfig: "the unpacked release of Long Range Arena, or its folder of these images",
}


def _source(task: SourcedConfig) -> Iterator[str]:
    if task.source == "lra" and not task.path:
        yield f"task.source=lra needs task.path: {HOLDS[type(task)]}"
    if task.source == "hub" and not task.hub_id:
        yield "task.source=hub needs task.hub_id: the data set"
    for name, needed in (("path", "lra"), ("hub_id", "hub"), ("hub_revision", "hub")):
        if task.source != needed and (value := getattr(task, name)) != getattr(type(task)(), name):
            yield f"task.{name} ({value}) needs task.source={needed}, got {task.source}"
    if task.protocol != "default" and task.source == "offline" and not isinstance(task, ListOpsConfig):
        yield (f"task.protocol={task.protocol} is of Long Range Arena's data, and task.source=offline has others: "
               "choose task.source lra or hub, or task.protocol=default")  # fmt: skip
    dumped = ImageConfig | TextConfig | RetrievalConfig | PathfinderConfig
    if isinstance(task, dumped) and task.allow_pickle and task.source != "lra":
        yield f"task.allow_pickle (true) needs task.source=lra, got {task.source}"
    given = isinstance(task, RetrievalConfig | ListOpsConfig) and task.source != "offline"
    if given and task.seed and task.train_rows is None and task.eval_rows is None:
        yield (f"task.seed ({task.seed}) changes nothing for task.source={task.source}, whose rows are given, unless "
               "task.train_rows or task.eval_rows takes some of them")  # fmt: skip


def _listops(task: ListOpsConfig) -> Iterator[str]:
    if task.min_length + 1 >= task.max_length:
        yield f"task.min_length ({task.min_length}) must be below task.max_length - 1 ({task.max_length - 1})"
    if task.name != "listops" and (task.source != "offline" or task.protocol != "default"):
        yield f"task.source={task.source} and task.protocol={task.protocol} need task=listops, got {task.name}"
    elif task.source != "offline":
        for name in ("min_length", "max_length", "max_depth", "max_args"):
            if getattr(task, name) != getattr(ListOpsConfig(), name):
                yield f"task.{name} ({getattr(task, name)}) needs task.source=offline: it is of the generator"
    for text in task.easier:
        parts = _counts(text, 4)
        if not all(parts) or parts[0] + 1 >= parts[1] or parts[2] < 2:
            yield (f"task.easier ({text!r}) must have the form min_length/max_length/max_depth/rows, such as "
                   "20/100/5/24000, the depth at least 2")  # fmt: skip


def _counts(text: str, count: int) -> list[int]:
    """The numbers of an entry ``a/b/...``; zeros where it is none."""
    parts = text.split("/")
    return [int(part) for part in parts] if len(parts) == count and all(map(str.isdecimal, parts)) else [0] * count


def _pathfinder(task: PathfinderConfig) -> Iterator[str]:
    contours = (6, 9, 14) if task.name == "pathfinder" else (14,)
    if task.contour not in contours:
        yield f"task.contour ({task.contour}) must be {' or '.join(map(str, contours))} for task={task.name}"
    if task.source != "offline" and task.seed:
        yield f"task.seed ({task.seed}) needs task.source=offline: the split of task.source={task.source} is fixed"
    if task.protocol == "s4" and task.kind != "series":
        yield "task.protocol=s4 needs task.kind=series: it is of pixels as numbers, its split is that of the default"
    for text in task.easier:
        contour, _, rows = _counts(text, 3)
        if not 3 <= contour <= 14 or not rows:
            yield (f"task.easier ({text!r}) must have the form contour/clutter/rows, such as 3/0/20000, the contour "
                   "from 3 to 14")  # fmt: skip


def _files(task: FilesConfig) -> Iterator[str]:
    if not task.path:
        yield ("task.path must be given: a CSV, JSONL or Parquet file, a folder of texts, a saved data set, "
               "or an id on the Hub")  # fmt: skip
    if not task.label or len(set(task.label)) < len(task.label):
        yield f"task.label ({', '.join(task.label)}) must name one column, or several different ones"
    elif task.target == "class" and len(task.label) > 1:
        yield f"task.label ({', '.join(task.label)}) must be one column for task.target=class: or use labels or numbers"
    if task.input in task.label:
        yield f"task.input ({task.input}) must not be in task.label ({', '.join(task.label)})"
    if len(set(task.slices)) < len(task.slices) or set(task.slices) & {"input_ids", "values", "label", "length"}:
        yield (f"task.slices ({', '.join(task.slices)}) must be different columns, none called input_ids, values, "
               "label or length")  # fmt: skip
    if task.val_fraction + task.test_fraction >= 1:
        yield (f"task.val_fraction ({task.val_fraction}) and task.test_fraction ({task.test_fraction}) must leave rows "
               "to train: their sum must be below 1")  # fmt: skip
    if task.split == "file" and task.val_path is None and task.test_path is None:
        yield "task.split=file needs task.val_path, task.test_path or both"
    for name in ("val_path", "test_path"):
        if task.split != "file" and getattr(task, name) is not None:
            yield f"task.{name} ({getattr(task, name)}) needs task.split=file, got {task.split}"
    if task.split != "column" and task.split_column != "split":
        yield f"task.split_column ({task.split_column}) needs task.split=column, got {task.split}"


def _segments(task: MqarConfig, split: str) -> Iterator[str]:
    segments = getattr(task, split)
    if not segments:
        yield f"task.{split} ([]) must name at least one segment, such as [64/4/1000]"
    for text in segments:
        parts = text.split("/")
        length, pairs, rows = map(int, parts) if len(parts) == 3 and all(map(str.isdecimal, parts)) else (0, 0, 0)
        if not rows or not pairs or length % 2 or 4 * pairs > length:
            yield (f"task.{split} ({text!r}) must have the form length/pairs/rows, such as 64/4/1000, "
                   "the length even and at least 4 * pairs")  # fmt: skip
        elif task.vocab_size <= length or pairs > task.vocab_size // 2 - 1:
            yield f"task.vocab_size ({task.vocab_size}) must be above the length and twice the pairs of {text}"


def _recall(task: InductionConfig | SelectiveCopyConfig, split: str) -> Iterator[str]:
    copying = isinstance(task, SelectiveCopyConfig)
    form = "length/data/rows, such as 256/8/1000" if copying else "length/rows, such as 256/1000"
    segments = getattr(task, split)
    if not segments:
        yield f"task.{split} ([]) must name at least one segment: {form}"
    for text in segments:
        parts = text.split("/")
        fits = len(parts) == (3 if copying else 2) and all(part.isdecimal() and int(part) for part in parts)
        if not fits or int(parts[0]) < (int(parts[1]) if copying else 3):
            least = "the length at least the data tokens" if copying else "the length at least 3"
            yield f"task.{split} ({text!r}) must have the form {form}, {least}"


def _dna(task: DnaStrandConfig) -> Iterator[str]:
    if task.min_gene < task.length + 6:
        yield (f"task.min_gene ({task.min_gene}) must be at least task.length + 6 ({task.length + 6}): the first and "
               "last codon are left out")  # fmt: skip
    if task.val_fraction + task.test_fraction >= 1:
        yield (f"task.val_fraction ({task.val_fraction}) and task.test_fraction ({task.test_fraction}) must leave "
               "regions to train: their sum must be below 1")  # fmt: skip


def _mixer(config: Config) -> Iterator[str]:
    mixer, model = config.mixer, config.model
    yield from _directions(config)
    yield from mixer.problems(model.dim, model.causal)
    if not isinstance(mixer, HeadsConfig):
        return
    far, kv = mixer.heads - mixer.local_heads, mixer.kv_heads or 1
    if far < 1:
        yield f"mixer.local_heads ({mixer.local_heads}) must be below mixer.heads ({mixer.heads})"
    if far % kv or mixer.local_heads % kv:
        parts = f"{far} and {mixer.local_heads} local" if mixer.local_heads else f"{mixer.heads}"
        yield f"mixer.kv_heads ({mixer.kv_heads}) must divide the heads ({parts})"
    if (mixer.value_dim is None or mixer.head_dim is None) and model.dim % mixer.heads:
        yield f"mixer.heads ({mixer.heads}) must divide model.dim ({model.dim}), or give mixer.head_dim and value_dim"
        return
    if model.positions == "rotary" and (mixer.head_dim or model.dim // mixer.heads) % 2:
        yield f"model.positions=rotary needs an even head dim, got {mixer.head_dim or model.dim // mixer.heads}"
    width = mixer.heads * (mixer.value_dim or model.dim // mixer.heads)
    if not mixer.output_projection and width != model.dim:
        yield f"mixer.output_projection=false needs heads * value_dim ({width}) equal to model.dim ({model.dim})"


def _directions(config: Config) -> Iterator[str]:
    causal, known = config.model.causal, members("mixer")
    for name in dict.fromkeys((config.mixer.name, *config.model.layers)):
        if ("causal" if causal else "bidirectional") not in (able := known[name].directions):
            yield f"mixer={name} needs model.causal={str(not causal).lower()}: it is {', '.join(able)} only"


def _vision(config: Config, model: VisionConfig) -> Iterator[str]:
    image = config.task.image()
    if image is None and config.task.name in IMAGES:
        yield "model=vision needs task.order=row: in another order the pixels are no image"
    elif image is None:
        yield (f"model=vision needs a task of images ({', '.join(IMAGES)}), which task={config.task.name} is not: "
               "choose another task or model=encoder")  # fmt: skip
    elif any(side % model.patch_size for side in image):
        yield (f"model.patch_size ({model.patch_size}) must divide the images of task={config.task.name}, "
               f"{image[0]} x {image[1]} pixels")  # fmt: skip
    if model.positions == "sinusoidal" and model.dim % 4:
        yield f"model.dim ({model.dim}) must be a multiple of 4 for sinusoidal positions of row and column"


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if isinstance(model, VisionConfig):
        yield from _vision(config, model)
    elif model.positions == "sinusoidal" and model.dim % 2:
        yield f"model.dim ({model.dim}) must be even for sinusoidal positions"
    if isinstance(model, EncoderConfig) and model.bracket_depth and not isinstance(config.task, ListOpsConfig):
        yield f"model.bracket_depth=true needs a task of brackets ({', '.join(LISTOPS)}), got {config.task.name}"
    if isinstance(model, EncoderConfig) and model.conv_embedding and model.dim < 4:
        yield f"model.dim ({model.dim}) must be at least 4 for model.conv_embedding=true"
    if model.conv_residual and not model.short_conv:
        yield "model.conv_residual=true needs a convolution: model.short_conv above 0"
    if config.task.packing and isinstance(model, VisionConfig):
        yield "task.packing=true changes nothing for model=vision: all images have as many pixels"
    if config.task.packing and model.pool == "cls":
        yield "model.pool=cls puts a token before a row, and task.packing=true leaves no room: use mean or attention"
    if model.pool == "cls" and model.causal:
        yield "model.pool=cls puts a token first, where model.causal=true sees nothing: use mean or attention"
    if isinstance(config.task, MqarConfig) and not isinstance(model, VisionConfig) and not model.causal:
        yield f"task={config.task.name} needs model.causal=true: a later query must not give a value away"
    scores_tokens = isinstance(config.task, RANDOM_TOKENS)
    scores_tokens |= isinstance(config.task, ListOpsConfig) and config.task.supervision == "dense"
    if scores_tokens and model.pool != "mean" and not isinstance(model, VisionConfig):
        yield f"model.pool={model.pool} changes nothing for task={config.task.name}, which scores tokens"
    if len(model.layers) > model.depth:
        yield f"model.layers names {len(model.layers)} layers, but model.depth is {model.depth}"
    known = members("mixer")
    others = [name for name in model.layers if name != config.mixer.name and issubclass(known[name], HeadsConfig)]
    if model.layers and config.mixer.name not in model.layers:  # whose options would change nothing
        yield (f"model.layers ({', '.join(model.layers)}) leaves out mixer={config.mixer.name}: "
               f"choose one of {', '.join(dict.fromkeys(model.layers))} as mixer")  # fmt: skip
    elif others and not isinstance(config.mixer, HeadsConfig):
        yield f"model.layers={model.layers} needs the heads of a mixer: choose one of {', '.join(others)} as mixer"
    own = [name for name in dict.fromkeys(model.layers) if issubclass(known[name], OwnHeadsConfig)]
    if own and isinstance(config.mixer, HeadsConfig) and model.dim % config.mixer.heads:  # which have no head_dim
        yield (f"mixer.heads ({config.mixer.heads}) must divide model.dim ({model.dim}) "
               f"for the layers of {' and '.join(own)}")  # fmt: skip


def _trainer(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.compile and config.task.packing:
        yield "trainer.compile=true and task.packing=true: packed batches have ever new shapes, each compiled anew"
    yield from _curriculum(config)
    if trainer.max_steps is None and trainer.max_epochs is None and trainer.max_minutes is None:
        yield "give trainer.max_steps, trainer.max_epochs or trainer.max_minutes: training needs an end"


def _curriculum(config: Config) -> Iterator[str]:
    kind, steps = config.trainer.curriculum, config.trainer.curriculum_steps
    if kind == "none" and steps is not None:
        yield f"trainer.curriculum_steps ({steps}) needs trainer.curriculum=length, depth or stage"
    if kind != "none" and steps is None:
        yield f"trainer.curriculum={kind} needs trainer.curriculum_steps: how many until all rows may come"
    if kind == "depth" and not isinstance(config.task, ListOpsConfig):
        yield f"trainer.curriculum=depth needs a task of trees ({', '.join(LISTOPS)}), got {config.task.name}"
    if kind == "stage" and not getattr(config.task, "easier", None):
        yield f"trainer.curriculum=stage needs task.easier ({', '.join((*LISTOPS, *PATHFINDER))}): what comes first"


def _optim(config: Config) -> Iterator[str]:
    if config.optim.decay == "rsqrt" and config.optim.final_lr:
        yield f"optim.final_lr ({config.optim.final_lr}) needs optim.decay=cosine, got rsqrt"
    if config.optim.decay == "rsqrt" and not config.optim.warmup_steps:
        yield "optim.decay=rsqrt needs optim.warmup_steps above 0: the rate falls from there"


def _pretrain(config: Config) -> Iterator[str]:
    if not isinstance(config.pretrain, PretrainOptions):
        return
    asked = f"pretrain={config.pretrain.name}"
    if isinstance(config.model, VisionConfig):
        yield f"{asked} needs model=encoder: it asks for tokens, and those of model=vision are patches"
    if isinstance(config.task, RANDOM_TOKENS):
        yield (f"{asked} has nothing to learn from task={config.task.name}: its tokens are drawn at random, and hardly "
               "any can be told from the others")  # fmt: skip
    if isinstance(config.pretrain, CausalPretrainConfig) and not config.model.causal:
        yield f"{asked} needs model.causal=true: a token that sees the next one has nothing to tell"


def _frozen(config: Config) -> Iterator[str]:
    if config.frozen and getattr(config.mixer, "crossover", None) is None:
        yield f"frozen ({', '.join(config.frozen)}) needs a number at mixer.crossover"
    if len(set(config.frozen)) < len(config.frozen):
        yield f"frozen ({', '.join(config.frozen)}) must name an option once"
