"""The encoder: positions, patterns of layers, second streams and extra losses, checkpointing, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor, nn

from tsla.mixers import Mixed, Mixer, NoMixer, SoftmaxAttention, TaylorAttention, WindowAttention
from tsla.models import Encoder, SequenceClassifier, SRMSNorm, VisionTransformer
from tsla.models.account import account, example_input
from tsla.models.embedding import BracketDepth, ConvEmbedding
from tsla.models.encoder import Positions, sinusoids
from tsla.models.summary import summarise

DIM = 8


class Telling(Mixer):
    """Returns a stream one longer than the one it got, and a loss that is its own weight times the layer number."""

    supports = frozenset({"bidirectional"})

    def __init__(self, layer: int) -> None:
        super().__init__(DIM, width=DIM, causal=False)
        self.layer = layer
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.got: list[int | None] = []

    def mix(self, x, context=None, *, mask=None, side=None, cu_seqlens=None):
        self.got.append(None if side is None else side.shape[1])
        stream = x[:, :1] if side is None else torch.cat([side, x[:, :1]], 1)
        aux = None if self.layer == 0 else self.weight * self.layer * x.square().mean()
        return Mixed(x * self.weight + stream.mean(1, keepdim=True), stream, aux)

    def state_bytes(self, length: int) -> int:
        return 0


def telling(**options) -> SequenceClassifier:
    torch.manual_seed(0)
    return SequenceClassifier(Encoder(vocab_size=11, dim=DIM, depth=4, mixer=Telling, **options), num_classes=3)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_streams_go_from_layer_to_layer_and_losses_add_up(gradient_checkpointing):
    model = telling(gradient_checkpointing=gradient_checkpointing)
    ids = torch.randint(11, (2, 5))
    logits, aux = model.run(ids)
    mixers = [block.mixer for block in model.encoder.blocks]
    assert [m.got[0] for m in mixers] == [None, 1, 2, 3]
    x, side, total = model.encoder.embed(ids), None, 0.0
    for layer, block in enumerate(model.encoder.blocks):
        x, side, more = block(x, None, side)
        assert (more is None) == (layer == 0)
        total = total + (0.0 if more is None else more)
    torch.testing.assert_close(aux, total)
    torch.testing.assert_close(logits, model.head(model.encoder.norm(x).mean(1)))
    aux.backward()
    assert mixers[3].weight.grad is not None and mixers[0].weight.grad is not None  # the first through the stream


def test_a_mixer_without_a_stream_leaves_it_to_those_after_it():
    made: dict[int, Mixer] = {}

    def mixer(layer: int) -> Mixer:
        made[layer] = Telling(layer) if layer != 1 else TaylorAttention(DIM, heads=2)
        return made[layer]

    Encoder(vocab_size=11, dim=DIM, depth=3, mixer=mixer)(torch.randint(11, (2, 5)))
    assert [made[layer].got for layer in (0, 2)] == [[None], [1]]


def test_extra_losses_of_no_layer_are_none():
    model = SequenceClassifier(Encoder(vocab_size=11, dim=DIM, depth=1, mixer=Telling), num_classes=3)
    assert model.run(torch.randint(11, (2, 5))).aux is None


def gradients(model: SequenceClassifier, ids: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    logits, aux = model.run(ids, torch.arange(9) < torch.tensor([[9], [4]]))
    (logits.square().sum() + (0.0 if aux is None else aux)).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    def build(checkpointing: bool) -> SequenceClassifier:
        torch.manual_seed(0)
        encoder = Encoder(
            vocab_size=11,
            dim=DIM,
            depth=3,
            heads=2,
            dropout=dropout,
            short_conv=3,
            gradient_checkpointing=checkpointing,
        )
        return SequenceClassifier(encoder, num_classes=3).train()

    ids = torch.randint(11, (2, 9))
    kept, again = build(False), build(True)
    assert all(torch.equal(a, b) for a, b in zip(gradients(kept, ids), gradients(again, ids), strict=True))
    telling_kept, telling_again = telling(), telling(gradient_checkpointing=True)
    for a, b in zip(gradients(telling_kept, ids), gradients(telling_again, ids), strict=True):
        assert torch.equal(a, b)


def test_checkpointing_runs_blocks_again_and_only_where_gradients_are_wanted():
    model, calls = telling(gradient_checkpointing=True), []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    logits, _ = model.run(torch.randint(11, (2, 5)))
    assert len(calls) == 4
    logits.sum().backward()
    assert len(calls) == 8
    with torch.no_grad():
        model(torch.randint(11, (2, 5)))
    assert len(calls) == 12


def test_each_layer_has_the_mixer_made_for_it():
    made = []

    def pattern(layer: int) -> Mixer:
        made.append(layer)
        return (
            WindowAttention(DIM, heads=2, window=layer) if layer % 2 else TaylorAttention(DIM, heads=2, order=2 * layer)
        )

    encoder = Encoder(vocab_size=11, dim=DIM, depth=4, mixer=pattern)
    assert made == [0, 1, 2, 3]
    kinds = [type(block.mixer) for block in encoder.blocks]
    assert kinds == [TaylorAttention, WindowAttention] * 2
    assert [block.mixer.window for block in encoder.blocks[1::2]] == [1, 3]
    assert [block.mixer.order for block in encoder.blocks[::2]] == [0, 4]


def test_loops_are_layers_that_share_weights():
    """As a deeper encoder whose later blocks are the first ones once more; at no more weights."""
    looped = Encoder(vocab_size=11, dim=DIM, depth=2, heads=2, loops=3, dropout=0.1)
    deep = Encoder(vocab_size=11, dim=DIM, depth=6, heads=2, dropout=0.1)
    deep.load_state_dict(looped.state_dict() | {
        name: looped.state_dict()[f"blocks.{int(number) % 2}.{rest}"]
        for name in deep.state_dict() if name.startswith("blocks.")
        for _, number, rest in [name.split(".", 2)]
    })  # fmt: skip
    ids, mask = torch.randint(11, (2, 9)), torch.arange(9) < torch.tensor([[9], [4]])
    outputs, gradients = [], []
    for model in (looped, deep):
        torch.manual_seed(1)
        outputs.append(model(ids, mask))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), model.embedding.weight)[0])
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)
    one, three = (account(SequenceClassifier(x, num_classes=3), 9) for x in (
        Encoder(vocab_size=11, dim=DIM, depth=2, heads=2), looped,
    ))  # fmt: skip
    assert one.parameters == three.parameters and three.state_bytes == 3 * one.state_bytes
    assert 2.9 < three.flops_per_token / one.flops_per_token < 3.1
    parts = [part.name for part in summarise(looped, example_input(9, None))]
    assert len(parts) == len(set(parts))
    with pytest.raises(ValueError, match=r"loops \(0\) must be at least 1"):
        Encoder(vocab_size=11, dim=DIM, depth=2, loops=0)


STEPS = [0, 0, 1, 1, -1]  # of ids: 2 and 3 open, 4 closes


def depths(ids: list[int]) -> list[int]:
    """How many brackets are open at each token, by going along; a closing one counts itself."""
    stack, out = 0, []
    for token in ids:
        stack += STEPS[token] > 0
        out.append(stack)
        stack -= STEPS[token] < 0
    return out


def test_bracket_depth_is_what_one_counts_going_along():
    layer = BracketDepth(STEPS, DIM, deepest=3)
    rows = [[2, 1, 3, 1, 1, 4, 1, 4], [2, 3, 2, 3, 2, 4, 4, 4, 4, 4], [4, 4, 1], [1]]
    assert depths(rows[0]) == [1, 1, 2, 2, 2, 2, 1, 1]
    expected = [layer.table.weight[torch.tensor(depths(row)).clamp(0, 3)] for row in rows]
    lengths = [len(row) for row in rows]
    padded = torch.zeros(4, 12, dtype=torch.int64)
    mask = torch.zeros(4, 12, dtype=torch.bool)
    for at, row in enumerate(rows):
        padded[at, 1 : len(row) + 1], mask[at, 1 : len(row) + 1] = torch.tensor(row), True
    padded[:, 0] = 2  # not real: it opens nothing
    out = layer(padded, mask)
    for at, row in enumerate(expected):
        assert torch.equal(out[at, 1 : len(row) + 1], row)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    packed = layer(torch.tensor([[token for row in rows for token in row]]), None, bounds)
    assert torch.equal(packed[0], torch.cat(expected))
    for steps in ([0, 1], [0, -1], [0, 2, -1]):
        with pytest.raises(ValueError, match="must be 1 of what opens, -1 of what closes, and else 0"):
            BracketDepth(steps, DIM)
    with pytest.raises(ValueError, match=r"deepest \(0\) must be at least 1"):
        BracketDepth(STEPS, DIM, deepest=0)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
def test_an_encoder_adds_the_vectors_of_bracket_depth(positions):
    encoder = Encoder(vocab_size=5, dim=DIM, depth=1, heads=2, positions=positions, max_length=9, brackets=STEPS)
    plain = Encoder(vocab_size=5, dim=DIM, depth=1, heads=2, positions=positions, max_length=9)
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("brackets.")})
    ids, mask = torch.randint(5, (3, 9)), torch.arange(9) < torch.tensor([[9], [4], [1]])
    assert torch.equal(encoder.embed(ids, mask), plain.embed(ids, mask) + encoder.brackets(ids, mask))
    encoder(ids, mask).square().sum().backward()
    assert encoder.brackets.table.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"brackets \(5\) must say of each token id .* vocab_size \(7\)"):
        Encoder(vocab_size=7, dim=DIM, depth=1, brackets=STEPS)
    with pytest.raises(ValueError, match=r"brackets \(5\) must say of each token id .* vocab_size \(None\)"):
        Encoder(input_dim=5, dim=DIM, depth=1, brackets=STEPS)


def test_the_default_mixer_takes_heads_and_rotary():
    encoder = Encoder(vocab_size=11, dim=DIM, depth=2, heads=2, positions="rotary", causal=True, dropout=0.25)
    for block in encoder.blocks:
        m = block.mixer
        assert isinstance(m, TaylorAttention)
        assert (m.heads, m.head_dim, m.rotary, m.causal, m.dropout.p) == (2, 16, True, True, 0.25)
    assert Encoder(vocab_size=11, dim=DIM, depth=1).blocks[0].mixer.heads == 8
    assert not Encoder(vocab_size=11, dim=DIM, depth=1, positions="learned", max_length=3).blocks[0].mixer.rotary


def test_values_instead_of_ids():
    encoder = Encoder(input_dim=5, dim=DIM, depth=1, heads=2, positions="learned", max_length=7)
    x = torch.randn(2, 7, 5)
    assert encoder(x).shape == (2, 7, DIM)
    torch.testing.assert_close(encoder.embed(x), encoder.embedding(x) + encoder.positions.table.weight)
    torch.testing.assert_close(encoder.embedding(x), x @ encoder.embedding.weight.T + encoder.embedding.bias)


@pytest.mark.parametrize("causal", [False, True])
def test_convolutional_embedding_by_loops(causal):
    """Three convolutions over 3 tokens, each over real tokens alone; nothing passes from padding, nor from ahead."""
    layer = ConvEmbedding(DIM, causal=causal).double()
    for norm in layer.norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, mask = torch.randn(2, 7, DIM // 4, dtype=torch.float64), torch.arange(7) < torch.tensor([[7], [4]])
    for row, n in enumerate((7, 4)):
        y = x[row, :n]
        for conv, norm in zip(layer.convs, layer.norms, strict=True):
            taps = conv.weight.permute(2, 0, 1)  # (3, out, in)
            offsets = (-2, -1, 0) if causal else (-1, 0, 1)
            rows = [
                sum(taps[j] @ y[t + at] for j, at in enumerate(offsets) if 0 <= t + at < n) for t in range(n)
            ]  # fmt: skip
            y = torch.stack(rows)
            y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            y = y * norm.weight + norm.bias
            y = y * (1 + torch.erf(y / 2**0.5)) / 2
        torch.testing.assert_close(layer(x, mask)[row, :n], y * DIM**-0.5)
    torch.testing.assert_close(layer(x), layer(x, torch.ones(2, 7, dtype=torch.bool)))


@pytest.mark.parametrize("values", [False, True], ids=["ids", "values"])
@pytest.mark.parametrize("positions", ["none", "learned"])
def test_an_encoder_embeds_by_convolutions(values, positions):
    inputs = {"input_dim": 5} if values else {"vocab_size": 11}
    encoder = Encoder(**inputs, dim=DIM, depth=1, heads=2, conv_embedding=True, causal=True, positions=positions,
                      max_length=6)  # fmt: skip
    x = torch.randn(2, 6, 5) if values else torch.randint(11, (2, 6))
    embedded = encoder.convolutions(encoder.embedding(x))
    expected = embedded if positions == "none" else embedded + encoder.positions.table.weight
    torch.testing.assert_close(encoder.embed(x), expected)
    assert encoder.embedding.weight.shape[-1 if not values else 0] == DIM // 4
    assert 0.3 < embedded.norm(dim=-1).mean() < 1.2  # about as long as the vectors of a table
    other = x.clone()
    other[:, 4:] = 0
    assert torch.equal(encoder(other)[:, :4], encoder(x)[:, :4])
    with pytest.raises(ValueError, match=r"^dim \(3\) must be at least 4 for a convolutional embedding$"):
        Encoder(vocab_size=11, dim=3, depth=1, heads=3, conv_embedding=True)
    with pytest.raises(ValueError, match=r"^conv_embedding looks along a line of tokens, .* grid \(2, 3\)$"):
        Encoder(vocab_size=11, dim=DIM, depth=1, conv_embedding=True, grid=(2, 3))


@pytest.mark.parametrize("options", [{"vocab_size": 11}, {"input_dim": 5}, {"vocab_size": 11, "conv_embedding": True}])
def test_embeddings_are_scaled_before_positions_are_added(options):
    encoder = Encoder(**options, dim=DIM, depth=1, heads=2, embedding_scale=True, positions="learned", max_length=6)
    x = torch.randn(2, 6, 5) if "input_dim" in options else torch.randint(11, (2, 6))
    plain = encoder.embedding(x)
    plain = plain if encoder.convolutions is None else encoder.convolutions(plain)
    torch.testing.assert_close(encoder.embed(x), plain * DIM**0.5 + encoder.positions.table.weight)


def test_scaled_embeddings_of_tokens_have_numbers_of_standard_deviation_one():
    encoder = Encoder(vocab_size=500, dim=64, depth=1, embedding_scale=True)
    assert abs(encoder.embed(torch.arange(500)[None]).std() - 1) < 0.03


def test_all_norms_are_of_the_kind_asked_for():
    """Also the last one, and in a vision transformer; the default is LayerNorm."""
    vision = {"image_size": (4, 4), "patch_size": 2, "num_classes": 3, "dim": DIM, "depth": 2, "heads": 2}
    for options, kind, count in (({}, nn.LayerNorm, 0), ({"norm": "srms"}, SRMSNorm, 5)):
        for made in (
            Encoder(vocab_size=11, dim=DIM, depth=2, heads=2, **options),
            VisionTransformer(**vision, **options),
        ):
            found = [m for m in made.modules() if isinstance(m, nn.LayerNorm | SRMSNorm)]
            assert [type(m) for m in found] == [kind] * 5
            assert sum(not list(m.parameters()) for m in found) == count
    encoder = Encoder(vocab_size=11, dim=DIM, depth=1, heads=2, norm="srms")
    out = encoder(torch.randint(11, (2, 5)))
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 5), rtol=1e-3, atol=0)


def test_sinusoids_by_the_formula():
    table = sinusoids(torch.arange(6), 8)
    for at in range(6):
        for i in range(4):
            angle = at / 10_000 ** (2 * i / 8)
            expected = torch.tensor([math.sin(angle), math.cos(angle)])
            torch.testing.assert_close(table[at, 2 * i : 2 * i + 2], expected)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_are_those_of_real_tokens(kind):
    layer = Positions(kind, DIM, 6)
    zeros = torch.zeros(1, 6, DIM)
    plain = layer(zeros)[0]
    assert plain.unique(dim=0).shape[0] == 6
    mask = torch.tensor([[False, False, True, True, False, True]])
    torch.testing.assert_close(layer(zeros, mask)[0, [2, 3, 5]], plain[:3])


@pytest.mark.parametrize("kind", ["none", "rotary"])
def test_positions_that_are_not_added(kind):
    x = torch.randn(1, 6, DIM)
    assert Positions(kind, DIM, None)(x) is x


def test_more_tokens_than_learned_positions_are_refused():
    encoder = Encoder(vocab_size=11, dim=DIM, depth=1, heads=2, positions="learned", max_length=4)
    ids = torch.randint(11, (2, 6))
    with pytest.raises(ValueError, match=r"6 .*longer than the learned positions \(4\)"):
        encoder(ids)
    with pytest.raises(ValueError, match=r"5 .*longer than the learned positions \(4\)"):
        encoder(ids, torch.arange(6) < torch.tensor([[5], [2]]))
    mask = torch.arange(6) < torch.tensor([[4], [2]])  # padding needs no position
    torch.testing.assert_close(encoder(ids, mask)[0, :4], encoder(ids[:1, :4])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": None}, "give vocab_size (None) or input_dim (None), and not both"),
        ({"input_dim": 3}, "give vocab_size (11) or input_dim (3), and not both"),
        ({"depth": 0}, "depth (0) must be at least 1"),
        ({"heads": 2, "mixer": lambda layer: NoMixer(DIM)}, "heads (2) belongs to the default mixer"),
        ({"mixer": lambda layer: NoMixer(4)}, "the mixer of layer 0 has dim 4 and causal=False, the model dim 8"),
        ({"mixer": lambda layer: NoMixer(DIM, causal=layer > 0)}, "the mixer of layer 1 has dim 8 and causal=True"),
        ({"causal": True, "mixer": Telling}, "the mixer of layer 0 has dim 8 and causal=False"),
        ({"positions": "absolute"}, "positions ('absolute') must be one of none, learned, sinusoidal, rotary"),
        ({"positions": "learned"}, "learned positions need max_length of at least 1, got None"),
        ({"positions": "learned", "max_length": 0}, "learned positions need max_length of at least 1, got 0"),
        ({"dim": 9, "positions": "sinusoidal"}, "sinusoidal positions need an even dim, got 9"),
        ({"dim": 9}, "heads (8) must divide dim (9)"),
        ({"short_conv": -1}, "short_conv (-1) must not be negative"),
        ({"norm": "rms"}, "norm ('rms') must be one of layer, srms"),
        ({"feed_forward": "relu"}, "feed_forward ('relu') must be one of gelu, swiglu, sglu"),
        ({"feed_forward_mult": 0.1}, "feed_forward_mult (0.1) leaves no hidden width at dim 8"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError) as caught:
        Encoder(**{"vocab_size": 11, "dim": DIM, "depth": 2, **options})
    assert message in str(caught.value)


def test_softmax_has_the_same_shape_as_the_others():
    encoder = Encoder(vocab_size=11, dim=DIM, depth=1, mixer=lambda _: SoftmaxAttention(DIM, heads=2))
    assert encoder(torch.randint(11, (2, 5))).shape == (2, 5, DIM)
