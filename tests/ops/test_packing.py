"""Packed rows: sequences one after another in one row give what each gives by itself."""

import re

import pytest
import torch
from cases import agree, qkv, some_decay

from tsla.ops import KernelState, linear_attention, taylor_attention, taylor_feature_dim, window_attention
from tsla.ops.packing import groups

LENGTHS = ([5], [3, 7, 1, 40, 0, 2, 5, 35, 4], [0, 0, 4, 0], [1] * 9, [70, 3, 65], [0, 0])
SEQUENCES = pytest.mark.parametrize("lengths", LENGTHS, ids=str)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
RUNS = {
    "direct": lambda **x: taylor_attention(**x, impl="direct"),
    "linear": lambda **x: taylor_attention(**x, impl="linear", chunk_size=4),
    "auto, order 4": lambda **x: taylor_attention(**x, order=4),
    "centre": lambda **x: taylor_attention(**x, center="mean", impl="linear", chunk_size=4),
    "coefficients, sums": lambda **x: taylor_attention(**x, coefficients=(1, 0.5, 0.3), normalize=False, impl="direct"),
    "features": lambda q, k, v, **x: linear_attention(q.exp(), k.exp(), v, **x, chunk_size=4),
    "features of either sign": lambda q, k, v, **x: linear_attention(q, k, v, **x, floor=0.5, impl="linear"),
    "window": lambda **x: window_attention(**x, window=3),
}
EVERY = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


def bounds(lengths, dtype=torch.int64):
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def apart(run, cu_seqlens, **inputs):
    """Each sequence through a call of its own."""
    outputs, states = [], []
    state = inputs.pop("state", None)
    for i, (start, stop) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        own = {}
        for name, x in inputs.items():
            cut = isinstance(x, torch.Tensor) and x.dim() > 1
            own[name] = (x[:, start:stop] if name == "key_mask" else x[:, :, start:stop]) if cut else x
        if state is not None:
            own["state"] = KernelState(*(part[i : i + 1] for part in state))
        made = run(**own)
        outputs.append(made if isinstance(made, torch.Tensor) else made.output)
        if not isinstance(made, torch.Tensor) and made.state is not None:
            states.append(made.state)
    joined = [torch.cat(parts) for parts in zip(*states, strict=True)]
    return torch.cat(outputs, dim=2), *joined


def packed(run, cu_seqlens, **inputs):
    made = run(**inputs, cu_seqlens=cu_seqlens)
    return (made,) if isinstance(made, torch.Tensor) else (made.output, *(made.state or ()))


@EVERY
@CAUSAL
@SEQUENCES
def test_equals_separate_calls_in_output_state_and_gradient(run, causal, lengths):
    cu = bounds(lengths)
    if sum(lengths) == 0:
        assert [x.shape for x in packed(run, cu, **qkv(b=1, n=0))] == [x.shape for x in apart(run, cu, **qkv(b=1, n=0))]
        return
    agree(
        lambda **x: packed(run, cu, **x, causal=causal), lambda **x: apart(run, cu, **x, causal=causal),
        qkv(b=1, n=sum(lengths)), 1e-11,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["direct", "linear", "centre", "features"])
@CAUSAL
@pytest.mark.parametrize("per_token", [False, True])
def test_with_decay_and_a_mask(name, causal, per_token):
    lengths = [3, 7, 1, 40, 0, 2, 5, 35, 4]
    cu, n = bounds(lengths, torch.int32), sum(lengths)
    mask = torch.rand(1, n) < 0.7
    mask[:, 3:10] = False  # a whole sequence
    inputs = qkv(b=1, n=n) | {"log_decay": some_decay(1, 4, n) if per_token else some_decay(4)}
    options = {"causal": causal, "key_mask": mask}
    agree(
        lambda **x: packed(RUNS[name], cu, **x, **options), lambda **x: apart(RUNS[name], cu, **x, **options), inputs,
        1e-11,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["direct", "linear", "centre"])
@CAUSAL
def test_each_goes_on_from_its_own_state(name, causal):
    """Sequences cut in two: the second halves, packed, with the states of the packed first halves."""
    lengths = [5, 7, 0, 40]
    cu, n, f = bounds(lengths), sum(lengths), taylor_feature_dim(3)
    inputs = qkv(b=1, n=n) | {"kv": torch.randn(4, 2, f, 5).double(), "z": torch.rand(4, 2, f).double() + 9}

    def begun(do):
        def run(q, k, v, kv, z):
            state = KernelState(kv, z, torch.tensor([4, 3, 2, 1]))
            return do(RUNS[name], cu, q=q, k=k, v=v, state=state, causal=causal, return_state=True)

        return run

    agree(begun(packed), begun(apart), inputs, 1e-11)
    *_, length = begun(packed)(**inputs)
    assert length.tolist() == [9, 10, 2, 41]


@EVERY
def test_sequences_do_not_meet(run):
    x, cu = qkv(b=1, n=20), bounds([6, 8, 6])
    before = packed(run, cu, **x)[0]
    for tensor in x.values():
        tensor[:, :, :6], tensor[:, :, 14:] = torch.nan, 1e6
    assert torch.equal(packed(run, cu, **x)[0][:, :, 6:14], before[:, :, 6:14])


@pytest.mark.parametrize("lengths", [[1, 2, 3, 4, 5, 9, 17, 100, 0, 64, 65], [50] * 5], ids=str)
def test_less_than_half_is_padding(lengths):
    found = groups(bounds(lengths))
    assert sorted(i for group in found for i in group.sequences.tolist()) == list(range(len(lengths)))
    for group in found:
        assert group.real.sum(1).tolist() == [lengths[i] for i in group.sequences]
        assert group.real.numel() == 0 or group.real.double().mean() > 0.5
    assert len(groups(bounds([50] * 5))) == 1


def test_low_precision_and_types():
    x, cu = qkv(b=1, n=20, dtype=torch.bfloat16), bounds([6, 8, 6])
    out, state = taylor_attention(**x, causal=True, cu_seqlens=cu)
    assert out.dtype == torch.bfloat16 and state.kv.dtype == torch.float32


@pytest.mark.parametrize(
    ("cu", "message"),
    [
        (torch.tensor([0, 5]), "cu_seqlens must rise from 0 to the length (9), got [0, 5]"),
        (torch.tensor([1, 9]), "cu_seqlens must rise from 0 to the length (9), got [1, 9]"),
        (torch.tensor([0, 7, 3, 9]), "cu_seqlens must rise from 0 to the length (9), got [0, 7, 3, 9]"),
        (torch.tensor([0.0, 9.0]), "cu_seqlens must be int32 or int64 of shape (sequences + 1,), of at least one "
                                   "sequence, got torch.float32 of shape (2,)"),
        (torch.tensor([[0, 9]]), "cu_seqlens must be int32 or int64 of shape (sequences + 1,), of at least one "
                                 "sequence, got torch.int64 of shape (1, 2)"),
        (torch.tensor([9]), "cu_seqlens must be int32 or int64 of shape (sequences + 1,), of at least one "
                            "sequence, got torch.int64 of shape (1,)"),
        (torch.arange(20), "cu_seqlens must rise from 0 to the length (9), got [0, 1, 2, 3, ..., 19]"),
    ],
    ids=str,
)  # fmt: skip
@EVERY
def test_refusals(run, cu, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(**qkv(b=1), cu_seqlens=cu)


def test_more_refusals():
    cu = torch.tensor([0, 4, 9])
    with pytest.raises(ValueError, match=r"^cu_seqlens needs a batch of one packed row, got 2$"):
        taylor_attention(**qkv(b=2), cu_seqlens=cu)
    with pytest.raises(ValueError, match=r"^cu_seqlens needs as many keys \(12\) as queries \(9\)$"):
        taylor_attention(**qkv(b=1, m=12), cu_seqlens=cu)
    _, state = taylor_attention(**qkv(b=1), return_state=True)
    with pytest.raises(ValueError, match=r"^state must be of 2 sequences, got \(1,\)$"):
        taylor_attention(**qkv(b=1), cu_seqlens=cu, state=state)


def test_wrong_decays_and_states_are_refused_and_not_cut_to_fit():
    cu, x = torch.tensor([0, 4, 9]), qkv(b=1)
    for shape in ((2, 4, 9), (1, 4, 10), (1, 4, 8), (2, 4), (), (3,)):
        message = f"log_decay must have shape (4,) or (1, 4, 9), got {shape}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            taylor_attention(**x, cu_seqlens=cu, log_decay=-torch.rand(shape))
    _, state = taylor_attention(**qkv(b=2), return_state=True)
    for name in ("kv", "z", "length"):
        wrong = state._replace(**{name: torch.cat([getattr(state, name)] * 2)})
        with pytest.raises(ValueError, match=r"^state must be of 2 sequences, got \(4,\)$"):
            taylor_attention(**x, cu_seqlens=cu, state=wrong)
    with pytest.raises(ValueError, match=r"^cu_seqlens must be a tensor, got list$"):
        taylor_attention(**x, cu_seqlens=[0, 4, 9])


def test_a_default_device_changes_nothing():
    """Bounds are counted on the CPU, whatever torch makes elsewhere."""
    with torch.device("meta"):
        (group,) = groups(torch.tensor([0, 3, 7], device="cpu"))
    assert group.sequences.tolist() == [0, 1] and group.places.device.type == "cpu"
