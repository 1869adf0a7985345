import json

import pandas as pd
import pytest

from algorithm.errors import InputError
from training.ablate.rows import CAM_RAW, CAM_REFINED, CONTEXT, SUPERVISED, THRESHOLD
from training.ablate.seeds import compare_seeds

ROWS = (THRESHOLD, CAM_RAW, CAM_REFINED, "dRAM raw", "+ regulariser", CONTEXT, SUPERVISED)


def make_run(folder, seed, ious, **settings):
    """Two scans, each 0.1 beside the row's mean IoU."""
    ablate = folder / "ablate"
    ablate.mkdir(parents=True)
    record = {"seed": seed, "data_sha256": "d", "settings": {"seed": seed, "export": {"name": folder.name}, **settings}}
    (ablate / "done.json").write_text(json.dumps(record))
    lines = [
        {"row": row, "case": case, "iou": iou + change}
        for row, iou in zip(ROWS, ious, strict=True)
        for case, change in (("007", -0.1), ("NA", 0.1))
    ]
    pd.DataFrame(lines).to_csv(ablate / "per_scan.csv", index=False)
    return folder


def test_means_and_steps(tmp_path):
    runs = [
        make_run(tmp_path / "b", 1, (0.4, 0.2, 0.3, 0.4, 0.5, 0.45, 0.6)),
        make_run(tmp_path / "a", 0, (0.4, 0.2, 0.1, 0.2, 0.3, 0.35, 0.6)),
    ]
    table = compare_seeds(runs, tmp_path / "out")
    assert list(table.columns) == ["seed 0", "seed 1", "mean", "sd", "raised_in"]
    assert table.loc["dRAM raw", "mean"] == pytest.approx(0.3)
    assert table.loc["dRAM raw", "sd"] == pytest.approx(0.2 / 2**0.5)
    assert table["raised_in"].dropna().to_dict() == {CAM_REFINED: 1, "+ regulariser": 2, CONTEXT: 1}
    text = (tmp_path / "out" / "seeds.md").read_text()
    assert "| + context | 0.350 | 0.450 | 0.400 | 0.071 | 1 |" in text
    assert "| supervised | 0.600 | 0.600 | 0.600 | 0.000 | - |" in text


def test_runs_must_differ_in_the_seed_alone(tmp_path):
    ious = (0.4, 0.2, 0.3, 0.4, 0.5, 0.45, 0.6)
    first = make_run(tmp_path / "a", 0, ious)
    with pytest.raises(InputError, match="got 1 run directories, expected at least 2"):
        compare_seeds([first], tmp_path)
    with pytest.raises(InputError, match="has seed 0, as has"):
        compare_seeds([first, make_run(tmp_path / "b", 0, ious)], tmp_path)
    with pytest.raises(InputError, match="differs from .* in more than the seed"):
        compare_seeds([first, make_run(tmp_path / "c", 1, ious, regress={"steps": 1})], tmp_path)
    with pytest.raises(InputError, match="stage ablate is not done"):
        compare_seeds([first, tmp_path / "nothing"], tmp_path)
