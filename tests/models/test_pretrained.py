"""A model as a folder: back bit for bit, or one clear error."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tsla.models import Encoder, SequenceClassifier
from tsla.models.pretrained import load_weights, read_model_config, save_model


def model(dim: int = 8, depth: int = 2) -> SequenceClassifier:
    return SequenceClassifier(Encoder(vocab_size=11, dim=dim, depth=depth, heads=2), num_classes=3, pool="attention")


@pytest.fixture
def folder(tmp_path):
    save_model(model(), {"name": "läuft", "sizes": [1, 2]}, tmp_path / "deep" / "model")
    return tmp_path / "deep" / "model"


def test_round_trip(tmp_path):
    first, second = model(), model()
    ids = torch.randint(11, (2, 5))
    assert not torch.equal(first(ids), second(ids))
    save_model(first, {"a": 1}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert read_model_config(tmp_path) == {"a": 1}
    load_weights(second, tmp_path)
    assert torch.equal(first(ids), second(ids))
    assert all(
        torch.equal(first.state_dict()[name], w) for name, w in load_file(tmp_path / "model.safetensors").items()
    )


def test_weights_that_share_memory_or_lie_askew_are_saved_too(tmp_path):
    first, second = model(), model()
    first.head.weight.data = first.head.weight.data.T.contiguous().T
    first.double()
    save_model(first, {}, tmp_path)
    load_weights(second.double(), tmp_path)
    assert torch.equal(first.head.weight, second.head.weight)


def test_what_layers_share_is_shared_again(tmp_path):
    first, second = model(), model()
    for each in (first, second):
        each.encoder.blocks[1].feed_forward = each.encoder.blocks[0].feed_forward
    save_model(first, {}, tmp_path)
    load_weights(second, tmp_path)
    ids = torch.randint(11, (2, 5))
    assert torch.equal(first(ids), second(ids))
    assert second.encoder.blocks[1].feed_forward is second.encoder.blocks[0].feed_forward


def test_missing_files(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors in .*model"):
        load_weights(model(), folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        read_model_config(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        load_weights(model(), folder)


def test_weights_of_another_model_change_nothing(folder):
    other = model(depth=3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="holds another model") as caught:
        load_weights(other, folder)
    lines = str(caught.value).splitlines()
    assert "encoder.blocks.2.feed_forward.into.bias: (32,) here, absent in the file" in lines[1]
    assert len(lines) == 7 and lines[-1].strip().startswith("... ")
    with pytest.raises(ValueError, match=r"feed_forward.into.weight: \(64, 16\) here, \(32, 8\) in the file"):
        load_weights(model(dim=16), folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "has format 'list', expected 'tsla/1'"),
        (b"null", "has format 'NoneType', expected 'tsla/1'"),
        (b"{}", "has format None, expected 'tsla/1'"),
        (b'{"format": "tsla/2"}', "has format 'tsla/2', expected 'tsla/1'"),
        (b'{"format": ["tsla/1"]}', "expected 'tsla/1'"),
    ],
)
def test_foreign_configs(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_model_config(tmp_path)
    assert message in str(caught.value) and "config.json" in str(caught.value)


def test_the_config_is_plain_json(folder):
    assert json.loads((folder / "config.json").read_text()) == {"format": "tsla/1", "name": "läuft", "sizes": [1, 2]}
