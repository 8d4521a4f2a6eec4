"""From raw inputs to rows and back, and what is refused on the way."""

import json

import numpy as np
import pytest
import train_runs as runs
from hypothesis import given
from hypothesis import strategies as st

from tsla.tasks.encoding import decode, encode, encode_inputs, numbers, shorten
from tsla.tasks.listops_grammar import TOKENS

BYTES = runs.spec(257, inputs="bytes")
WORDS = runs.spec(12, inputs="tokens")
LISTOPS = runs.spec(len(TOKENS), inputs="listops")


def series(channels):
    return runs.spec(None, inputs="series", channels=channels)


SERIES = series(None)


@given(st.text(min_size=1).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_texts_are_their_utf8_bytes(text):
    row = encode(BYTES, text)
    assert (row - 1).astype(np.uint8).tobytes() == text.encode() and row.min() > 0
    assert decode(BYTES, row) == text


def test_bytes_of_every_value():
    row = encode(BYTES, bytes(range(256)))
    assert row.tolist() == list(range(1, 257))


@pytest.mark.parametrize("value", ["1 2 10", "1,2,10", " [1, 2, 10]\n", [1, 2, 10], (1, 2, 10), np.array([1, 2, 10])])
def test_tokens(value):
    row = encode(WORDS, value)
    assert row.tolist() == [2, 3, 11] and decode(WORDS, row) == "1 2 10"


def test_listops():
    ids = encode(LISTOPS, "( ( ( [MAX 4 ) [MIN 2 9 ] ) ] )")
    assert decode(LISTOPS, ids) == "[MAX 4 [MIN 2 9 ] ]"
    assert [TOKENS[i] for i in ids] == ["[MAX", "4", "[MIN", "2", "9", "]", "]"]


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ([1, 2.5, 3], (3, 1)),
        ("1 2.5,3", (3, 1)),
        ("1\n2.5\n3\n", (3, 1)),
        ([[1, 2.5], [3, 4]], (2, 2)),
        ("1 2.5; 3 4", (2, 2)),
        ("1,2.5\n3,4\n", (2, 2)),
        ("[[1, 2.5], [3, 4]]", (2, 2)),
        (np.array([1, 2.5, 3], np.float16), (3, 1)),
    ],
)
def test_series(value, shape):
    row = encode(SERIES, value)
    assert row.dtype == np.float64 and row.shape == shape
    assert row.reshape(-1).tolist() == [1, 2.5, 3, 4][: row.size]
    assert (encode(SERIES, decode(SERIES, row)) == row).all()


def test_series_far_from_0_keep_their_differences():
    values = [1_700_000_000 + i / 1000 for i in range(9)]
    assert encode(SERIES, values)[:, 0].tolist() == encode(SERIES, " ".join(map(str, values)))[:, 0].tolist() == values
    assert encode(SERIES, np.array([1, 2.5], np.float32))[:, 0].tolist() == [1, 2.5]
    assert encode(SERIES, "1,118")[:, 0].tolist() == [1, 118]


def test_the_head_is_kept():
    assert encode(BYTES, "abc", max_length=2).tolist() == [98, 99]
    assert encode(WORDS, [1, 2, 3], max_length=5).tolist() == [2, 3, 4]
    assert encode(SERIES, [[1, 2], [3, 4]], max_length=1).tolist() == [[1, 2]]


WRONG = [
    (BYTES, "", r"input \(''\) is empty"),
    (BYTES, None, r"input \(None\) must be a text or bytes, got NoneType"),
    (BYTES, 3, r"input \(3\) must be a text or bytes, got int"),
    (BYTES, "a\ud800", "must be a text that UTF-8 can hold"),
    (WORDS, [], r"input \(\[\]\) is empty"),
    (WORDS, " , ", "is empty"),
    (WORDS, "1 two 3", r"input \('1 two 3'\) must be whole numbers from 0 to 10, .*: 'two' is none"),
    (WORDS, [1, 11], r"token \(11\) must be one of the whole numbers from 0 to 10"),
    (WORDS, [1, -1], r"token \(-1\) must"),
    (WORDS, [1, 10**30], r"token \(10+\) must"),
    (WORDS, [1, 2**64 - 1], r"token \(18446744073709551615\) must"),
    (WORDS, "9" * 5000, "must be"),
    (WORDS, [1, 2.0], "got a list of float and int"),
    (WORDS, [1, None], "got a list of NoneType and int"),
    (WORDS, [[1], [2, 3]], "got a list of list"),
    (WORDS, [True, False], "got a list of bool"),
    (WORDS, 5, "got int"),
    (WORDS, b"\xff", "must be UTF-8"),
    (LISTOPS, "[MAX 4 [MUX 2 9 ] ]", r"token \('\[MUX'\) must be one of 0 1 2"),
    (LISTOPS, "[MAX 4 2", "must be one complete expression: 1 open"),
    (LISTOPS, "<pad>", "must be one of"),
    (LISTOPS, "( )", "is empty"),
    (LISTOPS, 7, "must be a text such as"),
    (SERIES, [1, float("nan")], r"number \(nan\) in \[1, nan\] must be finite"),
    (SERIES, "1 inf", "must be finite"),
    (SERIES, [1e39], "must be finite, and below 3.4e38"),
    (SERIES, "1 x", "'x' is none"),
    (SERIES, [[1, 2], [3]], "must be a list of numbers, or of lists of one length, got a list of list"),
    (SERIES, "1 2; 3", "of lists of one length"),
    (SERIES, "[[1, 2], [3", "in JSON"),
    (SERIES, [[[1]]], "must be a list"),
    (SERIES, ["1", "2"], "got a list of str"),
    (SERIES, [True], "got a list of bool"),
    (SERIES, None, "got nothing"),
    (SERIES, "", "is empty"),
    (series(2), [1, 2, 3], "has 1 channels, 2 are needed"),
    (series(1), [[1, 2]], "has 2 channels, 1 are needed"),
]


@pytest.mark.parametrize(("spec", "value", "message"), WRONG, ids=map(str, range(len(WRONG))))
def test_what_is_refused(spec, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        encode(spec, value)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"), [(3, [3]), (2.5, [2.5]), ("-1e3", [-1000]), ([1, 2], [1, 2]), ("1 2", [1, 2])]
)
def test_numbers(value, found):
    assert numbers(value) == found


@pytest.mark.parametrize("value", [None, "", "x", "1;2 3", True, [], [None], float("nan"), "inf", [[1, 2]], 10**400])
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"\("):
        numbers(value)


def test_errors_show_little_of_a_long_value():
    for value in ("x" * 10**6, list(range(10**5)), np.zeros(10**5), b"y" * 10**6, json.loads("[[1]]")):
        assert len(shorten(value)) <= 40


def test_a_pair_is_two_inputs():
    spec = runs.spec(257, inputs="bytes")._replace(pairs="nli")
    for value in (["ab", "c"], ("ab", "c"), "ab\tc", b"ab\tc"):
        one, two = encode_inputs(spec, value)
        assert one.tolist() == [98, 99] and two.tolist() == [100]
    assert [row.tolist() for row in encode_inputs(spec, "abc\tdef", max_length=1)] == [[98], [101]]
    assert [row.tolist() for row in encode_inputs(spec._replace(pairs=""), "ab")] == [[98, 99]]
    assert encode_inputs(spec, b"\xff\t\x00")[0].tolist() == [256]
    for wrong in ("abc", "a\tb\tc", ["a"], 7):
        with pytest.raises(ValueError, match=r"must be two: a list of two, or a text with one tab between them$"):
            encode_inputs(spec, wrong)
    with pytest.raises(ValueError, match=r"^input \(''\) is empty"):
        encode_inputs(spec, "abc\t")
