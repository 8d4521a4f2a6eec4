"""A suite's cells: every combination once, named for what it is, and all that is wrong told before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from tsla.config import ConfigError
from tsla.config.compose import config_root
from tsla.config.grid import cells_of, find_suite, read_suite, suite_of
from tsla.config.mixers import MIXERS

SUITE = {
    "grid": {"experiment": ["digits", "listops_short"], "seed": [0, 1, 2]},
    "variants": [["mixer=taylor"], ["mixer=none", "model.short_conv=0"]],
    "overrides": ["trainer.max_steps=100"],
}


def test_every_combination_is_a_cell():
    cells = cells_of(SUITE)
    assert len(cells) == len({cell.name for cell in cells}) == 12 and len({cell.group for cell in cells}) == 4
    names = [cell.name for cell in cells]
    assert names[0] == "taylor_digits_seed0" and "none_short_conv0_listops_short_seed2" in names
    for cell in cells:
        assert cell.config.trainer.max_steps == 100 and cell.name == f"{cell.group}_seed{cell.config.seed}"
        assert cell.config.mixer.name == cell.name.split("_")[0]
        assert (cell.config.model.short_conv == 0) == (cell.config.mixer.name == "none")
    for group in {cell.group for cell in cells}:
        first, *others = (replace(cell.config, seed=0) for cell in cells if cell.group == group)
        assert others == [first, first]


def test_named_variants_of_several_kinds_are_combined_and_their_cells_go_by_the_names():
    cells = cells_of({
        "variants": {
            "task": {"pixels": ["experiment=digits", "seed=0,1,2"], "brackets": ["experiment=listops_short"]},
            "model": {"ours": ["mixer=taylor", "mixer.order=2,4"], "hybrid": ["model.layers=[window,taylor]"]},
        },
        "overrides": ["trainer.max_steps=9"],
    })  # fmt: skip
    assert [cell.name for cell in cells] == [
        "pixels_ours_seed0_order2", "pixels_ours_seed0_order4", "pixels_hybrid_seed0",
        "pixels_ours_seed1_order2", "pixels_ours_seed1_order4", "pixels_hybrid_seed1",
        "pixels_ours_seed2_order2", "pixels_ours_seed2_order4", "pixels_hybrid_seed2",
        "brackets_ours_order2", "brackets_ours_order4", "brackets_hybrid",
    ]  # fmt: skip
    assert [cell.group for cell in cells[-6:-3]] == ["pixels_ours_order2", "pixels_ours_order4", "pixels_hybrid"]
    assert cells[4].config.seed == 1 and cells[4].config.mixer.order == 4 and cells[4].config.trainer.max_steps == 9
    assert cells[-1].config.model.layers == ["window", "taylor"]


def test_the_suites_of_ours_go_by_their_names(tmp_path, monkeypatch):
    """Every one of them composes, and a file of the same name comes first."""
    monkeypatch.chdir(tmp_path)
    found = [path.stem for path in (config_root() / "suite").glob("*.yaml")]
    assert "lra_mini" in found
    for name in found:
        assert len(cells_of(read_suite(find_suite(name)))) > 1
    with pytest.raises(ConfigError, match=r"lra_mni does not exist \(did you mean 'lra_mini'\?\)"):
        find_suite("lra_mni")
    with pytest.raises(ConfigError, match=r"nothing_like_it does not exist; suites here: .*lra_mini"):
        find_suite("nothing_like_it")
    (tmp_path / "lra_mini").mkdir()
    assert find_suite("lra_mini") == Path("lra_mini")


SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.yaml"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_suites_of_scripts_compose_in_part(path):
    """Every value of every option and every variant at least once; all cells of the largest would take long."""
    suite = read_suite(path)
    mixers = suite.get("grid", {}).get("mixer", [])
    if mixers == ["all"]:  # composed with every mixer above
        suite["grid"]["mixer"] = ["taylor" if "causal" not in path.stem else "rfa_gate"]
    assert len(cells_of(suite)) > 1 and suite["out"].startswith("runs/suites/")


def test_lra_mini_has_the_cells_of_three_seeds_that_are_quick():
    cells = cells_of(read_suite(find_suite("lra_mini")))
    seeds = {}
    for cell in cells:
        seeds.setdefault(cell.group, set()).add(cell.config.seed)
    tasks = {cell.config.experiment for cell in cells}
    assert tasks == {"digits", "mqar", "dna_strand", "listops_short", "r8", "retrieval", "fashion", "pathfinder"}
    assert len(seeds) == 8 * len(tasks)
    for group, found in seeds.items():
        assert found == ({0, 1, 2} if group.startswith(("digits", "mqar", "dna_strand")) else {0})


def test_the_command_line_says_the_same():
    said = suite_of(["experiment=digits,listops_short", "seed=range(0,3)", "trainer.max_steps=100", "out=x y"])
    assert said == {"grid": SUITE["grid"], "overrides": SUITE["overrides"], "out": "x y"}
    assert [cell.config for cell in cells_of(said)] == [
        cell.config for cell in cells_of({k: v for k, v in SUITE.items() if k != "variants"})
    ]
    (cell,) = cells_of(suite_of(["experiment=digits"]))
    assert cell.name == cell.group == "digits" and cell.config.experiment == "digits"


@pytest.mark.parametrize(("experiment", "missing"), [("digits", {"rfa_gate"}), ("mqar", {"taylor_poly", "linformer"})])
def test_all_mixers_are_those_that_have_the_direction(experiment, missing):
    said = suite_of([f"experiment={experiment}", "mixer=all", "seed=0,1"])
    assert said["grid"] == {"mixer": ["all"], "seed": [0, 1]}
    cells = cells_of(said)
    assert [cell.config.mixer.name for cell in cells[::2]] == [name for name in MIXERS if name not in missing]
    with pytest.raises(ConfigError, match=r"^mixer\.headz is not an option"):
        cells_of({**said, "overrides": ["mixer.headz=3"]})


def test_values_of_any_kind():
    grid = {"experiment": ["digits"], "model.layers": [["window", "taylor"], []], "mixer.gate": [True, False],
            "mixer.head_dim": [None, 8], "optim.lr": [1e-3], "data_dir": ["/tmp/two words", "läuft's"]}  # fmt: skip
    cells = cells_of({"grid": grid})
    assert len(cells) == 16
    assert {str(cell.config.model.layers) for cell in cells} == {"['window', 'taylor']", "[]"}
    assert {cell.config.mixer.head_dim for cell in cells} == {None, 8}
    assert {cell.config.data_dir for cell in cells} == {"/tmp/two words", "läuft's"}
    for cell in cells:
        assert Path(cell.name).name == cell.name and not set(cell.name) & set(" '/=[],")


def test_values_of_the_command_line_keep_their_kinds():
    said = suite_of(["mixer.head_dim=null,8", "mixer.gate=true,false", "data_dir='two words','null'",
                     "model.layers=[window,taylor],[]", "optim.lr=1e-3,0.5", "seed=range(2)"])  # fmt: skip
    assert said["grid"]["mixer.head_dim"] == [None, 8] and said["grid"]["mixer.gate"] == [True, False]
    assert said["grid"]["model.layers"] == [["window", "taylor"], []] and said["grid"]["seed"] == [0, 1]
    cells = cells_of(said)
    assert len(cells) == 2**6
    assert {cell.config.mixer.head_dim for cell in cells} == {None, 8}
    assert {cell.config.data_dir for cell in cells} == {"two words", "null"}
    assert {cell.config.optim.lr for cell in cells} == {0.001, 0.5}


def test_names_that_would_clash_get_a_number():
    cells = cells_of({"grid": {"experiment": ["digits"], "data_dir": ["a/b", "a-b"]}})
    assert [cell.name for cell in cells] == ["digits_data_dira-b", "digits_data_dira-b_2"]
    assert len({cell.group for cell in cells}) == 2


def test_all_problems_of_all_cells_are_told_once():
    suite = {"grid": {"mixer": ["taylor", "softmax"], "model.dims": [3], "seed": [0, 1]}, "overrides": ["run_dir=x"]}
    with pytest.raises(ConfigError) as caught:
        cells_of(suite)
    problems = caught.value.problems
    assert len(problems) == 2
    assert (
        problems[0] == "run_dir=x: a suite decides run_dir itself (taylor_dims3_seed0, taylor_dims3_seed1 and 2 more)"
    )
    assert "model.dims is not an option" in problems[1] and "(did you mean 'dim'?)" in problems[1]


def test_the_same_run_twice_is_refused():
    with pytest.raises(ConfigError, match=r"these cells are the same run \(digits, seed0_digits\)"):
        cells_of({"grid": {"experiment": ["digits"]}, "variants": [[], ["seed=0"]]})


def test_a_file_comes_back(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text("grid: {seed: [0, 1]}\nvariants: [[mixer=taylor], mixer=none]\nout: there\n")
    assert read_suite(file) == read_suite(tmp_path)
    assert len(cells_of(read_suite(file))) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grd: {}", "grd is not a part of a suite (did you mean 'grid'?)"),
        ("grid: [1]", "grid must be a mapping"),
        ("overrides: {a: 1}", "overrides must be a list of key=value texts"),
        ("variants: [[1]]", "a variant must be a list of key=value texts"),
        ("variants: 3", "variants must be a list, or a mapping"),
        ("variants: {a: [[mixer=none]]}", "variants must be a list, or a mapping"),
        ("variants: {a: {b: {c: d}}}", "a variant must be a list of key=value texts"),
        ("variants: {a: {../b: [mixer=none]}}", "its name letters, digits and ._+-"),
        ("variants: {a: {..: [mixer=none]}}", "its name letters, digits and ._+-"),
        ("variants: {a: {b: ['mixer=[']}}", "cannot be read"),
        ("variants: {a: {b: ['seed=0,[']}}", "cannot be read"),
        ("variants: {a: {}}", "variants must have an entry of each kind"),
        ("variants: {a: {no: [mixer=none]}}", "the name of a variant must be a text, in quotes if need be, got False"),
        ("grid: {seed: []}", "seed of grid must have a value"),
        ("out: there", "must say something of what to train: grid, variants or overrides"),
        ("{out: [a], grid: {seed: [0]}}", "out must be a folder"),
        ("- a", "must hold a mapping"),
        ("grid: {a: [", "is not a suite"),
        ("grid: !!python/object/apply:os.system ['touch pwned']", "is not a suite"),
        ("grid: {seed: ['${oc.env:HOME}']}", ""),
    ],
)
def test_what_is_no_suite(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        cells_of(read_suite(file))
    assert message in str(caught.value) and not (tmp_path / "pwned").exists()


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        read_suite(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        suite_of(["model.dim=["])
