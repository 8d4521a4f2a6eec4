"""A model as a folder: `config.json` says how to build it, `model.safetensors` its weights. Nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT = "tsla/1"


def save_model(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write weights and `config` (plain data) into `folder`, made if needed.

    What layers share is written for each: a file of weights may hold nothing twice in one place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    seen: set[int] = set()
    for name, tensor in weights.items():
        weights[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config that `save_model` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object of this format.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path} has format {found!r}, expected {FORMAT!r}")
    return {key: value for key, value in config.items() if key != "format"}


def load_weights(model: nn.Module, folder: Path, *, keep: tuple[str, ...] = ()) -> None:
    """Fill `model` from `folder`; names and shapes must match, but for names that begin as `keep` says: those stay.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: a damaged file, or weights of another model, with the names that differ.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no model.safetensors in {folder}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    own = model.state_dict()
    if keep:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(keep)}
        weights |= {name: tensor for name, tensor in own.items() if name.startswith(keep)}
    differing = [
        f"{name}: {_shape(own.get(name))} here, {_shape(weights.get(name))} in the file"
        for name in sorted(own.keys() | weights.keys())
        if _shape(own.get(name)) != _shape(weights.get(name))
    ]
    if differing:
        listed = "\n  ".join(differing[:5] + ([f"... {len(differing) - 5} more"] if len(differing) > 5 else []))
        raise ValueError(f"{path} holds another model:\n  {listed}")
    model.load_state_dict(weights)


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))
