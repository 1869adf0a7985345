import json

import pandas as pd
import pytest

from algorithm.errors import InputError
from training.ablate.rows import CAM_RAW, CAM_REFINED, CONTEXT, NETWORKS, SUPERVISED, THRESHOLD
from training.ablate.seeds import compare_seeds

ROWS = (THRESHOLD, CAM_RAW, CAM_REFINED, "dRAM raw", "+ regulariser", CONTEXT, SUPERVISED)


def make_run(folder, seed, ious, *, processes=1, image="i", commit="c0", **settings):
    """Two scans, each 0.1 beside the row's mean IoU."""
    ablate = folder / "ablate"
    records = {stage: {"processes": processes} for stage in NETWORKS}
    records["ablate"] = {"seed": seed, "data_sha256": "d", "settings": {"seed": seed, **settings}}
    records["prepare"] = {"results": {"images_sha256": {"NA": image}}}
    for record in records.values():
        record |= {"environment": {"commit": "c0"}, "earlier_stages_sha256": {}}
    records["prepare"]["environment"] = {"commit": commit}
    records["ablate"]["earlier_stages_sha256"] = {"prepare": "p"}
    for stage, record in records.items():
        (folder / stage).mkdir(parents=True)
        (folder / stage / "done.json").write_text(json.dumps(record))
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
        make_run(tmp_path / "c", 2, (0.4, 0.2, 0.3, 0.3, 0.4, 0.55, 0.6)),
    ]
    table = compare_seeds(runs, tmp_path / "out")
    assert list(table.columns) == ["seed 0", "seed 1", "seed 2", "mean", "sd", "raised_in"]
    assert table.loc["dRAM raw", "mean"] == pytest.approx(0.3)
    assert table.loc["dRAM raw", "sd"] == pytest.approx(0.1)
    assert table["raised_in"].dropna().to_dict() == {CAM_REFINED: 2, "+ regulariser": 3, CONTEXT: 2}
    text = (tmp_path / "out" / "seeds.md").read_text()
    assert "| + context | 0.350 | 0.450 | 0.550 | 0.450 | 0.100 | 2 |" in text
    assert "| supervised | 0.600 | 0.600 | 0.600 | 0.600 | 0.000 | - |" in text
    assert "commits" not in text


def test_runs_of_other_code_are_named(tmp_path):
    ious = (0.4, 0.2, 0.3, 0.4, 0.5, 0.45, 0.6)
    runs = [make_run(tmp_path / f"{seed}", seed, ious, commit=f"c{seed}") for seed in range(3)]
    compare_seeds(runs, tmp_path / "out")
    text = (tmp_path / "out" / "seeds.md").read_text()
    assert "done at 3 commits, whose differences count as chance: c0, c1, c2." in text


def test_runs_must_differ_in_the_seed_alone(tmp_path):
    ious = (0.4, 0.2, 0.3, 0.4, 0.5, 0.45, 0.6)
    two = [make_run(tmp_path / "a", 0, ious), make_run(tmp_path / "b", 1, ious)]
    with pytest.raises(InputError, match="got 2 run directories, expected at least 3"):
        compare_seeds(two, tmp_path)
    with pytest.raises(InputError, match="has seed 0, as has"):
        compare_seeds([*two, make_run(tmp_path / "c", 0, ious)], tmp_path)
    with pytest.raises(InputError, match="differs from .* in more than the seed"):
        compare_seeds([*two, make_run(tmp_path / "d", 2, ious, regress={"steps": 1})], tmp_path)
    with pytest.raises(InputError, match="differs from .* expected the same data, settings and number of processes"):
        compare_seeds([*two, make_run(tmp_path / "e", 2, ious, processes=8)], tmp_path)
    with pytest.raises(InputError, match="differs from .* in more than the seed"):
        compare_seeds([*two, make_run(tmp_path / "f", 2, ious, image="another")], tmp_path)
    with pytest.raises(InputError, match="stage ablate is not done"):
        compare_seeds([*two, tmp_path / "nothing"], tmp_path)
