import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

import training.ablate.stage
import training.ablate.tables
from algorithm.errors import InputError
from evaluation.agreement import scores_from_percentages
from evaluation.bootstrap import Interval
from training.ablate import ablate
from training.cases import FILES
from training.stages import Run

STAGES = ("prepare", "vessels", "pseudo", "cam", "segment", "segment-reference", "subtypes")
SLUGS = [
    "threshold",
    "cam-raw",
    "cam-refinement",
    "dram-raw",
    "dram-regulariser",
    "dram-refinement",
    "dram-attention",
    "dram-vessel-suppression",
    "dram-context",
    "supervised",
]


@pytest.fixture(scope="module")
def data(phantoms, tmp_path_factory) -> Path:
    """The phantoms, with three of them for testing."""
    folder = tmp_path_factory.mktemp("data")
    table = pd.read_csv(phantoms / "cases.csv")
    table[list(FILES)] = str(phantoms) + "/" + table[list(FILES)]
    table["split"] = ["test", "test", "train", "train", "test"]
    table.to_csv(folder / "cases.csv", index=False)
    return folder


@pytest.fixture
def run(data, tiny_config, tmp_path) -> Run:
    """A run whose stages are said to be done."""
    for stage in (*STAGES, "regress"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "done.json").write_text('{"processes": 1, "results": {"shortlist": 10}}')
    (tmp_path / "subtypes" / "subtypes.csv").write_text("volume_ml,mean_hu,sd_hu,subtype\n1,-600,50,1\n1,0,50,2\n")
    return Run(data, tmp_path, tiny_config, device="cpu")


@pytest.fixture
def made(monkeypatch, request) -> list[str]:
    """The rows whose predictors were asked for; row k finds the share 1 - k / 20 of the reference, and nothing else."""
    rows: list[str] = []
    if "pictures" not in request.node.name:  # they take most of the time
        monkeypatch.setattr(training.ablate.stage, "draw_figure", lambda *args, **kwargs: None)
        monkeypatch.setattr(training.ablate.stage, "draw_slices", lambda *args: None)

    def fake(run, row, folder):
        rows.append(row.slug)
        share = 1 - SLUGS.index(row.slug) / 20

        def predict(case, scan):
            found = np.flatnonzero((scan.lesions.array > 0) & (scan.lobes.array > 0))
            lesions = np.zeros(scan.ct.array.shape, dtype=bool)
            lesions.flat[found[: round(share * found.size)]] = True
            return lesions

        return predict

    monkeypatch.setattr(training.ablate.stage, "make_predictor", fake)
    return rows


def test_every_row_and_scan_is_in_the_tables(run, made, tmp_path):
    folder = tmp_path / "ablate"
    results = ablate(run, folder)
    assert made == SLUGS
    assert (results["test_cases"], results["m"]) == (3, 7)
    assert [row["row"] for row in results["rows"]][-2:] == ["+ context", "supervised"]
    json.dumps(results, allow_nan=False)
    per_scan = pd.read_csv(folder / "per_scan.csv")
    assert len(per_scan) == 30 and per_scan["row"].nunique() == 10
    assert per_scan["percent_rul"].between(0, 100).all() and (per_scan["percent_rul"] % 1 > 0).any()
    assert (scores_from_percentages(per_scan["percent_rul"]) == per_scan["predicted_rul"]).all()
    expected = {row["row"]: 1 - k / 20 for k, row in enumerate(results["rows"])}
    with_lesions = per_scan[per_scan["reference_voxels"] > 100]
    assert with_lesions["iou"].to_numpy() == pytest.approx(with_lesions["row"].map(expected).to_numpy(), abs=0.01)
    assert len(pd.read_csv(folder / "table_b.csv")) == 10 and len(pd.read_csv(folder / "table_a.csv")) == 3
    assert "m = 7" in (folder / "table_b.md").read_text() and "m = 4" in (folder / "table_a.md").read_text()


def test_the_bootstrap_has_the_seed_of_the_run(run, made, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        training.ablate.tables, "kappa_interval", lambda tables, *, seed: seeds.append(seed) or Interval(0.25, 0.75)
    )
    seeded = Run(run.data, run.directory, run.config.model_copy(update={"seed": 5}), device="cpu")
    ablate(seeded, tmp_path / "ablate")
    assert seeds == [5] * 13  # ten rows of table b, three of table a
    assert set(pd.read_csv(tmp_path / "ablate" / "table_b.csv")["kappa_scans_high"]) == {0.75}


def test_pictures_are_made(run, made, tmp_path):
    ablate(run, tmp_path / "ablate")
    for name in ("figure.png", "slices.png"):
        assert imread(tmp_path / "ablate" / name).shape[1] == 2160


def test_finished_rows_are_not_done_again(run, made, tmp_path, monkeypatch):
    folder, predictor = tmp_path / "ablate", training.ablate.stage.make_predictor

    def fails_at_the_fourth(run, row, folder):
        if row.slug == "dram-raw":
            raise KeyboardInterrupt
        return predictor(run, row, folder)

    with monkeypatch.context() as patch:
        patch.setattr(training.ablate.stage, "make_predictor", fails_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            ablate(run, folder)
    assert made == SLUGS[:3]
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("per_scan.csv")}
    assert len(finished) == 3
    ablate(run, folder)
    assert made == SLUGS
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    ablate(run, folder)
    assert made == SLUGS
    next((folder / "dram-raw").glob("*_slice.npy")).unlink()  # as the error of a damaged file asks for
    ablate(run, folder)
    assert made == [*SLUGS, "dram-raw"]


def test_a_row_begun_on_another_basis_is_refused(run, made, tmp_path):
    ablate(run, tmp_path / "ablate")
    regress = run.config.regress.model_copy(update={"steps": 7})
    other = Run(run.data, run.directory, run.config.model_copy(update={"regress": regress}), device="cpu")
    with pytest.raises(InputError, match="dram-raw: begun with other settings; .* delete this folder to start"):
        ablate(other, tmp_path / "ablate")


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_asked_for_before_any_work(run, made, tmp_path, stage):
    (tmp_path / stage / "done.json").unlink()
    with pytest.raises(InputError, match=f"stage {stage} is not done; run `python -m training {stage}` first"):
        ablate(run, tmp_path / "ablate")
    assert made == []


def test_test_cases_need_reference_lesions(run, made, data, tmp_path, tiny_config):
    table = pd.read_csv(data / "cases.csv")
    table.loc[table["split"] == "test", "lesions"] = None
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(InputError, match="got no test case with reference lesions"):
        ablate(Run(tmp_path, tmp_path, tiny_config), tmp_path / "ablate")


def test_scored_test_cases_without_reference_lesions_are_counted(run, made, data, tmp_path, tiny_config):
    table = pd.read_csv(data / "cases.csv", dtype=str)
    row = table.index[table["split"] == "test"][0]
    table.loc[row, "lesions"], table.loc[row, "rml"] = None, None
    table.to_csv(tmp_path / "cases.csv", index=False)
    ablate(Run(tmp_path, tmp_path, tiny_config), tmp_path / "ablate")
    note = "Left out, kappa included: 1 test cases without reference lesions, 4 scored lobes."
    assert note in (tmp_path / "ablate" / "table_b.md").read_text()
    ablate(run, tmp_path / "other")
    assert "Left out" not in (tmp_path / "other" / "table_b.md").read_text()


def test_a_case_may_be_called_like_a_number(data, run, made, tmp_path, tiny_config):
    table = pd.read_csv(data / "cases.csv")
    table["case"] = ["007", "NA", "b", "c", "1e3"]
    table.to_csv(tmp_path / "cases.csv", index=False)
    ablate(Run(tmp_path, tmp_path, tiny_config), tmp_path / "ablate")
    lines = (tmp_path / "ablate" / "per_scan.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:4]] == ["007", "NA", "1e3"]


def test_rows_that_learnt_from_larger_batches_are_named(run, made, tmp_path):
    ablate(run, tmp_path / "ablate")
    table = tmp_path / "ablate" / "table_b.md"
    assert "Batches" not in table.read_text()
    (run.folder("regress") / "done.json").write_text('{"processes": 2}')
    ablate(run, tmp_path / "other")
    note = (tmp_path / "other" / "table_b.md").read_text().splitlines()[-1]
    assert "regress 2; dRAM raw, + regulariser, + refinement, + attention: 1" in note
