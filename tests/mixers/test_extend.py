"""Decoding: a causal mixer run in any pieces, with any masks, is the same mixer run at once on the real tokens."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from cases import flat, results
from mechanisms import BIDIRECTIONAL, CAUSAL, CAUSAL_WITH_OPTIONS, DIM, GROWING, OPTIONS, WINDOW, build, padding
from torch.testing import assert_close

EXACT = {"rtol": 1e-9, "atol": 1e-9}
EVERYTHING = pytest.mark.parametrize(("name", "kind"), CAUSAL_WITH_OPTIONS)
EVERYONE = pytest.mark.parametrize("name", CAUSAL)
LINEAR = [name for name in CAUSAL if not name.startswith(GROWING)]


def tokens(b=2, n=11, dtype=torch.float64):
    return torch.randn(b, n, DIM, dtype=dtype)


def pieces(mixer, x, cuts, mask=None):
    """Outputs of the pieces between the cuts, joined, and the last state."""
    outputs, state = [], None
    for start, stop in pairwise(cuts):
        out, state = mixer.extend(x[:, start:stop], state, mask=None if mask is None else mask[:, start:stop])
        outputs.append(out)
    return torch.cat(outputs, dim=1), state


def random_cuts(n):
    return (0, *sorted(torch.randint(0, n + 1, (4,)).tolist()), n)


@EVERYTHING
def test_any_pieces_are_the_full_pass(name, kind):
    mixer, x = build(name, kind, causal=True), tokens()
    whole = mixer(x)
    for cuts in ((0, 11), range(12), (0, 6, *range(7, 12)), (0, 1, 11), (0, 0, 10, 10, 11), random_cuts(11)):
        out, state = pieces(mixer, x, cuts)
        assert_close(out, whole, **EXACT)
        assert torch.equal(state.length, torch.tensor([11, 11])) and state.length.dtype == torch.int64


@pytest.mark.parametrize("name", ["taylor", "window", "split", "softmax", "fourier"])
def test_every_cut_in_two(name):
    mixer, x = build(name, "all", causal=True), tokens(n=9)
    whole = mixer(x)
    for cut in range(10):
        assert_close(pieces(mixer, x, (0, cut, 9))[0], whole, **EXACT)


@EVERYTHING
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_masked_tokens_leave_no_trace(name, kind, keep):
    """Each row equals the full pass over its real tokens alone, whatever the holes and the pieces."""
    mixer, x, mask = build(name, kind, causal=True), tokens(4, 23), torch.rand(4, 23) < keep
    mask[0], mask[1, :9] = False, False
    dirty = x.masked_fill(~mask[..., None], 1e3)
    for cuts in ((0, 23), range(24), random_cuts(23)):
        out, state = pieces(mixer, dirty, cuts, mask)
        assert torch.equal(state.length, mask.sum(-1))
        assert out.isfinite().all()
        for row in range(1, 4):
            assert_close(out[row : row + 1, mask[row]], mixer(x[row : row + 1, mask[row]]), **EXACT)


@EVERYTHING
def test_padding_of_the_prompt(name, kind):
    """Prompts of several lengths, padded left or right, then steps: as if each row had been alone."""
    mixer, prompt, rest = build(name, kind, causal=True), tokens(3, 9), tokens(3, 6)
    lengths = (9, 4, 1)
    for left in (False, True):
        mask = padding(*lengths, total=9, left=left)
        _, state = mixer.extend(prompt, mask=mask)
        steps = []
        for i in range(6):
            out, state = mixer.extend(rest[:, i : i + 1], state)
            steps.append(out)
        got = torch.cat(steps, dim=1)
        for row, n in enumerate(lengths):
            alone = mixer(torch.cat([prompt[row : row + 1, mask[row]], rest[row : row + 1]], dim=1))[:, n:]
            assert_close(got[row : row + 1], alone, **EXACT)


@EVERYTHING
def test_a_masked_token_leaves_the_state_alone(name, kind):
    mixer = build(name, kind, causal=True)
    _, before = mixer.extend(tokens())
    _, after = mixer.extend(tokens(n=3), before, mask=torch.zeros(2, 3, dtype=torch.bool))
    if name in LINEAR:  # others keep masked places, and see none of them
        for a, b in zip(flat(after), flat(before), strict=True):
            assert torch.equal(a, b)
    x = tokens()
    assert_close(mixer.extend(x, after)[0], mixer.extend(x, before)[0], **EXACT)


def size(state):
    return sum(x.numel() * x.element_size() for x in flat(state))


def content(state):
    """Bytes of keys, values and sums: counters and flags aside."""
    return sum(x.numel() * x.element_size() for x in flat(state) if x.is_floating_point())


@EVERYTHING
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_state_bytes(name, kind, dtype):
    """The promise equals what is held, and no state but those of the quadratic mixers grows."""
    mixer, states = build(name, kind, causal=True, dtype=dtype), {}
    for n in (1, 3, 500):
        _, states[n] = mixer.extend(tokens(2, n, dtype))
        assert mixer.state_bytes(n) * 2 == content(states[n])
    if name in LINEAR:
        assert size(states[1]) == size(states[3]) == size(states[500])
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in flat(states[500])}
        assert sum(storages.values()) <= 2 * size(states[500])  # nothing longer is kept alive by a view
    else:
        assert content(states[500]) == 500 * content(states[1])


def test_state_bytes_of_known_sizes():
    assert build("none").state_bytes(99) == 0
    assert build("conv", dtype=torch.float32).state_bytes(99) == 4 * 2 * 2 * DIM
    assert build("taylor", "one key head", dtype=torch.float32).state_bytes(99) == 4 * 153 * 5
    assert build("softmax", "grouped", dtype=torch.float32).state_bytes(99) == 4 * 2 * 99 * 8
    assert build("fourier", "grouped", dtype=torch.float32).state_bytes(99) == 4 * 2 * 99 * 8
    assert build("window", "grouped", dtype=torch.float32).state_bytes(99) == 4 * 2 * WINDOW * 8
    assert build("shift", dtype=torch.float32).state_bytes(99) == 4 * (4 * 153 * 5 + DIM // 2)
    assert build("split", dtype=torch.float32).state_bytes(99) == 4 * 4 * (153 * 5 + WINDOW * 8)


@EVERYTHING
def test_states_of_low_precision_modules_keep_sums_in_float32(name, kind):
    mixer = build(name, kind, causal=True, dtype=torch.bfloat16)
    out, state = mixer.extend(tokens(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    if name.startswith("taylor"):
        assert state.kv.dtype == state.z.dtype == torch.float32


@EVERYTHING
def test_a_state_can_be_used_twice_and_is_left_alone(name, kind):
    mixer, x = build(name, kind, causal=True), tokens()
    _, state = mixer.extend(tokens())
    copies = [part.clone() for part in flat(state)]
    first, second = mixer.extend(x, state), mixer.extend(x, state)
    assert torch.equal(first[0], second[0])
    for part, before in zip(flat(state), copies, strict=True):
        assert torch.equal(part, before) and part._version == 0


@EVERYTHING
def test_a_state_survives_copy_and_pickle(name, kind):
    mixer, x = build(name, kind, causal=True), tokens()
    with torch.no_grad():
        _, state = mixer.extend(tokens())
        for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
            assert type(twin) is type(state)
            assert torch.equal(mixer.extend(x, twin)[0], mixer.extend(x, state)[0])


@EVERYTHING
def test_gradients_flow_through_the_state(name, kind):
    if name == "none":
        return
    mixer, cuts = build(name, kind, causal=True), (0, 4, 5, 11)
    inputs = {"x": tokens()}
    whole = results(lambda x: mixer(x), inputs)
    parts = results(lambda x: pieces(mixer, x, cuts)[0], inputs)
    assert_close(parts, whole, **EXACT)


@EVERYTHING
def test_autocast(name, kind):
    """Prefill and steps under autocast, then a step without: finite, and near float32."""
    mixer, x = build(name, kind, causal=True, dtype=torch.float32), tokens(2, 40, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, state = mixer.extend(x[:, :30])
        low, state = mixer.extend(x[:, 30:39], state)
    assert low.dtype == (torch.float32 if name == "none" else torch.bfloat16)
    last, _ = mixer.extend(x[:, 39:], state)
    reference = mixer(x)
    got = torch.cat([low.float(), last.float()], dim=1)
    assert (got - reference[:, 30:]).norm() <= 0.03 * reference[:, 30:].norm()


@EVERYTHING
def test_a_state_of_another_batch_is_refused(name, kind):
    mixer = build(name, kind, causal=True)
    for b, other in ((2, 1), (1, 2), (2, 3)):
        _, state = mixer.extend(tokens(b))
        with pytest.raises(ValueError, match=rf"^state must be of {other} sequences, as x is, got \({b},\)$"):
            mixer.extend(tokens(other), state)


@EVERYONE
def test_nothing_to_extend(name):
    mixer = build(name, causal=True)
    _, state = mixer.extend(tokens())
    for start in (None, state):
        out, after = mixer.extend(tokens(n=0), start)
        assert out.shape == (2, 0, DIM)
        assert torch.equal(after.length, torch.zeros(2) if start is None else state.length)
    assert mixer.extend(tokens(b=0))[0].shape == (0, 11, DIM)


@pytest.mark.parametrize("name", [name for name in CAUSAL if name in BIDIRECTIONAL])
def test_a_bidirectional_mixer_cannot_extend(name):
    with pytest.raises(ValueError, match=r"^extend needs causal=True: a later token would change earlier outputs$"):
        build(name).extend(tokens())


@pytest.mark.parametrize("kind", OPTIONS)
def test_long_decoding_of_a_window_forgets(kind):
    """What is further back than the window has no influence at all."""
    mixer, x = build("window", kind, causal=True), tokens(1, 60)
    other = x.clone()
    other[:, :40] = torch.randn(1, 40, DIM)
    first, second = (pieces(mixer, y, range(61))[0][:, 40 + WINDOW :] for y in (x, other))
    assert torch.equal(first, second)
