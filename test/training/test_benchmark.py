import json
import os
import re

import pytest
import torch

from algorithm.errors import InputError
from training import benchmark as module
from training.benchmark import Row, as_table, benchmark, median_seconds, peak_memory, phantom_chunks


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Measure once or twice, and print without wrapping."""
    monkeypatch.setattr(module, "LONGEST_S", 0.01)
    monkeypatch.setattr(module.console, "width", 200)


def test_it_prints_all_comparisons(capsys):
    pytest.importorskip("pydensecrf")
    benchmark(device="cpu", width=1, chunk_size=24, batch=2)
    printed = capsys.readouterr().out
    assert "2 x 24^3, cpu" in printed
    overlap = re.search(r"torch / pydensecrf2.*IoU of the labels (\d\.\d+)", printed)
    assert overlap and float(overlap[1]) >= 0.99
    assert re.search(r"dense CRF / network forward \+ backward.*width 1", printed)
    assert re.search(r"reading and augmenting / whole regress step", printed)
    assert re.search(r"reading, augmenting, CRF / whole.*the network's share is -?\d+%", printed)


def test_it_prints_the_peak_memory_of_each_stage_of_a_run(tmp_path):
    with pytest.raises(InputError, match="no finished stage; expected the directory of a run"):
        benchmark(device="cpu", width=1, chunk_size=24, batch=1, run_directory=tmp_path)
    for time_ns, (stage, peak, worker) in enumerate([("prepare", 0.6, 0.7), ("regress", 3.5, 0.1)]):
        path = tmp_path / stage / "done.json"
        path.parent.mkdir()
        record = {"stage": stage, "peak_memory_gb": peak, "peak_memory_of_a_worker_gb": worker}
        path.write_text(json.dumps(record))
        os.utime(path, ns=(time_ns, time_ns))
    table = peak_memory(tmp_path)
    assert [list(column.cells) for column in table.columns] == [["prepare", "regress"], ["0.6", "3.5"], ["0.7", "0.1"]]


def test_it_says_so_where_there_is_no_pydensecrf2(capsys, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    benchmark(device="cpu", width=1, chunk_size=24, batch=1)
    printed = capsys.readouterr().out
    assert "pydensecrf2 is not installed" in printed
    assert "forward + backward" in printed and "IoU" not in printed


def test_ratio_is_the_first_time_over_the_second():
    table = as_table([Row("a / b", 0.5, 2.0, "remark")], title="")
    assert [list(column.cells) for column in table.columns] == [["a / b"], ["0.5 / 2"], ["0.25"], ["remark"]]


def test_work_is_done_and_timed():
    calls = []
    assert median_seconds(lambda: calls.append(1)) > 0
    assert calls


def test_phantom_chunks_hold_lesion_and_texture():
    probability, image = phantom_chunks(2, 32, torch.Generator().manual_seed(0))
    for chunks in (probability, image):
        assert chunks.shape == (2, 1, 32, 32, 32) and chunks.dtype == torch.float32
        assert 0 <= chunks.min() < 0.3 and 0.5 < chunks.max() <= 1
    assert 0.1 < (probability > 0.5).float().mean() < 0.6
    again, _ = phantom_chunks(2, 32, torch.Generator().manual_seed(0))
    assert torch.equal(again, probability)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="got 20 voxels, expected a multiple of 8"):
        benchmark(device="cpu", width=1, chunk_size=20, batch=1)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="use --device cpu or auto"):
            benchmark(device="cuda", width=1, chunk_size=24, batch=1)
