from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.compare import compare_methods, parse_methods
from evaluation.errors import InputError

runner = CliRunner()


@pytest.fixture
def methods(tmp_path, reference, predictions, write_mask):
    """`good` repeats the reference, `poor` is the conftest's prediction; each in one of the two layouts."""
    good, poor = tmp_path / "good", tmp_path / "poor"
    for case in ("a", "b"):
        (good / case).mkdir(parents=True)
        (good / case / "lesions.mha").write_bytes((reference / f"secret-{case}.mha").read_bytes())
        write_mask(poor / f"{case}.mha", predictions[case])
    return {"good": good, "poor": poor}


def arguments(reference, methods, out) -> list[str]:
    options = [part for name, directory in methods.items() for part in ("--method", f"{name}={directory}")]
    return ["compare", "--reference", str(reference), "--out", str(out), *options]


def test_two_methods(tmp_path, reference, methods) -> None:
    outcome = runner.invoke(app, arguments(reference, methods, tmp_path / "out"), env={"COLUMNS": "160"})
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "good - poor" in outcome.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["methods"]["good"]["aggregates"]["iou"]["overall"]["mean"] == 1.0
    assert metrics["comparisons"]["m"] == 1
    (pair,) = metrics["comparisons"]["pairs"]
    assert (pair["first"], pair["second"], pair["n"], pair["n_nonzero"]) == ("good", "poor", 2, 2)
    assert pair["median_difference"] == 0.875
    assert (pair["p"], pair["p_bonferroni"]) == (0.5, 0.5)


def test_the_table_of_scans(tmp_path, reference, methods) -> None:
    compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "scans.csv").set_index(["method", "case"])
    assert list(table.index) == [("good", "a"), ("good", "b"), ("poor", "a"), ("poor", "b")]
    assert table.loc[("poor", "a"), "iou_overall"] == 0.25
    assert np.isnan(table.loc[("good", "b"), "iou_mixed"])
    assert (table.loc[("poor", "a"), "rul_predicted_score"], table.loc[("good", "a"), "rul_percent_error"]) == (2, 0.0)
    assert np.isnan(table.loc[("poor", "a"), "rml_reference_score"])


def test_three_methods_are_corrected_for_three_pairs(tmp_path, reference, methods) -> None:
    methods["same"] = methods["good"]
    comparisons = compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "o")["comparisons"]
    assert comparisons["m"] == 3
    outcomes = {(pair["first"], pair["second"]): (pair["p"], pair["p_bonferroni"]) for pair in comparisons["pairs"]}
    assert outcomes == {("good", "poor"): (0.5, 1.0), ("good", "same"): (None, None), ("poor", "same"): (0.5, 1.0)}


def test_one_method_has_nothing_to_compare(tmp_path, reference, methods) -> None:
    one = {"good": methods["good"]}
    assert compare_methods(reference_directory=reference, methods=one, out=tmp_path)["comparisons"]["pairs"] == []


def test_missing_and_ambiguous_masks(tmp_path, reference, methods, predictions, write_mask) -> None:
    write_mask(methods["good"] / "a.mha", predictions["a"])
    outcome = runner.invoke(app, arguments(reference, methods, tmp_path / "out"))
    assert outcome.exit_code == 1
    assert outcome.stderr == "method good, case a: got 2 masks, expected either a.mha or a/lesions.mha\n"
    (methods["good"] / "a.mha").unlink()
    (methods["poor"] / "b.mha").unlink()
    with pytest.raises(InputError, match="method poor, case b: got 0 masks"):
        compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_grid_names_the_method(tmp_path, reference, methods, predictions, write_mask) -> None:
    write_mask(methods["poor"] / "a.mha", predictions["a"], shift_mm=1)
    with pytest.raises(InputError, match="method poor, case a: a.mha: got .*expected"):
        compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["name"], "got 'name', expected NAME=DIR"),
        (["=dir"], "got '=dir', expected NAME=DIR"),
        (["a=/no/such"], "expected an existing folder"),
        (["a=.", "a=."], "got the name a twice"),
    ],
)
def test_refuses_other_method_arguments(texts, message) -> None:
    with pytest.raises(InputError, match=message):
        parse_methods(texts)
