"""Linformer and Primal-Attention from their formulas: loops over rows, heads and tokens, in float64."""

from itertools import product

import torch
from torch import Tensor

from tsla.mixers import LinformerAttention, PrimalAttention


def linformer(mixer: LinformerAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q_i.k'_r / sqrt(d)) over slots r, k'_r = sum_p E_pr k_p over the real keys, which p counts; and v'_r."""
    (b, h, n, d), g = q.shape, k.shape[1]
    weights = (
        mixer.projection.keys,
        mixer.projection.keys if mixer.projection.values is None else mixer.projection.values,
    )
    out = []
    for row, head in product(range(b), range(h)):
        group = head * g // h
        e, f = (matrix[group] if matrix.dim() == 3 else matrix for matrix in weights)
        real = [j for j in range(k.shape[2]) if mask is None or mask[row, j]]
        keys, values = torch.zeros(e.shape[1], d).double(), torch.zeros(e.shape[1], v.shape[-1]).double()
        for place, j in enumerate(real):
            keys = keys + e[place][:, None] * k[row, group, j]
            values = values + f[place][:, None] * v[row, group, j]
        for i in range(n):
            weight = (keys @ q[row, head, i] / d**0.5).exp()
            out.append(weight @ values / weight.sum())
    return torch.stack(out).reshape(b, h, n, v.shape[-1])


def primal(mixer: PrimalAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Token by token; 0 for masked ones."""
    scores, out = primal_scores(mixer, x, mask), torch.zeros_like(x)
    for row, i in product(*map(range, x.shape[:2])):
        if mask is None or mask[row, i]:
            heads = [mixer.to_heads.weight @ torch.cat(scores[row, head, i]) + mixer.to_heads.bias
                     for head in range(mixer.heads)]  # fmt: skip
            bias = 0 if mixer.to_out.bias is None else mixer.to_out.bias
            out[row, i] = mixer.to_out.weight @ torch.cat(heads) + bias
    return out


def primal_scores(
    mixer: PrimalAttention, x: Tensor, mask: Tensor | None
) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:  # fmt: skip
    """e and r of each real token, by row, head and place."""
    found = {}
    for row, head in product(range(x.shape[0]), range(mixer.heads)):
        real = [i for i in range(x.shape[1]) if mask is None or mask[row, i]]
        to_e, to_r = primal_weights(mixer, x, mask, row, head)
        q, k = ([sides(layer, x[row, i], mixer.heads)[head] for i in real] for layer in (mixer.to_q, mixer.to_k))
        for at, i in enumerate(real):
            one_q, one_k = q[at], k[at]
            if mixer.causal:
                one_q, one_k = sum(q[: at + 1]) / (at + 1), sum(k[: at + 1]) / (at + 1)
            e, r = (weight.T @ y / (y @ y) ** 0.5 for weight, y in ((to_e, one_q), (to_r, one_k)))
            found[row, head, i] = e, r
    return found


def primal_weights(
    mixer: PrimalAttention, x: Tensor, mask: Tensor | None, row: int, head: int
) -> tuple[Tensor, Tensor]:
    """W_e and W_r of a row and head, ``(d, s)`` each."""
    if mixer.causal:
        return mixer.to_e[head], mixer.to_r[head]
    real = [i for i in range(x.shape[1]) if mask is None or mask[row, i]]
    d, found = x.shape[-1] // mixer.heads, []
    for a in (mixer.to_e[head], mixer.to_r[head]):
        weight, count = torch.zeros(d, a.shape[1]).double(), len(a)
        for i in range(count if real else 0):
            token = x[row, real[i * (len(real) - 1) // (count - 1)], head * d : (head + 1) * d]
            weight = weight + token[:, None] * a[i]
        found.append(weight)
    return found[0], found[1]


def primal_objective(mixer: PrimalAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """J: of each head of each row with real tokens, in the mean over both."""
    found, scores = [], primal_scores(mixer, x, mask)
    for row in range(x.shape[0]):
        own = [(head, pair) for (at, head, _), pair in scores.items() if at == row]
        for head in range(mixer.heads if own else 0):
            pairs = [pair for at, pair in own if at == head]
            size = [sum((mixer.scale[head] * y) @ (mixer.scale[head] * y) for y in pair) for pair in pairs]
            a, b = mixer.to_e[head], mixer.to_r[head]
            if mixer.trace == "weights":
                a, b = primal_weights(mixer, x, mask, row, head)
            found.append(sum(size) / len(pairs) / 2 - (a * b).sum())
    return torch.stack(found).mean()


def sides(layer: torch.nn.Linear, token: Tensor, heads: int) -> tuple[Tensor, ...]:
    """What a projection makes of a token, head by head."""
    return (layer.weight @ token + (0 if layer.bias is None else layer.bias)).chunk(heads)
