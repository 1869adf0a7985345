from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.compare import compare_methods, parse_methods
from evaluation.comparison import find_masks
from evaluation.errors import InputError
from evaluation.reference import read_reference

runner = CliRunner()


def arguments(reference, methods, out) -> list[str]:
    options = [part for name, directory in methods.items() for part in ("--method", f"{name}={directory}")]
    return ["compare", "--reference", str(reference), "--out", str(out), *options]


FILES = ["metrics.json", "report.html", "scans.csv", "tables.md", "tables.tex"]


def test_two_methods(tmp_path, reference, methods) -> None:
    out = tmp_path / "out"
    outcome = runner.invoke(app, arguments(reference, methods, out))
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "| good | **1.000\u00a0[2]** |" in outcome.stdout
    assert sorted(path.name for path in out.iterdir()) == FILES
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["methods"]["good"]["aggregates"]["iou"]["overall"]["mean"] == 1.0
    assert np.array(metrics["methods"]["poor"]["score_table"]).sum() == 9
    pair = metrics["comparisons"]["pairs"][0]
    assert (pair["first"], pair["second"], pair["target"], pair["n"], pair["n_nonzero"]) == (
        "good",
        "poor",
        "overall",
        2,
        2,
    )
    assert (pair["median_difference"], pair["p"], pair["m"], pair["p_bonferroni"]) == (0.875, 0.5, 1, 0.5)


@pytest.mark.parametrize("processes", ["_in_this_process", "in_processes"])
def test_the_same_input_gives_the_same_files(tmp_path, with_cts, methods, request, processes) -> None:
    compare_methods(reference_directory=with_cts, methods=methods, out=tmp_path / "one")
    request.getfixturevalue(processes)
    compare_methods(reference_directory=with_cts, methods=methods, out=tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_table_of_scans(tmp_path, reference, methods) -> None:
    compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "scans.csv").set_index(["method", "case"])
    assert list(table.index) == [("good", "a"), ("good", "b"), ("poor", "a"), ("poor", "b")]
    assert table.loc[("poor", "a"), "iou_overall"] == 0.25
    assert np.isnan(table.loc[("good", "b"), "iou_mixed"])
    assert (table.loc[("poor", "a"), "rul_predicted_score"], table.loc[("good", "a"), "rul_percent_error"]) == (2, 0.0)
    assert (table.loc[("poor", "a"), "lul_reference_percent"], table.loc[("poor", "a"), "lul_predicted_percent"]) == (
        20.0,
        10.0,
    )
    assert np.isnan(table.loc[("poor", "a"), "rml_reference_score"])
    assert (table.loc[("poor", "b"), "total_reference_score"], table.loc[("poor", "b"), "total_predicted_score"]) == (
        1,
        2,
    )


def test_three_methods_are_corrected_for_three_pairs(tmp_path, reference, methods) -> None:
    methods["same"] = methods["good"]
    comparison = compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "o")
    tests = [test for test in comparison.metrics["comparisons"]["pairs"] if test["target"] == "overall"]
    outcomes = {(test["first"], test["second"]): (test["p"], test["p_bonferroni"]) for test in tests}
    assert outcomes == {("good", "poor"): (0.5, 1.0), ("good", "same"): (None, None), ("poor", "same"): (0.5, 1.0)}


def test_against_one_method(tmp_path, reference, methods) -> None:
    methods["same"] = methods["good"]
    options = [*arguments(reference, methods, tmp_path / "out"), "--against", "poor"]
    assert runner.invoke(app, options).exit_code == 0
    comparisons = json.loads((tmp_path / "out" / "metrics.json").read_text())["comparisons"]
    assert comparisons["m"] == {"overall": 2, "subtypes": 6}
    assert {(test["first"], test["second"]) for test in comparisons["pairs"]} == {("good", "poor"), ("poor", "same")}
    outcome = runner.invoke(app, [*arguments(reference, methods, tmp_path / "out"), "--against", "other"])
    assert outcome.stderr == "--against: got 'other', expected one of the methods: good, poor, same\n"


def test_one_method_has_nothing_to_compare(tmp_path, reference, methods) -> None:
    one = {"good": methods["good"]}
    comparison = compare_methods(reference_directory=reference, methods=one, out=tmp_path / "out")
    assert comparison.metrics["comparisons"]["pairs"] == []
    assert "One method has nothing to be compared with." in (tmp_path / "out" / "report.html").read_text()


def test_missing_and_ambiguous_masks(tmp_path, reference, methods, predictions, write_mask) -> None:
    write_mask(methods["good"] / "a.mha", predictions["a"])
    outcome = runner.invoke(app, arguments(reference, methods, tmp_path / "out"))
    assert outcome.exit_code == 1
    assert outcome.stderr == "method good, case a: got 2 masks, expected either a.mha or a/lesions.mha\n"
    (methods["good"] / "a.mha").unlink()
    write_mask(methods["good"] / "a" / "lesions.nii.gz", predictions["b"])
    assert find_masks("good", methods["good"], read_reference(reference))["a"].name == "lesions.mha"
    (methods["poor"] / "b.mha").unlink()
    with pytest.raises(InputError, match="method poor, case b: got 0 masks"):
        compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")
    (methods["poor"] / "a.mha").unlink()
    with pytest.raises(InputError, match="method poor: got masks of none of the 2 cases in .*poor, expected <case>"):
        compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_of_other_cases_are_left_alone_and_said(tmp_path, reference, methods, predictions, write_mask) -> None:
    write_mask(methods["poor"] / "c.nii.gz", predictions["a"])
    write_mask(methods["poor"] / "d" / "lesions.mha", predictions["a"])
    (methods["poor"] / "notes").mkdir()
    outcome = runner.invoke(app, arguments(reference, methods, tmp_path / "out"))
    assert outcome.exit_code == 0
    assert "method poor: 2 masks of other cases are left alone: c.nii.gz, d\n" in outcome.stdout


def test_nifti_masks(tmp_path, reference, methods, predictions, write_mask) -> None:
    for case in ("a", "b"):
        write_mask(tmp_path / "nifti" / f"{case}.nii.gz", predictions[case])
    both = {"poor": methods["poor"], "nifti": tmp_path / "nifti"}
    comparison = compare_methods(reference_directory=reference, methods=both, out=tmp_path / "out")
    poor, nifti = (comparison.metrics["methods"][name]["aggregates"]["iou"] for name in both)
    assert nifti == poor


def test_another_grid_names_the_method_or_is_resampled_where_asked(
    tmp_path, reference, methods, predictions, write_mask
) -> None:
    write_mask(methods["poor"] / "a.mha", predictions["a"], shift_mm=0.1)
    with pytest.raises(InputError, match="method poor, case a: a.mha: got .*expected"):
        compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out")
    options = [*arguments(reference, methods, tmp_path / "out"), "--resample", "nearest"]
    assert runner.invoke(app, options).exit_code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    assert (metrics["poor"]["resampled_cases"], metrics["good"]["resampled_cases"]) == (["a"], [])
    assert metrics["poor"]["aggregates"]["iou"]["overall"]["mean"] == 0.125
    assert "1 masks lay on another grid" in (tmp_path / "out" / "report.html").read_text()


def test_a_resampled_mask_must_cover_the_lungs(tmp_path, reference, methods, predictions, write_mask) -> None:
    write_mask(methods["poor"] / "a.mha", predictions["a"], shift_mm=1.5)
    with pytest.raises(InputError, match="method poor, case a: a.mha: got a mask that covers .* % of the lungs"):
        compare_methods(reference_directory=reference, methods=methods, out=tmp_path / "out", resample=True)


def test_no_method(tmp_path, reference) -> None:
    with pytest.raises(InputError, match="--method: got none"):
        compare_methods(reference_directory=reference, methods={}, out=tmp_path / "out")


def test_nothing_is_written_when_the_report_fails(tmp_path, with_cts, methods, monkeypatch) -> None:
    def html_report(*_) -> str:
        raise InputError("no report")

    monkeypatch.setattr("evaluation.compare.html_report", html_report)
    with pytest.raises(InputError, match="no report"):
        compare_methods(reference_directory=with_cts, methods=methods, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
