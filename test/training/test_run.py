import json
import tarfile

import pandas as pd
import pytest

from algorithm.errors import InputError
from algorithm.model import load_model
from algorithm.segmenter import LesionSegmenter
from training.cases import of_split, read_cases, read_scan
from training.run import STAGES
from training.settings import TrainingConfig
from training.stages import Run, execute


@pytest.fixture(scope="module")
def finished(phantoms, tiny_config, tmp_path_factory) -> Run:
    """All stages, the comparison before the export so that its results are exported."""
    run = Run(phantoms, tmp_path_factory.mktemp("run"), tiny_config, device="cpu")
    for stage in STAGES:
        execute(run, stage)
    return run


def test_the_exported_model_segments_a_scan(finished):
    directory = finished.folder("export") / "model"
    scan = read_scan(of_split(read_cases(finished.data), "test")[0])
    result = LesionSegmenter.from_directory(directory, device="cpu").segment(scan.ct, scan.lobes)
    assert result.labels.array.shape == scan.ct.array.shape
    assert result.report.model.weights_sha256 == load_model(directory).description.files["lesion.safetensors"]


def test_the_tarball_lands_directly_in_the_model_directory(finished):
    with tarfile.open(finished.folder("export") / "model.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["lesion.safetensors", "model.json", "subtypes.csv"]


def test_model_json_says_what_it_was_trained_on(finished):
    description = json.loads((finished.folder("export") / "model" / "model.json").read_text())
    assert description["training"]["cases"] == {"train": 3, "validation": 1, "test": 1}
    assert description["training"]["settings"]["regress"]["steps"] == 6
    assert "Not a medical device" in description["intended_use"]
    assert [row["row"] for row in description["results"]["rows"]][-1] == "supervised"


def test_comparison_has_a_value_per_row_and_scan(finished):
    per_scan = pd.read_csv(finished.folder("ablate") / "per_scan.csv")
    assert len(per_scan) == 10 and per_scan["iou"].between(0, 1).all()
    otsu = per_scan[per_scan["row"].str.startswith("threshold")]
    assert (otsu["iou"] > 0).all()  # bright voxels are partly lesion: the row measures something


def test_a_finished_stage_is_not_done_again(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*") if path.is_file()}
    for stage in STAGES:
        execute(finished, stage)
    after = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == set()
    assert capsys.readouterr().out.count("done already") == len(STAGES)


def test_other_settings_do_not_mix_with_what_is_there(finished, tiny_config):
    changed = TrainingConfig.model_validate(
        tiny_config.model_dump() | {"regress": tiny_config.regress.model_dump() | {"steps": 7}}
    )
    run = Run(finished.data, finished.directory, changed, device="cpu")
    with pytest.raises(
        InputError, match="regress: begun with other settings; use the same ones, another run directory"
    ):
        execute(run, STAGES[2])


def test_stages_ask_for_what_they_need(phantoms, tiny_config, tmp_path):
    run = Run(phantoms, tmp_path, tiny_config, device="cpu")
    with pytest.raises(InputError, match="stage vessels is not done; run `python -m training vessels` first"):
        execute(run, STAGES[2])


def test_reference_components_are_of_every_subtype_in_the_data(finished):
    table = pd.read_csv(finished.folder("subtypes") / "subtypes.csv")
    assert list(table.columns) == ["volume_ml", "mean_hu", "sd_hu", "subtype"]
    assert (table["volume_ml"] >= 0.05).all() and table["subtype"].isin([1, 2, 3]).all()
