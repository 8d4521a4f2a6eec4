"""Luna by its formula, in plain torch: one row of the batch, head, slot and token at a time."""

import torch
from plain_layers import layer_norm, linear
from torch import Tensor

from tsla.mixers import LunaAttention


def two_way(
    mixer: LunaAttention, x: Tensor, context: Tensor | None, mask: Tensor | None, side: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output, and the second sequence after it, one row of the batch, head, slot and token at a time."""
    outputs, streams = [], []
    for row in range(x.shape[0]):
        p = mixer.stream.rows if side is None else side[row]
        keys = (x if context is None else context)[row]
        keys = keys if mask is None else keys[mask[row]]
        y = averages(mixer, linear(mixer.to_pq, layer_norm(mixer.stream_norm, p)), keys, mixer.to_pk, mixer.to_pv)
        out = averages(mixer, linear(mixer.to_q, x[row]), y, mixer.to_k, mixer.to_v)
        outputs.append(linear(mixer.to_out, out if len(keys) else torch.zeros_like(out)))
        streams.append(p + y)
    return torch.stack(outputs), torch.stack(streams)


def averages(
    mixer: LunaAttention, queries: Tensor, tokens: Tensor, to_k: torch.nn.Module, to_v: torch.nn.Module | None
) -> Tensor:
    """Softmax attention of projected queries, head by head."""
    k, v = linear(to_k, tokens), linear(to_k if to_v is None else to_v, tokens)
    d, out = queries.shape[-1] // mixer.heads, torch.zeros_like(queries)
    for head in range(mixer.heads):
        own = slice(head * d, (head + 1) * d)
        for i in range(len(queries)):
            weights = (k[:, own] @ queries[i, own] / d**0.5).exp()
            if len(k):
                out[i, own] = weights @ v[:, own] / weights.sum()
    return out


def causal(mixer: LunaAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """By all pairs: logits (tril(q k^T) a) / t and outputs (tril(u a^T) v) / t."""
    p = linear(mixer.to_pq, layer_norm(mixer.stream_norm, mixer.stream.rows))
    q, k, pack = (linear(layer, x) for layer in (mixer.to_q, mixer.to_k, mixer.to_pk))
    v = k if mixer.to_v is None else linear(mixer.to_v, x)
    d, (b, n, _) = x.shape[-1] // mixer.heads, x.shape
    real = torch.ones(b, n, dtype=torch.bool) if mask is None else mask
    out = torch.zeros_like(q)
    for row in range(b):
        sees = torch.ones(n, n, dtype=x.dtype).tril() * real[row]
        t = sees.sum(-1, keepdim=True).clamp(min=1)
        for head in range(mixer.heads):
            own = slice(head * d, (head + 1) * d)
            a = (1 + 2 ** (pack[row, :, own] @ p[:, own].T / d**0.5)).log2()
            u = (((q[row, :, own] @ k[row, :, own].T / d**0.5) * sees) @ a / t).softmax(-1)
            out[row, :, own] = ((u @ a.T) * sees) @ v[row, :, own] / t
    return linear(mixer.to_out, out)
