"""What trivial rules reach on ListOps."""

import pytest
from listops_cases import expressions, ids

from tsla.tasks.listops import to_text
from tsla.tasks.listops_grammar import Grammar, shard
from tsla.tasks.listops_references import arguments, reference_lines


def test_arguments_of_the_root():
    row = ids("[MAX 2 [MIN 9 [SM 8 7 ] 6 ] [MED 1 0 3 ] 4 ]")
    assert [to_text(part) for part in arguments(row)] == ["2", "[MIN 9 [SM 8 7 ] 6 ]", "[MED 1 0 3 ]", "4"]


def test_simple_references_are_those_of_the_rows():
    train = expressions("[MAX 9 1 ]", "[MAX 9 2 ]", "[MIN 0 1 ]", "[MAX 4 4 ]")
    test = expressions("[MAX 9 9 ]", "[MIN 3 0 ]", "[MIN 0 [MIN 8 9 ] ]", "[SM 9 0 ]")
    lines = reference_lines(train, test)
    assert lines["majority"] == 0.5  # 9
    assert lines["root operator"] == 0.75  # 9 for MAX, 0 for MIN, nothing known of SM


def test_rules_that_know_all_digits_are_right_where_there_is_nothing_else():
    flat = [(tokens, value) for tokens, value in shard(Grammar(3, 13, 2, 10), 0, 0)]
    assert len(flat) > 200 and all(len(part) == 1 for tokens, _ in flat for part in arguments(tokens))
    lines = reference_lines(flat, flat)
    assert lines["root + digits"] == lines["root + digits + child operators"] == 1.0
    assert lines["root operator"] < 0.8


def test_subtrees_take_the_values_they_have_in_train():
    """Every sub-tree is worth 0 under MIN and 9 under MAX, so its operator decides, and the mixture does not."""
    train = expressions(*["[SM 1 [MIN 0 5 ] [MAX 9 5 ] ]"] * 300, *["[SM 1 [MIN 0 5 ] ]"] * 300)
    test = expressions(*["[SM 2 [MAX 9 9 ] ]"] * 5, *["[SM 2 [MIN 0 0 ] ]"] * 5)
    lines = reference_lines(train, test)
    assert lines["root + digits + child operators"] == 1.0
    assert lines["root + digits"] == 0.5  # the sum with 0, which is the more frequent value


def test_references_of_the_short_rows():
    """The plateaus of 20 < length < 100 (16.0, 34.8, 54.9, 63.2 percent, each within a percent or so)."""
    drawn = [row for index in range(60) for row in shard(Grammar(20, 100, 10, 10), 0, index)]
    lines = reference_lines(drawn[:4000], drawn[4000:])
    assert list(lines) == ["majority", "root operator", "root + digits", "root + digits + child operators"]
    assert list(lines.values()) == pytest.approx([0.160, 0.348, 0.549, 0.632], abs=0.035)
    assert list(lines.values()) == sorted(lines.values())
    assert reference_lines(drawn[:4000], drawn[4000:]) == lines
