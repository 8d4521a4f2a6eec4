"""Files of time series: what is read, what is filled, and what is refused with its line."""

import numpy as np
import pytest
from data_files import write_ts

from tsla.tasks.ts_files import read_ts


def test_channels_steps_and_classes(tmp_path):
    rows = ["1,2,3:4,5,6:b", "", "# a comment between rows", " -1e2 , .5 : 0,7 : a "]
    found = read_ts(write_ts(tmp_path / "x.ts", rows, header=["@dimensions 2", "@equalLength false"]))
    assert [series.tolist() for series in found.series] == [[[1, 4], [2, 5], [3, 6]], [[-100, 0], [0.5, 7]]]
    assert found.series[0].dtype == np.float32
    assert found.labels.tolist() == [1, 0] and found.classes == ("a", "b") and found.missing == 0


def test_ends_of_lines_capitals_and_marks(tmp_path):
    text = "\ufeff#x\r\n@ProblemName t\r\n@TIMESTAMPS False\r\n@classlabel True 1 2\r\n@DATA\r\n1,2:2\r\n3:1\r\n"
    (tmp_path / "x.ts").write_bytes(text.encode() + b"#\xff not UTF-8\n")
    found = read_ts(tmp_path / "x.ts")
    assert [len(series) for series in found.series] == [2, 1] and found.labels.tolist() == [1, 0]


def test_missing_values_are_on_the_line_between_their_neighbours(tmp_path):
    found = read_ts(write_ts(tmp_path / "x.ts", ["?,1,NaN,?,7,?:0,?,2,3,nan,5:a"]))
    assert found.series[0].T.tolist() == [[1, 1, 3, 5, 7, 7], [0, 1, 2, 3, 4, 5]]
    assert found.missing == 6


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1,2:a", "1,2:c"], [], "x.ts, line 7: class ('c') must be one of a, b"),
        (["1,2:3,4:a", "1,2:a"], [], "x.ts, line 7: 1 channels, where there must be 2"),
        (["1,2:a"], ["@dimensions 3"], "line 7: 1 channels, where there must be 3"),
        (["1,2:3:a"], [], "line 6: channels must be of one length, got 1 and 2 steps"),
        (["1,x:a"], [], "line 6: could not convert string to float"),
        ([",:a"], [], "values must be numbers between commas, or ?"),
        (["1,inf:a"], [], "line 6: numbers must be finite, and below 3.4e38"),
        (["1,-1e39:a"], [], "line 6: numbers must be finite"),
        (["1,2:?,?:a"], [], "line 6: a channel must have a value that is not missing"),
        ([], [], "x.ts has no rows after @data"),
        (["1:a"], ["@timeStamps true"], "@timeStamps must be false"),
        (["1:a"], ["1,2:a"], "line ('1,2:a') before @data must begin with @ or #"),
    ],
)
def test_what_is_refused(tmp_path, rows, header, message):
    with pytest.raises(ValueError) as caught:
        read_ts(write_ts(tmp_path / "x.ts", rows, header=header))
    assert message in str(caught.value)


@pytest.mark.parametrize("said", ["@targetLabel true", "@classLabel false", "@classLabel true", ""])
def test_a_file_without_classes(tmp_path, said):
    (tmp_path / "x.ts").write_text(f"@problemName x\n{said}\n@data\n1,2:3\n")
    with pytest.raises(ValueError, match="@classLabel must be true, with the classes after it"):
        read_ts(tmp_path / "x.ts")
    (tmp_path / "x.ts").write_text("1,2,3\n")
    with pytest.raises(ValueError, match=r"x\.ts has no line @data: it must be a \.ts file"):
        read_ts(tmp_path / "x.ts")
