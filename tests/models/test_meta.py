"""Models of every mixer on the meta device: all sizes without memory, which is how large ones are counted."""

import mechanisms
import pytest
import torch

from tsla.models import Encoder, SequenceClassifier

CASES = [(name, causal) for name in mechanisms.NAMES for causal in mechanisms.directions(name)]


@pytest.mark.parametrize(("name", "causal"), CASES)
def test_a_model_is_built_and_called_without_memory(name, causal, monkeypatch):
    monkeypatch.undo()  # torch.device knows its constructors by themselves, not what the tests put in their place
    torch.utils._device._device_constructors.cache_clear()

    def mixer(layer):
        return mechanisms.build(name, causal=causal, dtype=torch.float32)

    with torch.device("meta"):
        encoder = Encoder(vocab_size=9, dim=mechanisms.DIM, depth=2, causal=causal, mixer=mixer)
        model = SequenceClassifier(encoder, num_classes=3)
        logits = model(torch.zeros(2, 40, dtype=torch.long), torch.ones(2, 40, dtype=torch.bool))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert logits.is_meta and logits.shape == (2, 3)
