from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from algorithm import job
from algorithm.errors import InputError
from algorithm.images import read_labels
from algorithm.job import read_case, run_case, staged_outputs

OUTPUTS = {"images/covid-19-lesion-segmentation/output.mha", "covid-19-severity.json"}


FOUND_LOBES = "images/pulmonary-lobes/output.mha"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "output"


def test_outputs(fake_segmenter, input_dir, output_dir, ct, lobes):
    run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == OUTPUTS
    lesions = read_labels(output_dir / "images/covid-19-lesion-segmentation/output.mha")
    assert lesions.array.dtype == np.uint8
    assert np.array_equal(lesions.array, lobes.array == 3)
    assert lesions.geometry == ct.geometry
    severity = json.loads((output_dir / "covid-19-severity.json").read_text())
    assert severity["lobes"][0]["score"] == 2
    assert [path.name for path in output_dir.iterdir() if path.name.startswith(".")] == []


def test_outputs_are_readable_for_others(fake_segmenter, input_dir, output_dir):
    old = os.umask(0o022)
    try:
        run_case(fake_segmenter, input_dir, output_dir)
    finally:
        os.umask(old)
    for path in (output_dir / name for name in OUTPUTS):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_again(fake_segmenter, input_dir, output_dir):
    run_case(fake_segmenter, input_dir, output_dir)
    run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == OUTPUTS


@pytest.mark.parametrize("error", [InputError("bad scan"), RuntimeError("out of memory"), KeyboardInterrupt()])
def test_failure_leaves_nothing_not_even_of_an_earlier_case(fake_segmenter, input_dir, output_dir, error):
    run_case(fake_segmenter, input_dir, output_dir)
    fake_segmenter.error = error
    with pytest.raises(type(error)):
        run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == set()


def test_bad_inputs_remove_earlier_outputs(fake_segmenter, input_dir, output_dir):
    run_case(fake_segmenter, input_dir, output_dir)
    (input_dir / "inputs.json").unlink()
    with pytest.raises(InputError, match="inputs.json: missing"):
        run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == set()


@pytest.mark.parametrize("function", ["write_labels", "_publish"])
def test_failed_write_leaves_nothing(fake_segmenter, input_dir, output_dir, monkeypatch, function):
    def disk_full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, function, disk_full)
    with pytest.raises(OSError, match="No space left"):
        run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == set()


def test_failed_move_takes_back_what_was_moved(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "in-the-way").touch()
    with pytest.raises(OSError), staged_outputs(tmp_path) as staging:
        (staging / "a").write_text("first")
        (staging / "b").write_text("cannot replace a folder")
    assert files(tmp_path) == {"b/in-the-way"}


def test_output_is_checked_before_any_work(fake_segmenter, input_dir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/output: cannot be written .*, expected a writable folder"):
        run_case(fake_segmenter, input_dir, tmp_path / "file" / "output")
    assert fake_segmenter.cases == 0


def test_lobes_that_were_found_are_an_output(fake_segmenter, input_dir, output_dir, socket_value, ct):
    (input_dir / "inputs.json").write_text(json.dumps([socket_value("ct-image")]))
    run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == {*OUTPUTS, FOUND_LOBES}
    lobes = read_labels(output_dir / FOUND_LOBES)
    assert lobes.geometry == ct.geometry and lobes.array.dtype == np.uint8 and (lobes.array == 3).all()


def test_lobes_of_an_earlier_case_do_not_stay(fake_segmenter, input_dir, output_dir, socket_value):
    with_lobes = (input_dir / "inputs.json").read_text()
    (input_dir / "inputs.json").write_text(json.dumps([socket_value("ct-image")]))
    run_case(fake_segmenter, input_dir, output_dir)
    (input_dir / "inputs.json").write_text(with_lobes)
    run_case(fake_segmenter, input_dir, output_dir)
    assert files(output_dir) == OUTPUTS


def test_lobes_are_checked_when_read(ct, lobes, save):
    lobes.array[0, 0, 0] = 9
    with pytest.raises(InputError, match="holds labels 9"):
        read_case(save(ct, "ct.mha"), save(lobes, "lobes.mha"))
