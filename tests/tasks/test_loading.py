"""Batches: every row once, within the budget, in an order that seed and epoch decide and a resumed run finds again."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import train_runs as runs
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from tsla.tasks.base import IGNORE
from tsla.tasks.loading import Batch, Curriculum, LengthBatches, Loader, Rows
from tsla.tasks.store import load_split, save_split

FEATURES = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
SPEC = runs.spec(256, 1000)
BUDGET = 60


def dataset(lengths: list[int], start: int = 0) -> Dataset:
    """Row r has label r; its tokens count up from r + 1."""
    rows = range(start, start + len(lengths))
    ids = [[(row + at) % 255 + 1 for at in range(n)] for row, n in zip(rows, lengths, strict=True)]
    return Dataset.from_dict({"input_ids": ids, "label": list(rows)}, features=FEATURES)


LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 30, 101)]
DATA = dataset(LENGTHS)


def batches(lengths=LENGTHS, budget=BUDGET, **options) -> LengthBatches:
    return LengthBatches(np.array(lengths, dtype=np.int64), budget, **{"seed": 0, **options})


def epoch(source: LengthBatches, number: int = 0) -> list[list[int]]:
    source.set_epoch(number)
    return list(source)


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def same(a: Batch, b: Batch) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=80),
    budget=st.integers(1, 600),
    seed=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    number=st.integers(0, 3),
)
def test_every_row_once_and_within_the_budget(lengths, budget, seed, number):
    source = batches(lengths, budget, seed=seed)
    made = epoch(source, number)
    assert sorted(flat(made)) == list(range(len(lengths)))
    assert len(made) == len(source) and all(made)
    for rows in made:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


def test_batches_are_filled_with_rows_of_like_length():
    lengths = [int(n) for n in np.random.default_rng(1).integers(20, 100, 3000)]
    made = epoch(batches(lengths, 4096))
    for rows in made:
        widths = [lengths[row] for row in rows]
        assert max(widths) - min(widths) <= 2 * (100 // 16)
    assert sum(lengths) / 4096 <= len(made) < 1.1 * sum(lengths) / 4096
    assert len(batches([10] * 30, 100)) == 3
    assert len(batches([10] * 31, 100)) == 4
    assert len(batches([10] * 30, 99)) == 4


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, number): epoch(batches(seed=seed), number) for seed in (0, 1) for number in (0, 1, 2)}
    for (seed, number), order in orders.items():
        assert epoch(batches(seed=seed), number) == order
    assert len({str(order) for order in orders.values()}) == 6
    reused = batches()
    assert [epoch(reused, number) for number in (2, 0, 2)] == [orders[0, 2], orders[0, 0], orders[0, 2]]
    assert {len(order) for order in orders.values()} == {len(batches())}
    groups = [{frozenset(rows) for rows in orders[0, number] if len(rows) > 2} for number in (0, 1)]
    assert len(groups[0] & groups[1]) <= len(groups[0]) // 3  # rows meet others, not only the batches each other
    firsts = [max(LENGTHS[row] for row in rows) for rows in orders[0, 0]]
    assert firsts != sorted(firsts)


def curriculum(kind: str, hardness: list[int], count: int, number: int = 0, **options) -> list[list[int]]:
    made = Curriculum(kind, np.array(hardness, dtype=np.int64), count)
    return epoch(batches(curriculum=made, **options), number)


@pytest.mark.parametrize(
    ("kind", "hardness"),
    [
        ("length", LENGTHS),
        ("depth", [row % 7 + 1 for row in range(101)]),
        ("stage", [row % 3 + 1 for row in range(101)]),
    ],
)
def test_a_curriculum_lets_no_row_come_before_its_time(kind, hardness, monkeypatch):
    """The limit by hand: from the easiest to the hardest, by a factor or by a number; then every row of an epoch."""
    monkeypatch.setattr("tsla.tasks.loading.LEAST", 1)
    low, high, whole = min(hardness), max(hardness), sorted(range(101))
    total = len(curriculum(kind, hardness, 1))
    seen = []
    for number in range(3):
        made = curriculum(kind, hardness, total + 7, number)
        assert len(made) == total
        for at, rows in enumerate(made, start=number * total):
            gone = min(at / (total + 7), 1)
            limit = low * (high / low) ** gone if kind == "length" else low + (high - low) * gone
            easiest = min(max(hardness[row] for row in rows) for rows in made)  # there has to be some batch
            assert max(hardness[row] for row in rows) <= max(limit, easiest if number == 0 else 0) + 1e-9
            assert len(rows) == 1 or len(rows) * max(LENGTHS[row] for row in rows) <= BUDGET
        seen.append(sorted(flat(made)))
    assert seen[0] != whole and seen[2] == whole  # an epoch as ever, once it is over
    assert len(set(seen[0])) > 20 and max(hardness[row] for row in seen[1]) == high
    assert curriculum(kind, hardness, total + 7) != curriculum(kind, hardness, total + 7, seed=1)
    assert sorted(flat(curriculum(kind, hardness, total, 1))) == whole


def test_a_curriculum_is_gone_on_with_and_shared_as_any_order():
    whole = curriculum("length", LENGTHS, 20)
    source = batches(curriculum=Curriculum("length", np.array(LENGTHS), 20))
    source.start = 9
    assert epoch(source) == whole[9:]
    ranks = [curriculum("length", LENGTHS, 20, rank=rank, world=2) for rank in (0, 1)]
    assert [ranks[at % 2][at // 2] for at in range(len(whole))] == whole


def test_a_curriculum_begins_with_more_than_one_batch():
    lengths = [2] * 1000 + [30] * 400
    made = curriculum("length", lengths, 1000, lengths=lengths, budget=60)
    firsts = {tuple(sorted(rows)) for rows in made[:60]}
    assert len(firsts) > 8 and all(lengths[row] == 2 for rows in firsts for row in rows)


def test_hardness_of_rows():
    rows = {"input_ids": [[1] * n for n in (3, 1, 2)], "label": [0, 1, 2], "depth": [4, 1, 2], "stage": [1, 2, 1]}
    made = Rows(Dataset.from_dict(rows), SPEC)
    assert made.hardness("length").tolist() == [3, 1, 2] and made.hardness("depth").tolist() == [4, 1, 2]
    assert made.hardness("stage").tolist() == [1, 2, 1] and list(made.slices) == ["depth", "stage"]
    dense = {"input_ids": [[1] * 3, [1]], "label": [[0, -100, 1], [0]], "depth": [[1, 3], [2]]}
    tokens = Rows(Dataset.from_dict(dense), runs.spec(256, 10, target="tokens"))
    assert tokens.hardness("depth").tolist() == [3, 2]
    with pytest.raises(ValueError, match=r"a curriculum of depth needs rows with a depth, which those of x lack"):
        Rows(DATA, SPEC).hardness("depth")
    alike = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"length needs rows that differ in it, and all those of x .* have 2$"):
        Rows(alike, SPEC).hardness("length")


def test_evaluation_is_sorted_and_the_same_each_time():
    source = batches(seed=None)
    made = epoch(source, 0)
    assert made == epoch(source, 5)
    widths = [max(LENGTHS[row] for row in rows) for rows in made]
    assert all(a <= b + 1 for a, b in itertools.pairwise(widths))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [0, 1])
def test_processes_share_the_batches(world, number):
    whole = epoch(batches(), number)
    ranks = [epoch(batches(rank=rank, world=world), number) for rank in range(world)]
    assert [ranks[i % world][i // world] for i in range(len(whole))] == whole  # disjoint, and nothing is lost
    assert sum(len(batches(rank=rank, world=world)) for rank in range(world)) == len(whole)
    even = [batches(rank=rank, world=world, drop_uneven=True) for rank in range(world)]
    assert {len(source) for source in even} == {len(whole) // world}
    for rank, source in enumerate(even):
        assert epoch(source, number) == ranks[rank][: len(whole) // world]


def test_evaluation_covers_all_rows_over_all_processes():
    rows = [flat(epoch(batches(seed=None, rank=rank, world=3))) for rank in range(3)]
    assert sorted(flat(rows)) == list(range(len(LENGTHS)))


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own():
    assert sorted(map(sorted, epoch(batches([5, 50, 5, 40], 12)))) == [[0, 2], [1], [3]]
    assert len(batches([7] * 9, 1)) == 9


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_their_rows(workers):
    loader = Loader(Rows(DATA, SPEC), batches(), workers=workers)
    seen: Counter[int] = Counter()
    for batch in loader:
        assert batch.inputs.dtype == torch.int64 and batch.mask.dtype == torch.bool
        assert batch.inputs.shape == batch.mask.shape and batch.mask.any(0).all()  # no column of padding alone
        for ids, mask, label, row in zip(*batch[:4], strict=True):
            assert row == label
            n = LENGTHS[int(label)]
            assert mask.tolist() == [True] * n + [False] * (len(mask) - n)
            assert ids[:n].tolist() == DATA[int(label)]["input_ids"] and not ids[n:].any()
            seen[int(label)] += 1
    assert seen == dict.fromkeys(range(len(LENGTHS)), 1)


def test_a_worker_makes_the_same_batches_in_every_epoch():
    plain, worked = (Loader(Rows(DATA, SPEC), batches(), workers=workers) for workers in (0, 1))
    for number in (0, 1):
        for loader in (plain, worked):
            loader.batches.set_epoch(number)
        assert all(same(a, b) for a, b in zip(plain, worked, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [0, 1, 7, "all but one", "all"])
def test_a_resumed_loader_goes_on_where_the_first_stopped(stop, workers):
    first = Loader(Rows(DATA, SPEC), batches(), workers=workers)
    first.batches.set_epoch(2)
    whole = list(first)
    stop = {"all but one": len(whole) - 1, "all": len(whole)}.get(stop, stop)
    running = iter(first)
    for _ in range(stop):
        next(running)
    state = first.state_dict()
    assert state == {"given": stop % len(whole)}
    second = Loader(Rows(DATA, SPEC), batches(), workers=workers)
    second.batches.set_epoch(2)
    second.load_state_dict(state)
    rest = list(second)
    assert all(same(a, b) for a, b in zip(rest, whole[stop:] or whole, strict=True))
    assert second.state_dict() == {"given": 0}
    assert len(list(second)) == len(whole)  # left out once only


def test_bytes_up_to_255():
    data = Dataset.from_dict({"input_ids": [[255, 1, 128], [254]], "label": [3, 4]}, features=FEATURES)
    batch = Rows(data, SPEC).__getitems__([0, 1])
    assert batch.inputs.tolist() == [[255, 1, 128], [254, 0, 0]]
    assert batch.targets.tolist() == [3, 4]
    assert Rows(data, SPEC)[1].inputs.tolist() == [[254]]


def test_rows_are_held_as_bytes():
    rows = Rows(DATA, SPEC)
    (inputs,) = rows.inputs
    assert [piece.dtype for piece in inputs.pieces] == [np.uint8] and inputs.pieces[0].size == sum(LENGTHS)
    held = sum(x.nbytes for own in (rows, inputs) for x in vars(own).values() if isinstance(x, np.ndarray))
    assert held == 8 * 5 * len(LENGTHS)  # pieces, starts, lengths twice, and labels


def test_rows_on_disk_stay_there(tmp_path):
    DATA.save_to_disk(str(tmp_path / "rows"))
    rows = Rows(load_from_disk(str(tmp_path / "rows")), SPEC)
    assert not any(piece.flags.owndata or piece.flags.writeable for piece in rows.inputs[0].pieces)


def test_pieces_of_a_file_are_not_put_together(tmp_path):
    """They may be more than fits into memory."""
    save_split(tmp_path, "train", [{"input_ids": [np.arange(5, dtype=np.uint8)] * 3, "label": np.arange(3)}] * 4)
    rows = Rows(load_split(tmp_path, "train"), SPEC)
    assert [len(piece) for piece in rows.inputs[0].pieces] == [15] * 4
    assert not any(piece.flags.owndata or piece.flags.writeable for piece in rows.inputs[0].pieces)
    assert rows.__getitems__([11, 0, 4]).targets.tolist() == [2, 0, 1]


PAIR = SPEC._replace(pairs="nli")
TWO = Dataset.from_dict(
    {"input_ids": [[1, 2], [3], [4, 5, 6]], "input_ids_2": [[7], [8, 9, 10, 11], [12]], "label": [0, 1, 0]},
    features=Features({**FEATURES, "input_ids_2": List(Value("uint8"))}),
)


def test_two_inputs_of_a_row_are_two_rows_of_a_batch():
    rows = Rows(TWO, PAIR)
    assert rows.lengths.tolist() == [3, 5, 4] and rows.padded.tolist() == [4, 8, 6]
    batch = rows.__getitems__([2, 1])
    assert batch.inputs.tolist() == [[4, 5, 6, 0], [3, 0, 0, 0], [12, 0, 0, 0], [8, 9, 10, 11]]
    assert batch.mask.sum(1).tolist() == [3, 1, 1, 4]
    assert batch.targets.tolist() == [0, 1] and batch.rows.tolist() == [2, 1]
    packed = Rows(TWO, PAIR, packed=True).__getitems__([2, 1])
    assert packed.inputs.tolist() == [[4, 5, 6, 3, 12, 8, 9, 10, 11]]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 5, 9] and packed.targets.tolist() == [0, 1]


def test_rows_must_have_as_many_inputs_as_the_task():
    with pytest.raises(ValueError, match=r"^rows have the inputs input_ids, input_ids_2, quiz needs 1$"):
        Rows(TWO, SPEC._replace(name="quiz"))
    with pytest.raises(ValueError, match=r"^rows have the inputs input_ids, quiz needs 2$"):
        Rows(DATA, PAIR._replace(name="quiz"))


@pytest.mark.parametrize("kind", ["shards", "slice", "selection", "joined", "shuffled", "one", "filtered"])
def test_every_kind_of_dataset(tmp_path, kind):
    DATA.save_to_disk(str(tmp_path / "rows"), num_shards=4)
    stored = load_from_disk(str(tmp_path / "rows"))
    data = {
        "shards": stored,
        "slice": stored.select(range(40, 70)),
        "selection": stored.select([9, 3, 60, 3]),
        "joined": concatenate_datasets([stored.select(range(90, 101)), DATA.select(range(5))]),
        "shuffled": stored.shuffle(seed=1),
        "one": stored.select([17]),
        "filtered": stored.select(range(20, 60)).select(range(10, 20)),
    }[kind]
    rows = Rows(data, SPEC)
    assert len(rows) == len(data)
    for at, row in enumerate(data):
        got = rows[at]
        assert got.inputs.tolist() == [row["input_ids"]] and got.targets.tolist() == [row["label"]]


@pytest.mark.parametrize("most", [1, 3, 10_000])
def test_a_batch_has_at_most_so_many_rows(most):
    free, bound = batches(), batches(batch_rows=most)
    assert sorted(flat(epoch(bound))) == sorted(flat(epoch(free)))
    assert max(map(len, epoch(bound))) == min(most, max(map(len, epoch(free))))
    assert all(len(rows) * max(LENGTHS[row] for row in rows) <= BUDGET or len(rows) == 1 for rows in epoch(bound))


def test_no_rows_at_all():
    rows = Rows(DATA.select([]), SPEC)
    source = LengthBatches(rows.lengths, BUDGET, seed=0)
    assert len(rows) == len(source) == 0 and list(source) == []
    loader = Loader(rows, source)
    assert list(loader) == [] and loader.state_dict() == {"given": 0}


def test_threads_may_share_the_rows():
    rows = Rows(DATA, SPEC)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(rows.__getitems__, [[i, i + 1] for i in range(100)]))
    assert [batch.targets.tolist() for batch in made] == [[i, i + 1] for i in range(100)]


@pytest.mark.parametrize("target", ["class", "tokens"])
def test_packed_rows_are_the_padded_ones_without_padding(target):
    labels = [[IGNORE if at % 3 else row + at for at in range(n)] for row, n in enumerate(LENGTHS)]
    kinds = Features({"input_ids": List(Value("uint8")), "label": List(Value("int32"))})
    tokens = Dataset.from_dict({"input_ids": DATA["input_ids"], "label": labels}, features=kinds)
    data, spec = (DATA, SPEC) if target == "class" else (tokens, SPEC._replace(target="tokens"))
    for rows in ([3, 0, 50], [7], list(range(101))):
        padded, packed = Rows(data, spec).__getitems__(rows), Rows(data, spec, packed=True).__getitems__(rows)
        assert padded.cu_seqlens is None and packed.mask.all()
        assert packed.mask.shape == packed.inputs.shape == (1, sum(LENGTHS[row] for row in rows))
        assert packed.cu_seqlens.tolist() == [0, *itertools.accumulate(LENGTHS[row] for row in rows)]
        assert torch.equal(packed.inputs[0], padded.inputs[padded.mask])
        assert torch.equal(packed.rows, padded.rows)
        expected = padded.targets if target == "class" else padded.targets[padded.mask][None]
        assert torch.equal(packed.targets, expected)
        for batch in (padded, packed):
            places = (batch.targets.flatten() != IGNORE).nonzero()[:, 0]
            assert batch.scored is None if target == "class" else torch.equal(batch.scored, places)


def test_packed_series():
    series = {"values": [[0.0, 1.0], [2.0], [3.0, 4.0, 5.0]], "label": [0, 1, 2]}
    spec = runs.spec(None, channels=1, input_mean=(1.0,), input_std=(2.0,))
    batch = Rows(Dataset.from_dict(series), spec, packed=True).__getitems__([2, 0])
    assert batch.inputs.flatten().tolist() == [1.0, 1.5, 2.0, -0.5, 0.0] and batch.inputs.shape == (1, 5, 1)
    moved = batch.to(torch.device("meta"))
    assert {x.device.type for x in moved[:5]} == {"meta"} and batch._replace(cu_seqlens=None).to(
        "meta"
    ).cu_seqlens is None
