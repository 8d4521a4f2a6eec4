"""The field's packages as oracles: what of them can be run here, without what they would pull in."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm


class CausalDotProduct:
    """What fast_transformers, C++ that pip does not have, computes for taylor-series-linear-attention."""

    @staticmethod
    def apply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).tril() @ v


@contextmanager
def causal_product() -> Iterator[None]:
    """While it lasts, ``fast_transformers.causal_product`` can be imported."""
    stubs = {}
    for name in ("fast_transformers", "fast_transformers.causal_product"):
        stubs[name] = ModuleType(name)
        stubs[name].__spec__ = ModuleSpec(name, None)
        stubs[name].CausalDotProduct = CausalDotProduct  # type: ignore[attr-defined]
    with patch.dict("sys.modules", stubs):
        yield


def fla(path: str) -> ModuleType:
    """A file of fla-core by its path, such as ``ops/based/naive.py``: importing the package would need Triton."""
    try:
        file = distribution("fla-core").locate_file(f"fla/{path}")
    except PackageNotFoundError:
        pytest.skip("fla-core is not installed")
    spec = spec_from_file_location(f"fla_{path.replace('/', '_')}", str(file))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_eps(attend, v: Tensor) -> Tensor:
    """What `attend` gives of v when it divides by a sum plus eps, but without that eps: it scales all columns alike."""
    out = attend(torch.cat([v, torch.ones_like(v[..., :1])], dim=-1))
    return out[..., :-1] / out[..., -1:]


def performer() -> ModuleType:
    """The module of performer-pytorch; importing it makes distutils complain of its age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("performer_pytorch.performer_pytorch")


@contextmanager
def performer_without_eps() -> Iterator[None]:
    """While it lasts, performer-pytorch adds nothing to softmax features, nor to the sums of its causal form."""
    package = performer()
    with (
        patch.dict(package.softmax_kernel.__kwdefaults__, eps=0.0),
        patch.object(package.causal_linear_attention_noncuda, "__defaults__", (128, 0.0)),
    ):
        yield


def performer_layer(name: str, *arguments: Any, **options: Any) -> Any:
    """A layer of performer-pytorch by its class's name, in float64; it announces that it has no CUDA."""
    with redirect_stdout(StringIO()):
        return getattr(performer(), name)(*arguments, **options).double()


def fla_feature_maps() -> ModuleType:
    """fla-core's feature maps, with torch's layer norm for its kernel, and without what they do not need here."""
    parts = {name: ModuleType(f"fla.{name}") for name in ("modules.activations", "modules.layernorm", "utils")}
    for name in ("fast_gelu_impl", "sigmoid", "sqrelu", "swish"):
        setattr(parts["modules.activations"], name, None)
    parts["modules.layernorm"].layer_norm = lambda x, weight, bias: layer_norm(x, x.shape[-1:], weight, bias)
    parts["utils"].checkpoint = lambda function: function
    packages = {name: ModuleType(name) for name in ("fla", "fla.modules")}
    with patch.dict("sys.modules", packages | {module.__name__: module for module in parts.values()}):
        return fla("modules/feature_map.py")
