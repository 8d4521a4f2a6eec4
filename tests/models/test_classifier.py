"""The classifier as a whole: padding, order, causality and shapes, whatever it is made of."""

import itertools

import pytest
import torch
from torch import Tensor

from tsla.mixers import GatedConv, HeadSplit, Mixer, NoMixer, SoftmaxAttention, TaylorAttention, WindowAttention
from tsla.models import Encoder, SequenceClassifier

DIM, LENGTH, REAL = 8, 9, 6
POSITIONS = ("none", "learned", "sinusoidal", "rotary")
POOLS = ("mean", "cls", "attention")
HEADS = {"heads": 2, "head_dim": 4, "value_dim": 4}


def split(causal: bool, rotary: bool) -> Mixer:
    part = {"heads": 1, "head_dim": 4, "value_dim": 4, "output_projection": False, "causal": causal, "rotary": rotary}
    return HeadSplit(TaylorAttention(DIM, **part), WindowAttention(DIM, window=2, **part))


MIXERS = {
    "none": lambda causal, rotary: NoMixer(DIM, causal=causal),
    "taylor": lambda causal, rotary: TaylorAttention(DIM, **HEADS, causal=causal, rotary=rotary),
    "linear": lambda causal, rotary: TaylorAttention(DIM, **HEADS, causal=causal, rotary=rotary, impl="linear"),
    "softmax": lambda causal, rotary: SoftmaxAttention(DIM, **HEADS, causal=causal, rotary=rotary),
    "window": lambda causal, rotary: WindowAttention(DIM, window=2, **HEADS, causal=causal, rotary=rotary),
    "conv": lambda causal, rotary: GatedConv(DIM, causal=causal),
    "split": split,
}


def classifier(mixer="taylor", *, positions="none", causal=False, pool="mean", input_dim=None, **options):
    """A small one in float64, with weights that matter."""
    torch.manual_seed(1)
    model = SequenceClassifier(
        Encoder(
            vocab_size=None if input_dim else 11, input_dim=input_dim, dim=DIM, depth=2, causal=causal,
            positions=positions, max_length=LENGTH, mixer=lambda layer: MIXERS[mixer](causal, positions == "rotary"),
            **options,
        ),
        num_classes=3, pool=pool,
    )  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.double().eval()


def tokens() -> Tensor:
    return torch.randint(1, 11, (4, LENGTH), generator=torch.Generator().manual_seed(3))


REALS = torch.tensor([REAL, LENGTH, 1, 4])  # real tokens of the rows
RIGHT = torch.arange(LENGTH) < REALS[:, None]  # the mask of rows padded on the right
LEFT = RIGHT.flip(1)


def shapes() -> list[dict[str, object]]:
    """Every way to pool, convolve and direct."""
    return [
        {"pool": pool, "short_conv": conv, "causal": causal}
        for pool, conv, causal in itertools.product(POOLS, (0, 1, 4), (False, True))
        if not (causal and pool == "cls")
    ]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_is_truncation(mixer, positions):
    ids = tokens()
    for shape in shapes():
        model = classifier(mixer, positions=positions, **shape)
        right, left = model(ids, RIGHT), model(ids.flip(1), LEFT)
        for row, n in enumerate(REALS):
            close(right[row], model(ids[row : row + 1, :n])[0])
            if shape["pool"] != "cls":  # whose token stands before the padding, apart from its neighbours
                close(left[row], model(ids[row : row + 1, :n].flip(1))[0])
        close(model(ids, torch.ones_like(RIGHT)), model(ids))


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_stands_in_the_padding_changes_nothing(mixer):
    ids = tokens()
    for shape, mask in itertools.product(shapes(), (RIGHT, LEFT)):
        model = classifier(mixer, positions="learned", **shape)
        assert torch.equal(model(ids.masked_fill(~mask, 0), mask), model(ids.masked_fill(~mask, 7), mask))
        model = classifier(mixer, positions="sinusoidal", input_dim=5, **shape)
        x = torch.randn(4, LENGTH, 5, dtype=torch.float64)
        assert torch.equal(model(x, mask), model(x.masked_fill(~mask[..., None], 1e6), mask))


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_do_not_see_each_other(mixer):
    ids, order = tokens(), torch.tensor([2, 0, 3, 1])
    for shape in shapes():
        model = classifier(mixer, positions="rotary", **shape)
        close(model(ids[order], RIGHT[order]), model(ids, RIGHT)[order])
        close(model(ids[:1], RIGHT[:1]), model(ids, RIGHT)[:1])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_causal_encoder_sees_nothing_later(mixer, positions):
    ids = tokens()
    for short_conv in (0, 1, 4):
        encoder = classifier(mixer, positions=positions, causal=True, short_conv=short_conv).encoder
        whole = encoder(ids)
        for at in range(1, LENGTH):
            other = ids.clone()
            other[:, at:] = other[:, at:] % 10 + 1
            changed = encoder(other)
            assert torch.equal(changed[:, :at], whole[:, :at])
            assert ((changed[:, at] - whole[:, at]).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "none"])
def test_without_causal_the_first_token_sees_the_last(mixer):
    ids = tokens()
    other = ids.clone()
    other[:, 2] = other[:, 2] % 10 + 1
    encoder = classifier(mixer).encoder
    assert not torch.isclose(encoder(ids)[:, 0], encoder(other)[:, 0]).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_order_counts_only_where_positions_are_known(positions):
    ids = tokens()
    model = classifier("taylor", positions=positions)
    same = torch.isclose(model(ids), model(ids.flip(1))).all()
    assert same == (positions == "none")
    assert not torch.isclose(
        classifier("taylor", short_conv=3)(ids), classifier("taylor", short_conv=3)(ids.flip(1))
    ).all()


@pytest.mark.parametrize("pool", POOLS)
def test_a_row_without_tokens_is_finite(pool):
    model = classifier("taylor", positions="learned", pool=pool, short_conv=3)
    mask = RIGHT.clone()
    mask[0] = False
    logits = model(tokens(), mask)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if pool != "cls":
        close(logits[0], model.head.bias)


def test_pools_by_hand():
    ids = tokens()
    for pool in POOLS:
        model = classifier("taylor", pool=pool)
        x = model.encoder.embed(ids)
        if pool == "cls":
            x = torch.cat([model.cls.expand(4, 1, DIM), x], 1)
        x = model.encoder.encode(x)[0]
        weight = {
            "mean": torch.full((4, LENGTH), 1 / LENGTH, dtype=x.dtype),
            "cls": torch.eye(LENGTH + 1, dtype=x.dtype)[:1].expand(4, -1),
        }.get(pool)
        if weight is None:
            weight = (x @ model.score.weight[0]).exp()
            weight = weight / weight.sum(1, keepdim=True)
        close(model(ids), model.head((weight[..., None] * x).sum(1)))


def test_forward_is_the_logits_of_run():
    model = classifier("taylor")
    logits, aux = model.run(tokens(), RIGHT)
    assert torch.equal(logits, model(tokens(), RIGHT)) and logits.shape == (4, 3)
    assert aux is None


def test_dropout_is_off_where_it_should_be():
    ids = tokens()
    model = classifier("taylor", dropout=0.5)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    headed = SequenceClassifier(classifier("none").encoder, num_classes=3, dropout=0.5).double().train()
    assert not torch.equal(headed(ids), headed(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool ('max') must be one of mean, cls, attention"),
        ({"num_classes": 0}, "num_classes (0) must be at least 1"),
        ({"pool": "cls", "causal": True}, "pool 'cls' puts a token first, where a causal encoder sees nothing"),
    ],
)
def test_what_is_refused(options, message):
    encoder = Encoder(vocab_size=11, dim=DIM, depth=1, heads=2, causal=options.pop("causal", False))
    with pytest.raises(ValueError) as caught:
        SequenceClassifier(encoder, **{"num_classes": 3, **options})
    assert message in str(caught.value)


def test_example_of_the_docstring():
    model = SequenceClassifier(Encoder(vocab_size=256, dim=128, depth=2), num_classes=10)
    assert model(torch.randint(256, (4, 100))).shape == (4, 10)
