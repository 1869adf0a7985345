from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from algorithm import __main__ as main
from algorithm import __version__
from algorithm.errors import InputError
from algorithm.images import read_labels

ROOT = Path(__file__).parents[2]
RESULTS = {"lesions.mha", "severity.json", "overview.png"}


@pytest.fixture(autouse=True)
def light(monkeypatch, fake_segmenter):
    """The stand-in instead of a loaded model, and an empty picture."""
    monkeypatch.setattr(main, "_load", lambda *arguments: fake_segmenter)
    monkeypatch.setattr(main, "_draw", lambda ct, segmentation, path: path.write_bytes(b"png"))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.captureWarnings(False)


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(main.app, [str(argument) for argument in arguments])


@pytest.fixture
def scan(ct, lobes, save):
    return save(ct, "ct.mha"), "--lobes", save(lobes, "lobes.mha")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_segment(run, scan, tmp_path, ct):
    result = run("segment", *scan, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == RESULTS
    assert read_labels(tmp_path / "out" / "lesions.mha").geometry == ct.geometry
    assert json.loads((tmp_path / "out" / "severity.json").read_text())["total_score"] is None
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert ["left upper lobe", "10", "1.2", "12.5", "2"] in rows
    assert ["right middle lobe", "0", "0.0", "-", "-"] in rows
    assert ["total", "", "5.0", "", "-"] in rows
    assert "Warning: right middle lobe absent" in result.stdout
    assert result.stderr == ""


def test_segment_writes_nifti_and_replaces_its_own_files(run, scan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "severity.json").write_text("old")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run("segment", *scan, "--nifti", "-o", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == {*RESULTS, "lesions.nii.gz", "notes.txt"}
    assert (tmp_path / "out" / "severity.json").read_text() != "old"


def test_failed_segment_keeps_earlier_files(run, scan, tmp_path, fake_segmenter):
    assert run("segment", *scan, "-o", tmp_path / "out").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    fake_segmenter.error = RuntimeError("boom")
    assert run("segment", *scan, "-o", tmp_path / "out").exit_code == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_input_error_is_one_line_and_exit_code_2(run, scan, tmp_path):
    result = run("segment", tmp_path / "none.mha", *scan[1:], "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path}/none.mha: no such file or folder\n"
    assert result.stdout == ""
    assert names(tmp_path / "out") == set()


def test_segment_without_lobes_writes_those_that_it_finds(run, scan, tmp_path, ct):
    assert run("segment", scan[0], "-o", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == {*RESULTS, "lobes.mha"}
    assert read_labels(tmp_path / "out" / "lobes.mha").geometry == ct.geometry


def test_segment_leaves_nothing_of_an_earlier_run(run, scan, tmp_path):
    assert run("segment", scan[0], "--nifti", "-o", tmp_path / "out").exit_code == 0
    assert run("segment", *scan, "-o", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == RESULTS


def test_lungmask_in_place_of_a_lobe_mask(run, scan, tmp_path, monkeypatch, fake_segmenter):
    asked = []
    monkeypatch.setattr(main, "_load", lambda *arguments: asked.append(arguments[5]) or fake_segmenter)
    assert run("segment", scan[0], "--lobes", "lungmask", "-o", tmp_path / "out").exit_code == 0
    assert asked == [Path("lungmask")]
    assert (tmp_path / "out" / "lobes.mha").is_file()


def test_what_is_called_like_the_package_is_ambiguous(run, scan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lungmask").write_bytes(scan[-1].read_bytes())
    result = run("segment", scan[0], "--lobes", "./lungmask", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "got lungmask, which is a package, and here a file or folder too" in result.stderr
    result = run("segment", scan[0], "--lobes", tmp_path / "lungmask", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "got lungmask, which" not in result.stderr  # no ending that says a format


def test_an_input_in_the_place_of_a_result_is_kept(run, scan, tmp_path):
    corrected = tmp_path / "out" / "lobes.mha"
    corrected.parent.mkdir()
    corrected.write_bytes(scan[-1].read_bytes())
    for command in (
        ("segment", scan[0], "--lobes", corrected, "-o", tmp_path / "out"),
        ("segment", corrected, "-o", tmp_path / "out"),
        ("lobes", corrected, "-o", tmp_path / "out" / ".." / "out"),
    ):
        result = run(*command)
        assert result.exit_code == 2 and "lobes.mha: got an input in the place of a result" in result.stderr
    assert corrected.read_bytes() == scan[-1].read_bytes() and names(tmp_path / "out") == {"lobes.mha"}


def test_lobes(run, scan, tmp_path, ct):
    result = run("lobes", scan[0], "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == {"lobes.mha", "lobes.json", "lobes.png"}
    report = json.loads((tmp_path / "out" / "lobes.json").read_text())
    voxels_ml = ct.array.size * ct.geometry.voxel_ml
    assert [lobe["volume_ml"] for lobe in report["lobes"]] == pytest.approx([0, 0, voxels_ml, 0, 0])
    assert [lobe["confidence"] for lobe in report["lobes"]] == [None, None, 0.75, None, None]
    assert report["lungs_ml"] == pytest.approx(voxels_ml)
    assert report["source"] == "model" and report["warnings"] == ["a doubt"]
    assert "Warning: a doubt" in result.stdout


def test_lobes_takes_no_lobe_mask(run, scan, tmp_path):
    result = run("lobes", *scan, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.endswith("lobes.mha, expected the word lungmask, or leave it out\n")


def test_exec(run, input_dir, tmp_path):
    result = run("exec", "--input-dir", input_dir, "--output-dir", tmp_path / "output")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (tmp_path / "output/images/covid-19-lesion-segmentation/output.mha").is_file()


def test_exec_takes_folders_from_the_environment(input_dir, tmp_path):
    environment = {"ALGORITHM_INPUT_DIR": str(input_dir), "ALGORITHM_OUTPUT_DIR": str(tmp_path / "output")}
    assert CliRunner().invoke(main.app, ["exec"], env=environment).exit_code == 0
    assert (tmp_path / "output" / "covid-19-severity.json").is_file()


def test_exec_tells_bad_input_before_it_loads_the_model(run, input_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "_load", lambda *arguments: pytest.fail("loaded"))
    (input_dir / "inputs.json").unlink()
    result = run("exec", "--input-dir", input_dir, "--output-dir", tmp_path / "output")
    assert result.exit_code == 2
    assert result.stderr.endswith("inputs.json: missing, expected the platform's list of inputs\n")


def test_unexpected_error_is_a_traceback_on_stdout_and_one_line_on_stderr(run, input_dir, tmp_path, fake_segmenter):
    fake_segmenter.error = RuntimeError("CUDA\nout of memory")
    result = run("exec", "--input-dir", input_dir, "--output-dir", tmp_path / "output")
    assert result.exit_code == 1
    assert "Traceback" in result.stdout
    assert result.stderr == "Error: RuntimeError: CUDA out of memory\n"


def test_sigterm_leaves_nothing(run, scan, tmp_path, fake_segmenter):
    fake_segmenter.before = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert run("segment", *scan, "-o", tmp_path / "out").exit_code == 128 + signal.SIGTERM
    assert names(tmp_path / "out") == set()


def test_serve_that_cannot_load_ends_with_the_reason(run, monkeypatch):
    def no_model(*arguments):
        raise InputError("no model here")

    monkeypatch.setattr(main, "_load", no_model)
    result = run("serve")
    assert result.exit_code == 2
    assert result.stderr == "no model here\n"


def test_serve(run, input_dir, tmp_path, monkeypatch):
    from algorithm import server

    served = {}
    monkeypatch.setattr(server, "serve", lambda app, **address: served.update(address))
    assert run("serve", "--input-dir", input_dir, "--output-dir", tmp_path / "output").exit_code == 0
    assert served == {"host": "0.0.0.0", "port": 4743}


def test_serve_warms_up_before_it_listens(run, input_dir, tmp_path, monkeypatch, fake_segmenter):
    from algorithm import server

    warm = []
    monkeypatch.setattr(server, "serve", lambda app, **address: warm.append(fake_segmenter.is_warm))
    assert not fake_segmenter.is_warm
    assert run("serve", "--input-dir", input_dir, "--output-dir", tmp_path / "output").exit_code == 0
    assert warm == [True]


def test_precision_and_engine_reach_the_segmenter(run, scan, tmp_path, monkeypatch, fake_segmenter):
    asked = []
    monkeypatch.setattr(main, "_load", lambda *arguments: asked.append(arguments) or fake_segmenter)
    assert run("segment", *scan, "-o", tmp_path / "out").exit_code == 0
    options = ["--precision", "bf16", "--engine", "openvino", "--memory-gb", "1", "--device", "cpu"]
    assert run("segment", *scan, *options, "-o", tmp_path / "out").exit_code == 0
    assert [arguments[:5] for arguments in asked] == [
        (None, "auto", 5.5, "fp32", "auto"),
        (None, "cpu", 1.0, "bf16", "openvino"),
    ]


def test_schema(run):
    assert "total_score" in json.loads(run("schema").stdout)["properties"]


def test_version(run):
    assert run("--version").stdout.strip() == __version__


def test_start_without_torch():
    code = "import sys, algorithm.__main__; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_as_a_module(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "algorithm", "segment", tmp_path / "none.mha", "--lobes", "none", "-o", tmp_path / "o"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == f"{tmp_path}/none.mha: no such file or folder\n"
