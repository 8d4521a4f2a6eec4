"""A whole `Performer` of performer-pytorch, read into our blocks."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tsla.mixers.readers import read_performer
from tsla.mixers.weights import Weights, check_keys, check_numbers, shape_of, shaped
from tsla.models.block import Block

COPY, COUNTER = "proj_updater.instance.", "proj_updater.calls_since_last_redraw"
BLOCK = re.compile(r"layers\.(0|[1-9]\d*)\.(?=[01]\.)")
PARTS = {"0.norm": "mixer_norm", "1.norm": "feed_forward_norm", "1.fn.fn.w1": "feed_forward.into",
         "1.fn.fn.w2": "feed_forward.out"}  # fmt: skip


class BlockStack(nn.Module):
    """Blocks one after another, ``(b, n, dim) -> (b, n, dim)``, without an embedding before or a norm after them.

    Args:
        blocks: of one width and direction.
    """

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x ``(b, n, dim)``; mask ``(b, n)`` bool, True = real token."""
        for block in self.blocks:
            x, _, _ = block(x, mask)
        return x


def read_performer_stack(
    weights: Weights, *, heads: int | None = None, causal: bool = False, kind: str = "positive",
    redraw_every: int | None = 1000,
) -> BlockStack:  # fmt: skip
    """The blocks of a `Performer` of performer-pytorch (1.1.4): layer norms before attention and feed-forward.

    Its state dict holds every weight twice, under ``net.`` and under ``proj_updater.instance.``; the second may be left
    out. The feed-forward is that with GELU. Chunks of it (`ff_chunks`) change no output and leave no trace; neither
    does `cross_attend`, whose blocks would be read as twice as many that attend to their own tokens, nor dropout.

    Args:
        weights: its state dict; of a `PerformerLM`, the part under ``performer.``, without that.
        heads, causal, kind, redraw_every: as in `read_performer`, of every block.

    Raises:
        ValueError: keys and shapes that are not such a stack's, as those of local heads, of scale norms, of ReZero, of
            shifted tokens, of a gated feed-forward (GLU) and of reversible blocks are not.
    """
    blocks: list[Block] = []
    for number, found in enumerate(_blocks(_once(weights))):
        try:
            blocks.append(_block(found, heads, causal, kind, redraw_every))
        except ValueError as error:
            raise ValueError(f"net.layers.{number}: {error}") from None
        if (width := blocks[-1].mixer.dim) != blocks[0].mixer.dim:
            raise ValueError(f"net.layers.{number} has width {width}, net.layers.0 {blocks[0].mixer.dim}")
    return BlockStack(*blocks)


def _once(weights: Weights) -> dict[str, Tensor]:
    """The weights without ``net.`` before their names, once each; a counter is none."""
    net = {key[4:]: weight for key, weight in weights.items() if key.startswith("net.")}
    for key, weight in weights.items():
        if key.startswith(COPY):
            first = net.get(key[len(COPY) :])
            if first is None or not isinstance(weight, Tensor) or not isinstance(first, Tensor):
                raise ValueError(f"{key} must be the copy of a tensor net.{key[len(COPY) :]}, which is not there")
            if first.shape != weight.shape or not (first.is_meta or weight.is_meta or torch.equal(first, weight)):
                raise ValueError(f"{key} must equal net.{key[len(COPY) :]}, of which it is the copy")
        elif not key.startswith("net.") and key != COUNTER:
            raise ValueError(f"{key} is not a weight of a Performer: those begin with net.layers.")
    return net


def _blocks(net: Weights) -> Iterator[dict[str, Tensor]]:
    """The weights of each block, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, weight in net.items():
        if (match := BLOCK.match(key)) is None:
            raise ValueError(f"net.{key} is not a weight of a Performer: those are net.layers.0.0.norm.weight, ...")
        found.setdefault(int(match[1]), {})[key[match.end() :]] = weight
    for number in range(max(found, default=0) + 1):
        if number not in found:
            raise ValueError(f"net.layers.{number} is missing: blocks are counted from 0")
        yield found[number]


def _block(weights: Weights, heads: int | None, causal: bool, kind: str, redraw_every: int | None) -> Block:
    """One block, from names that begin with ``0.`` (attention) and ``1.`` (feed-forward)."""
    inner = "0.fn."
    attention = {key[len(inner) :]: weight for key, weight in weights.items() if key.startswith(inner)}
    mixer = read_performer(attention, heads=heads, causal=causal, kind=kind, redraw_every=redraw_every)
    rest = {key: weight for key, weight in weights.items() if not key.startswith(inner)}
    check_keys(rest, "Performer", [f"{part}.{name}" for part in PARTS for name in ("weight", "bias")], ())
    check_numbers(weights, "0.norm.weight", "0.fn.to_q.weight")
    dim = mixer.dim
    hidden, _ = shape_of(rest, "1.fn.fn.w1.weight", None, dim)
    if hidden % dim:
        raise ValueError(f"1.fn.fn.w1.weight must have a multiple of {dim} rows, got {hidden}")
    sizes = {"0.norm": (dim,), "1.norm": (dim,), "1.fn.fn.w1": (hidden, dim), "1.fn.fn.w2": (dim, hidden)}
    block = Block(mixer, feed_forward_mult=hidden / dim)
    state = {f"mixer.{key}": weight for key, weight in mixer.state_dict().items()}
    for part, size in sizes.items():
        state[f"{PARTS[part]}.weight"] = shaped(rest, f"{part}.weight", *size)
        state[f"{PARTS[part]}.bias"] = shaped(rest, f"{part}.bias", size[0])
    block.to(dtype=mixer.to_q.weight.dtype, device=mixer.to_q.weight.device).load_state_dict(state)
    return block
