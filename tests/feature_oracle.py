"""The features of every feature map, from their formulas: other code than tsla's, in the type of what comes in."""

from math import pi

import torch
from torch import Tensor

from tsla.mixers.features import FeatureMap
from tsla.mixers.hedgehog import HedgehogFeatures
from tsla.mixers.lightning import LrpeFeatures, SiluFeatures
from tsla.mixers.linear import (
    CosineFeatures,
    EluFeatures,
    HeadLinear,
    RebasedFeatures,
    ReluFeatures,
    T2RFeatures,
    TaylorFeatures,
)
from tsla.mixers.performer import FavorFeatures
from tsla.mixers.rfa import RandomFeatures


def features(made: FeatureMap, x: Tensor, is_query: bool, places: Tensor) -> Tensor:
    """phi(x) of x ``(b, heads, n, d)`` at places ``(b, n)``, up to what cancels between a query's weights."""
    d, zero = x.shape[-1], torch.zeros(())
    match made:
        case EluFeatures():
            return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
        case ReluFeatures():
            return torch.maximum(x, zero)
        case CosineFeatures():
            angle = pi * places[:, None, :, None] / (2 * made.horizon)
            wave = torch.polar(torch.maximum(x, zero), angle.to(x.dtype).expand_as(x))
            return torch.view_as_real(wave).flatten(-2)
        case RebasedFeatures():
            centred = x - x.mean(-1, keepdim=True)
            normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return products(normed * made.gamma[int(is_query)] + made.beta[int(is_query)]) / d**0.5
        case TaylorFeatures():
            x = x / d**0.25
            return torch.cat([torch.ones_like(x[..., :1]), x, products(x) / 2**0.5], dim=-1)
        case T2RFeatures():
            return torch.maximum(each_head(made.query if is_query else made.key, x), zero)
        case HedgehogFeatures():
            return hedgehog(made.kind, each_head(made.query if is_query else made.key, x), is_query)
        case FavorFeatures():
            return favor(made.kind, made.projection.to(x.dtype), x / d**0.25)
        case RandomFeatures():
            size = x.square().sum(-1, keepdim=True).sqrt()
            turned = each_matrix(made.projection * made.sigma[:, None], x / torch.where(size == 0, 1.0, size))
            turned = turned / made.projection.shape[1] ** 0.5 if made.kind == "arccos" else turned
            if made.kind == "arccos":
                return torch.maximum(turned, zero)
            return torch.cat([turned.cos(), turned.sin()], dim=-1) / made.projection.shape[1] ** 0.5
        case LrpeFeatures():
            inner = features(made.inner, x, is_query, places)
            theta = made.theta.repeat_interleave(x.shape[1] // made.theta.shape[0], dim=0)
            angle = places[:, None, :, None] * theta[:, None]
            return torch.cat([inner * angle.cos(), inner * angle.sin()], dim=-1)
        case SiluFeatures():
            return x / (1 + (-x).exp()) if made.activation == "silu" else x
    raise AssertionError(f"{type(made).__name__} has no formula here")


def products(x: Tensor) -> Tensor:
    """All x_i x_j, so that the products of two such are (x.y)^2."""
    return (x[..., :, None] * x[..., None, :]).flatten(-2)


def each_head(layer: HeadLinear, x: Tensor) -> Tensor:
    """x W_h + b_h, head by head."""
    share = x.shape[1] // len(layer.weight)
    made = [x[:, i] @ layer.weight[i // share] + layer.bias[i // share] for i in range(x.shape[1])]
    return torch.stack(made, dim=1)


def each_matrix(rows: Tensor, x: Tensor) -> Tensor:
    """W_h x, head by head."""
    share = x.shape[1] // len(rows)
    return torch.stack([x[:, i] @ rows[i // share].to(x.dtype).T for i in range(x.shape[1])], dim=1)


def hedgehog(kind: str, z: Tensor, is_query: bool) -> Tensor:
    up, down = z.exp(), 1 / z.exp()
    match kind:
        case "softmax":
            return torch.cat([up / up.sum(-1, keepdim=True), down / down.sum(-1, keepdim=True)], dim=-1)
        case "max":
            return torch.cat([up / up.amax(-1, keepdim=True), down / down.amax(-1, keepdim=True)], dim=-1)
        case "joint":
            both = torch.cat([up.square(), down.square()], dim=-1)
            return both / both.sum(-1, keepdim=True)
    return torch.cat([up, down], dim=-1)


def favor(kind: str, rows: Tensor, x: Tensor) -> Tensor:
    turned = x @ rows.T
    if kind == "relu":
        return torch.where(turned > 0, turned, 0.0) + 1e-3
    size = (-x.square().sum(-1, keepdim=True) / 2).exp()
    return (
        torch.cat([size * turned.exp(), size / turned.exp()], dim=-1) if kind == "hyperbolic" else size * turned.exp()
    )
