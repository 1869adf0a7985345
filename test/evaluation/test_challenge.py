from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import evaluation
from evaluation.__main__ import app

runner = CliRunner()


@pytest.fixture
def judge(tmp_path, reference):
    """Run the container's command; gives the outcome and the parsed metrics.json, or None if there is none."""
    output = tmp_path / "output"
    output.mkdir()

    def run(submission) -> tuple[Any, dict[str, Any] | None]:
        directories = {"--input-dir": submission, "--ground-truth-dir": reference, "--output-dir": output}
        outcome = runner.invoke(app, ["challenge", *(str(part) for pair in directories.items() for part in pair)])
        files = sorted(path.name for path in output.iterdir())
        assert files in ([], ["metrics.json"])
        return outcome, json.loads((output / "metrics.json").read_text()) if files else None

    return run


def leaves(tree: dict[str, Any]):
    for key, value in tree.items():
        assert "." not in key
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("key", ["socket", "interface"])
@pytest.mark.parametrize("suffix", ["", ".mha"])
def test_a_whole_submission(judge, write_submission, predictions, key, suffix) -> None:
    submission = write_submission([(f"b{suffix}", predictions["b"]), (f"a{suffix}", predictions["a"])], key=key)
    outcome, metrics = judge(submission)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert [(result["case"], result["job"]) for result in metrics["results"]] == [("a", "job-1"), ("b", "job-0")]
    assert metrics["results"][0]["iou"]["ground_glass"] == 0.5
    assert metrics["results"][0]["lobe_percent_error"]["lul"] == -10.0
    assert metrics["aggregates"]["iou"]["overall"]["mean"] == 0.125
    assert metrics["aggregates"]["kappa"]["n"] == 9
    # Pairs (2,2) (2,0) (0,2) (0,0), four more (0,0), (1,2): 5/9 off, by chance (36 + 24 + 6 + 3) / 81 = 69/81.
    assert metrics["aggregates"]["kappa"]["value"] == pytest.approx(1 - 45 / 69)
    assert metrics["agreement"] == "fair"
    assert all(value is None or np.isfinite(value) for value in leaves(metrics["aggregates"]))


def test_results_tell_nothing_of_the_reference_scores(judge, write_submission, predictions, reference) -> None:
    submission = write_submission([("a", predictions["a"]), ("b", predictions["b"])])
    _, metrics = judge(submission)
    table = (reference / "reference.csv").read_text().replace("2,2,0,0,", "5,4,3,1,2").replace("0,0,0,0,1", "1,2,3,4,5")
    (reference / "reference.csv").write_text(table)
    _, others = judge(submission)
    assert others["results"] == metrics["results"]
    assert others["aggregates"]["kappa"] != metrics["aggregates"]["kappa"]


def test_undefined_kappa_is_null(judge, write_submission, predictions, reference) -> None:
    table = (reference / "reference.csv").read_text().replace("2,2,0,0,", ",,,,").replace("0,0,0,0,1", ",,,,")
    (reference / "reference.csv").write_text(table)
    outcome, metrics = judge(write_submission([("a", predictions["a"]), ("b", predictions["b"])]))
    assert outcome.exit_code == 0
    kappa = metrics["aggregates"]["kappa"]
    assert [kappa[key] for key in ("value", "standard_error", "ci_low", "ci_high", "n")] == [None] * 4 + [0]
    assert kappa["scan_bootstrap"] == kappa["naive_bootstrap"] == {"ci_low": None, "ci_high": None}


def test_the_keys_to_rank_on_that_the_readme_names(judge, write_submission, predictions) -> None:
    # Resolved as the platform does: dictionary keys between dots, and a finite number at the end.
    _, metrics = judge(write_submission([("a", predictions["a"]), ("b", predictions["b"])]))
    text = Path(evaluation.__file__).with_name("README.md").read_text()
    keys = re.findall(r"`(aggregates\.[a-z0-9_.]+)`", text)
    assert len(keys) >= 6
    for key in keys:
        value = metrics
        for part in key.split("."):
            value = value[part]
        assert np.isfinite(value), key


def test_processes_change_nothing(judge, write_submission, predictions, request) -> None:
    submission = write_submission([("a", predictions["a"]), ("b", predictions["b"])])
    _, alone = judge(submission)
    request.getfixturevalue("in_processes")
    outcome, together = judge(submission)
    assert "2 scans, processes: 2" in outcome.stdout
    assert together == alone


def test_too_little_memory_names_the_job(judge, write_submission, monkeypatch) -> None:
    def judge_job(task) -> None:
        raise MemoryError

    monkeypatch.setattr("evaluation.challenge.judge_job", judge_job)
    refused(judge(write_submission([("a", EMPTY), ("b", EMPTY)])), "^job job-0: judging it takes more memory than")


def test_a_submission_cannot_read_the_reference(judge, write_submission, predictions, reference) -> None:
    submission = write_submission([("a", predictions["a"]), ("b", predictions["b"])])
    mask = next((submission / "job-0").rglob("*.mha"))
    place = f"HeaderSize = -1\nElementDataFile = {reference / 'secret-a.mha'}".encode()
    mask.write_bytes(mask.read_bytes().replace(b"ElementDataFile = LOCAL", place))
    refused(judge(submission), r"^job job-0: uuid-0.mha: got voxels in another file or place, expected ElementDataFile")


def test_warnings_about_the_reference_stay_off_stderr(tmp_path, reference, write_submission, write_mask) -> None:
    # Its two descriptions of the grid differ, which SimpleITK warns about with the file's path.
    odd = write_mask(reference / "secret-a.nii", EMPTY)
    content = bytearray(odd.read_bytes())
    struct.pack_into("<f", content, 280, -1.4)
    odd.write_bytes(content)
    table = (reference / "reference.csv").read_text()
    (reference / "reference.csv").write_text(table.replace("secret-a.mha", "secret-a.nii"))
    submission = write_submission([("a", EMPTY), ("b", EMPTY)])
    options = ["--input-dir", submission, "--ground-truth-dir", reference, "--output-dir", tmp_path / "output"]
    command = [sys.executable, "-m", "evaluation", "challenge", *map(str, options)]
    root = Path(evaluation.__file__).parents[1]
    outcome = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_another_limit_of_processes_is_the_organisers_affair(judge, write_submission, monkeypatch) -> None:
    monkeypatch.setenv("EVALUATION_MAX_WORKERS", "many")
    outcome = judge(write_submission([("a", EMPTY), ("b", EMPTY)]))
    refused(outcome, "The evaluation itself failed")
    assert "EVALUATION_MAX_WORKERS: got 'many', expected a whole number above 0" in outcome[0].stdout


def test_the_container_leaves_the_drawing_library_alone() -> None:
    code = "import sys, evaluation.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


EMPTY = np.zeros((6, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.mha"], "got 1 jobs: 1 scans of the phase have none, 0 are of other scans"),
        (["a.mha", "b.mha", "c.mha"], "got 3 jobs: 0 scans of the phase have none, 1 are of other scans"),
        (["a.mha", "b.mha", "a"], "jobs job-0 and job-2: got two of one scan, expected one"),
    ],
    ids=["missing", "extra", "duplicate"],
)
def test_other_sets_of_cases(judge, write_submission, names, message) -> None:
    refused(judge(write_submission([(name, EMPTY) for name in names])), message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (EMPTY + np.float32(0.5), "job job-0: uuid-0.mha: got float32 voxels that are not whole numbers"),
        (EMPTY + np.uint8(4), "job job-0: uuid-0.mha: got labels 4 to 4, expected 0 to 3"),
        (EMPTY[:5], r"job job-0: the mask's grid is not its CT's: got size_zyx \(5, 4, 5\)"),
    ],
    ids=["float", "label", "grid"],
)
def test_unusable_masks(judge, write_submission, array, message) -> None:
    refused(judge(write_submission([("a", array), ("b", EMPTY)])), message)


@pytest.mark.parametrize(("processes", "job"), [("_in_this_process", "job-0"), ("in_processes", "job-1")])
def test_a_shifted_mask_is_refused_without_showing_the_reference(
    judge, write_submission, write_mask, request, processes, job
) -> None:
    request.getfixturevalue(processes)
    submission = write_submission([("a", EMPTY), ("b", EMPTY)])
    write_mask(next((submission / job).rglob("*.mha")), EMPTY, shift_mm=2.0)
    outcome = judge(submission)
    refused(outcome, f"job {job}: the mask's grid is not its CT's: .*write it with the size, spacing")
    assert "-300" not in outcome[0].stderr
    assert "-300" in outcome[0].stdout


@pytest.mark.parametrize("count", [0, 2])
def test_one_mask_a_job(judge, write_submission, write_mask, count) -> None:
    submission = write_submission([("a", EMPTY), ("b", EMPTY)])
    mask = next((submission / "job-1").rglob("*.mha"))
    mask.unlink() if count == 0 else write_mask(mask.with_name("second.mha"), EMPTY)
    refused(judge(submission), f"job job-1: got {count} .mha files in output/images/covid-19-lesion-segmentation")


def test_a_truncated_mask(judge, write_submission) -> None:
    submission = write_submission([("a", EMPTY), ("b", EMPTY)])
    mask = next((submission / "job-1").rglob("*.mha"))
    mask.write_bytes(mask.read_bytes()[:-20])
    refused(judge(submission), "job job-1: uuid-1.mha: got 100 bytes of voxels, expected 120: the file is truncated")


def test_a_failed_job(judge, write_submission) -> None:
    refused(judge(write_submission([("a", EMPTY), ("b", EMPTY)], status="Failed")), "job job-0: got status Failed")


@pytest.mark.parametrize("text", [None, "{", '{"a": 1}', '[{"pk": "../up", "status": "Succeeded", "inputs": []}]'])
def test_unreadable_predictions(judge, tmp_path, text) -> None:
    submission = tmp_path / "input"
    submission.mkdir()
    if text is not None:
        (submission / "predictions.json").write_text(text)
    refused(judge(submission), "predictions.json: cannot be read as the platform's list of jobs")


def test_a_job_without_a_scan(judge, write_submission) -> None:
    submission = write_submission([("a", EMPTY), ("b", EMPTY)])
    text = (submission / "predictions.json").read_text().replace("ct-image", "other-image")
    (submission / "predictions.json").write_text(text)
    refused(judge(submission), "job job-0: got 0 images for ct-image, expected 1")


def test_an_unusable_reference_is_the_organisers_affair(judge, write_submission, reference) -> None:
    (reference / "secret-a.mha").unlink()
    outcome = judge(write_submission([("a", EMPTY), ("b", EMPTY)]))
    refused(outcome, "The evaluation itself failed; its organisers find the reason in the log.")
    assert "secret-a.mha" in outcome[0].stdout


def refused(judged, message: str) -> None:
    """The command failed with one line on stderr that holds nothing of the reference; nothing was written."""
    outcome, metrics = judged
    assert outcome.exit_code == 1
    assert metrics is None
    assert outcome.stderr.count("\n") == 1
    assert "secret" not in outcome.stderr
    assert "reference.csv" not in outcome.stderr
    assert re.search(message, outcome.stderr), outcome.stderr
