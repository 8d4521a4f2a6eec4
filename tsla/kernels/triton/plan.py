"""How a call is cut up for the GPU: blocks of tokens, chunks with a state each, columns, and the types of products."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tsla.kernels.taylor import Inputs
from tsla.kernels.triton.layout import pairs_of, rows_of, tiles_of

CHUNK = 512  # tokens of causal attention between two states: half as many bytes of states as of tokens, at d=16 e=64
# Loads are begun two rounds ahead; multiplications and additions are fused.
COMPILER = {"num_stages": 3, "enable_fp_fusion": True}
PROGRAMS = 1056  # how many programs fill a card evenly: eight for each multiprocessor of an H100, two of them at a time


class Products(NamedTuple):
    """Of which type the factors of products are and how they are multiplied; what fits a program's registers.

    width: columns of values, at most.  reading, summing: tokens and warps of programs that do that.  float16 is
    multiplied as TensorFloat-32, which has as many digits and does not overflow where sums grow long.
    """

    operand: Any
    precision: str
    dtype: torch.dtype
    width: int
    reading: tuple[int, int]
    summing: tuple[int, int]


PRODUCTS = {
    torch.bfloat16: Products(tl.bfloat16, "tf32", torch.bfloat16, 64, (64, 2), (64, 4)),
    torch.float16: Products(tl.float32, "tf32", torch.float32, 32, (16, 4), (16, 8)),
    torch.float32: Products(tl.float32, "tf32x3", torch.float32, 32, (16, 4), (16, 8)),
}


class Plan(NamedTuple):
    """Sizes of a call, and of its parts; chunk and chunks are of the keys and, if `causal`, of the queries too."""

    b: int
    h: int
    g: int
    s: int
    n: int
    m: int
    d: int
    e: int
    chunk: int
    width: int
    products: Products

    @property
    def units(self) -> int:
        """States of the call."""
        return self.b * self.s

    @property
    def chunks(self) -> int:
        """Chunks of the keys."""
        return -(-self.m // self.chunk)

    @property
    def columns(self) -> int:
        """In how many parts the values' columns are worked on."""
        return -(-self.e // self.width)

    @property
    def rows(self) -> int:
        """Of a state in tiles."""
        return rows_of(self.d)

    def blocks(self, tokens: int) -> int:
        """Blocks of tokens that read."""
        return -(-tokens // self.products.reading[0])

    def compiled(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        products = self.products
        return {"d": self.d, "TILES": tiles_of(self.d), "WIDTH": self.width, "OPERAND": products.operand,
                "PRECISION": products.precision, **COMPILER}  # fmt: skip

    def summing(self) -> dict[str, Any]:
        """What those that sum up are."""
        tokens, warps = self.products.summing
        return self.compiled() | {"TOKENS": tokens, "num_warps": warps}

    def reading(self) -> dict[str, Any]:
        """What those that read are."""
        (tokens, warps), broad = self.products.reading, max(16, triton.next_power_of_2(self.d))
        return self.compiled() | {"TOKENS": tokens, "BROAD": broad, "num_warps": warps}

    def pulling(self) -> dict[str, Any]:
        """What those that pull gradients out of a state are."""
        return self.reading() | {"COLUMNS": self.columns}


def plan_of(x: Inputs) -> Plan:
    """The plan of a call."""
    (b, h, n, d), (g, m), e = x.q.shape, x.k.shape[1:3], x.v.shape[-1]
    s = g if x.gates is None else h
    products = PRODUCTS[x.q.dtype]
    chunk = CHUNK if x.causal else chunk_of(m, b * s * pairs_of(d), products.reading[0])
    return Plan(b, h, g, s, n, m, d, e, chunk, min(products.width, max(16, triton.next_power_of_2(e))), products)


def chunk_of(tokens: int, programs: int, block: int) -> int:
    """Tokens of a chunk where chunks are for programs alone: as few chunks as fill a card, of at least 512 tokens."""
    chunks = max(1, min(PROGRAMS // programs, tokens // CHUNK))
    return max(block, -(-tokens // (chunks * block)) * block)


def strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, head and token."""
    return x.stride()[:3]  # type: ignore[return-value]


@lru_cache(maxsize=32)
def factors_of(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Which two numbers of a head make each packed feature (-1: 1), and the factor of their product."""
    left, right, factor = [-1], [-1], [1.0]
    for j in range(head_dim):
        left, right, factor = [*left, j], [*right, -1], [*factor, 1.0]
    for i in range(head_dim):
        for j in range(i, head_dim):
            left, right, factor = [*left, i], [*right, j], [*factor, 0.5**0.5 if i == j else 1.0]
    return torch.tensor(left, device=device), torch.tensor(right, device=device), torch.tensor(factor, device=device)
