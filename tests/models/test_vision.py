"""The vision transformer: how images become patches, which of them count, and what grids change in the encoder."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tsla.mixers import NoMixer, SoftmaxAttention, TaylorAttention
from tsla.models import Encoder, GridConv, SequenceClassifier, VisionTransformer, account
from tsla.models.account import example_input
from tsla.models.encoder import Positions, sinusoids
from tsla.models.summary import summarise

SIZE, PATCH, CHANNELS, DIM = (4, 6), 2, 3, 8
POSITIONS = ("none", "learned", "sinusoidal", "rotary")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def vision(**options) -> VisionTransformer:
    """A small one in float64, with weights that matter."""
    torch.manual_seed(1)
    made = {"image_size": SIZE, "patch_size": PATCH, "channels": CHANNELS, "num_classes": 5, "dim": DIM, "depth": 2}
    model = VisionTransformer(**{**made, "heads": None if "mixer" in options else 2, **options})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.double().eval()


def images(b: int = 4) -> Tensor:
    return torch.randn(b, CHANNELS, *SIZE, dtype=torch.float64)


def rows_of(images: Tensor) -> Tensor:
    """Pixel after pixel, row by row."""
    return torch.stack([images[:, :, y, x] for y in range(images.shape[2]) for x in range(images.shape[3])], 1)


def patches_by_loops(images: Tensor, size: int) -> Tensor:
    """Cut out one by one."""
    channels, height, width = images.shape[1:]
    tokens = []
    for top, left in itertools.product(range(0, height, size), range(0, width, size)):
        token = [images[:, c, top + y, left + x] for y in range(size) for x in range(size) for c in range(channels)]
        tokens.append(torch.stack(token, 1))
    return torch.stack(tokens, 1)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_cut_row_by_row(size, channels):
    model, x = vision(patch_size=size, channels=channels), torch.randn(2, channels, *SIZE, dtype=torch.float64)
    expected = patches_by_loops(x, size)
    assert expected.shape == (2, 24 // size**2, size**2 * channels)
    for given in (x, rows_of(x)):
        patches, mask = model.patches(given)
        assert torch.equal(patches, expected) and mask is None


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_it_is_the_classifier_on_the_patches(positions, pool):
    model, x = vision(positions=positions, pool=pool, short_conv=3), images()
    expected = model.classifier(patches_by_loops(x, PATCH))
    assert expected.shape == (4, 5)
    assert torch.equal(model(x), expected) and torch.equal(model(rows_of(x)), expected)
    logits, aux = model.run(x)
    assert torch.equal(logits, expected) and aux is None


def test_ids_are_grey_levels_from_dark_to_light():
    model, ids = vision(channels=1, levels=5), torch.randint(1, 6, (3, 24))
    grey = torch.tensor([torch.nan, -1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)[ids]
    assert_close(model(ids), model(grey[..., None]), **EXACT)
    assert_close(model(ids.to(torch.uint8)), model(grey.reshape(3, 1, *SIZE)), **EXACT)
    assert_close(vision(channels=1, levels=2).patches(torch.tensor([1, 2]).repeat(1, 12))[0].unique(),
                 torch.tensor([-1.0, 1.0], dtype=torch.float64), **EXACT)  # fmt: skip


def test_a_patch_is_real_if_any_of_its_pixels_is():
    model, x, mask = vision(), images(2), torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[0, 1, 3] = mask[0, 2, 0] = mask[0, 3, 1] = mask[1, 0, 0] = True
    patches, real = model.patches(x, mask)
    assert real.tolist() == [[False, True, False, True, False, False], [True] + [False] * 5]
    assert torch.equal(patches, patches_by_loops(x * mask[:, None], PATCH))  # pixels that are not count as zeros
    assert torch.equal(model.patches(rows_of(x), mask.flatten(1))[1], real)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_what_stands_in_pixels_that_are_not_changes_nothing(positions, pool):
    model, x = vision(positions=positions, pool=pool, short_conv=3), images()
    mask = torch.rand(4, *SIZE) < 0.4
    mask[0] = True
    other = x.masked_fill(~mask[:, None], torch.nan)
    assert torch.equal(model(x, mask), model(other, mask))
    assert torch.equal(model(x, mask), model(rows_of(other), mask.flatten(1)))
    assert_close(model(x, mask)[0], model(x)[0], **EXACT)
    assert not torch.isclose(model(x, mask)[1:], model(x)[1:]).any(1).all()


@pytest.mark.parametrize(
    ("positions", "counted"), [("learned", False), ("sinusoidal", False), ("none", True), ("rotary", True)]
)
def test_a_patch_keeps_its_place_whatever_is_masked(positions, counted):
    """Unlike a token of a text, whose place is its number among the real ones; rotary positions still count."""
    model, x, mask = vision(positions=positions), images(1), torch.ones(1, *SIZE, dtype=torch.bool)
    mask[:, :2, :2] = False
    tokens, real = model.patches(x, mask)
    assert real.tolist() == [[False] + [True] * 5]
    later = [1, 2, 3, 4, 5, 0]  # the one that is not real goes last, and the others one place to the left
    moved = model.classifier(tokens[:, later], real[:, later])
    assert torch.isclose(moved, model(x, mask)).all() == counted


def test_images_do_not_see_each_other():
    model, x, order = vision(short_conv=3), images(), torch.tensor([2, 0, 3, 1])
    mask = torch.rand(4, *SIZE) < 0.7
    assert_close(model(x[order], mask[order]), model(x, mask)[order], **EXACT)
    assert_close(model(x[:1]), model(x)[:1], **EXACT)


def test_an_image_without_pixels_is_finite():
    model, x = vision(short_conv=3, pool="attention"), images()
    mask = torch.ones(4, *SIZE, dtype=torch.bool)
    mask[0] = False
    logits = model(x, mask)
    logits.sum().backward()
    assert_close(logits[0], model.classifier.head.bias, **EXACT)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_every_weight_and_every_pixel_has_a_gradient(positions):
    model, x = vision(positions=positions, short_conv=3, pool="attention"), images().requires_grad_()
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert (x.grad != 0).all()


@pytest.mark.parametrize("options", [{}, {"short_conv": 3}, {"positions": "rotary"}])
def test_a_causal_patch_sees_the_patches_before_it(options):
    encoder = vision(causal=True, **options).classifier.encoder
    tokens = torch.randn(1, 6, CHANNELS * PATCH**2, dtype=torch.float64)
    whole = encoder(tokens)
    for at in range(6):
        other = tokens.clone()
        other[:, at] += 1.0
        changed = encoder(other)
        assert torch.equal(changed[:, :at], whole[:, :at]) and not torch.isclose(changed[:, at], whole[:, at]).all()


def test_any_mixer_by_layer():
    made = [SoftmaxAttention(DIM, heads=2), NoMixer(DIM)]
    model = vision(mixer=lambda layer: made[layer])
    assert [block.mixer for block in model.classifier.encoder.blocks] == made
    assert model(images()).shape == (4, 5)
    assert all(isinstance(block.mixer, TaylorAttention) for block in vision().classifier.encoder.blocks)


def test_gradient_checkpointing_changes_nothing_but_memory():
    x = images()
    gradients = []
    for checkpointing in (False, True):
        model = vision(gradient_checkpointing=checkpointing)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_the_convolution_over_a_grid_by_loops(kernel, causal):
    layer = GridConv(DIM, kernel=kernel, grid=(3, 4), causal=causal)
    x, mask = torch.randn(2, 12, DIM), torch.rand(2, 12) < 0.7
    first = -(kernel - 1) if causal else -(kernel // 2)
    expected = layer.conv.bias.expand_as(x).clone()
    for b, y, z, i, j in itertools.product(range(2), range(3), range(4), range(kernel), range(kernel)):
        row, column = y + first + i, z + first + j
        if 0 <= row < 3 and 0 <= column < 4 and mask[b, 4 * row + column]:
            expected[b, 4 * y + z] += layer.conv.weight[:, 0, i, j] * x[b, 4 * row + column]
    assert_close(layer(x, mask), expected)
    assert_close(layer(x), layer(x, torch.ones(2, 12, dtype=torch.bool)))


def test_sinusoids_tell_row_and_column():
    x = torch.zeros(2, 12, DIM)
    got = Positions("sinusoidal", DIM, None, (3, 4))(x)
    line = sinusoids(torch.arange(4), DIM // 2)
    for row, column in itertools.product(range(3), range(4)):
        assert_close(got[1, 4 * row + column], torch.cat([line[row], line[column]]))
    half = torch.rand(2, 12) < 0.5
    assert torch.equal(Positions("sinusoidal", DIM, None, (3, 4))(x, half), got)


def test_learned_positions_are_those_of_the_cells():
    layer = Positions("learned", DIM, None, (3, 4))
    assert layer.table.weight.shape == (12, DIM)
    assert torch.equal(layer(torch.zeros(1, 12, DIM), torch.rand(1, 12) < 0.5)[0], layer.table.weight)


def test_costs_are_those_of_the_patches():
    def made(patch_size: int) -> VisionTransformer:
        return vision(patch_size=patch_size, channels=1, levels=4, mixer=lambda _: SoftmaxAttention(DIM, heads=2))

    small, large = account(made(1).float(), 24), account(made(2).float(), 24)
    assert (small.state_bytes, large.state_bytes) == (2 * 4 * 2 * DIM * 24, 2 * 4 * 2 * DIM * 6)
    assert small.flops_per_token > 4 * large.flops_per_token


def test_the_summary_goes_down_to_the_mixers():
    model = vision(short_conv=3)
    parts = {part.name: part for part in summarise(model, example_input(24, CHANNELS))}
    assert parts["classifier.encoder.blocks.1.mixer"].shape == parts["classifier.encoder.embedding"].shape == (1, 6, 8)
    assert parts["classifier.encoder.blocks.0.conv"].kind == "GridConv"
    assert "classifier.encoder.blocks.0.mixer.to_q" not in parts


OPTIONS = {
    "patch_size": [({"patch_size": 4}, "patch_size (4) must divide the image, 4 x 6 pixels"),
                   ({"patch_size": 0}, "patch_size (0) must divide the image, 4 x 6 pixels")],
    "image_size": [({"image_size": (0, 6)}, "patch_size (2) must divide the image, 0 x 6 pixels")],
    "channels": [({"channels": 0}, "channels (0) must be at least 1")],
    "levels": [({"levels": 1, "channels": 1}, "levels (1) must be at least 2, of one channel, got 1"),
               ({"levels": 5}, "levels (5) must be at least 2, of one channel, got 3")],
    "dim": [({"dim": 10}, "sinusoidal positions in a grid need a dim that 4 divides, got 10")],
    "pool": [({"pool": "cls"}, "pool 'cls' adds a token, which has no place in a grid")],
    "positions": [({"positions": "absolute"}, "positions ('absolute') must be one of none, learned, sinusoidal")],
    "mixer": [({"mixer": lambda _: NoMixer(4)}, "the mixer of layer 0 has dim 4")],
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [case for cases in OPTIONS.values() for case in cases])
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        vision(**options)
    assert message in str(caught.value)


BAD_INPUTS = [
    ({}, (2, 3, 6, 4), torch.float64, "(batch, 3, 4, 6) or rows (batch, 24, 3) of floating-point numbers; got"),
    ({}, (2, 1, 4, 6), torch.float64, "of shape (2, 1, 4, 6)"),
    ({}, (2, 25, 3), torch.float64, "of shape (2, 25, 3)"),
    ({}, (3, 4, 6), torch.float64, "of shape (3, 4, 6)"),
    ({}, (2, 3, 4, 6), torch.uint8, "got torch.uint8 of shape (2, 3, 4, 6)"),
    ({}, (2, 24), torch.long, "got torch.int64 of shape (2, 24)"),
    ({"channels": 1, "levels": 5}, (2, 23), torch.long, "or ids (batch, 24); got torch.int64 of shape (2, 23)"),
    ({"channels": 1, "levels": 5}, (2, 24), torch.float64, "got torch.float64 of shape (2, 24)"),
]


@pytest.mark.parametrize(("options", "shape", "dtype", "message"), BAD_INPUTS)
def test_inputs_that_do_not_fit_are_refused(options, shape, dtype, message):
    with pytest.raises(ValueError) as caught:
        vision(**options)(torch.ones(shape, dtype=dtype))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("as_rows", "mask", "message"),
    [
        (False, torch.ones(4, 24, dtype=torch.bool), "mask must be torch.bool of shape (4, 4, 6), True = real pixel"),
        (True, torch.ones(4, 4, 6, dtype=torch.bool), "mask must be torch.bool of shape (4, 24), True = real pixel"),
        (False, torch.ones(4, 4, 6), "got torch.float32 of shape (4, 4, 6)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(as_rows, mask, message):
    with pytest.raises(ValueError) as caught:
        vision()(rows_of(images()) if as_rows else images(), mask)
    assert message in str(caught.value)


def test_an_encoder_of_a_grid_takes_all_its_cells():
    encoder = Encoder(vocab_size=5, dim=DIM, depth=1, heads=2, grid=(3, 4))
    assert SequenceClassifier(encoder, num_classes=2)(torch.ones(1, 12, dtype=torch.long)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"input must have the 3 x 4 cells, got 11 tokens"):
        encoder(torch.ones(1, 11, dtype=torch.long))
    with pytest.raises(ValueError, match=r"grid \(0, 4\) must have a height and width of at least 1"):
        Encoder(vocab_size=5, dim=DIM, depth=1, heads=2, grid=(0, 4))


def test_ids_that_are_no_grey_level():
    size = {"image_size": (4, 4), "patch_size": 2, "num_classes": 2, "dim": 16, "depth": 1, "heads": 2}
    model = VisionTransformer(levels=17, **size).eval()
    ids = torch.randint(0, 18, (2, 16))
    assert torch.equal(model(ids.to(torch.uint8)), model(ids))
    for wrong in (18, -1):
        with pytest.raises(ValueError, match=rf"^ids \({wrong} to {wrong}\) must be 1 to 17, or 0 for padding$"):
            model(torch.full((1, 16), wrong))
    for kind in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=r"^input must be images"):
            model(torch.ones(1, 16, dtype=kind))
