import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import training.nnunet
from algorithm.errors import InputError
from algorithm.images import read_ct, read_labels, require_same_grid
from evaluation.metrics import iou
from training.cases import FILES, read_cases
from training.nnunet import export_nnunet
from training.parallel import Workers
from training.prepare import prepare, prepared
from training.segment import Labels
from training.stages import Run, Stage, execute


@pytest.fixture(scope="module")
def run(phantoms, tiny_config, tmp_path_factory) -> Iterator[Run]:
    """Phantoms without reference lesions in one training case, with caches and made-up pseudo labels."""
    directory = tmp_path_factory.mktemp("nnunet")
    table = pd.read_csv(phantoms / "cases.csv")
    table[list(FILES)] = str(phantoms) + "/" + table[list(FILES)]
    table.loc[table.index[-1], "lesions"] = None
    table.to_csv(directory / "cases.csv", index=False)
    config = tiny_config.model_copy(update={"prepare": tiny_config.prepare.model_copy(update={"scan_spacing_mm": 3.0})})
    run = Run(directory, directory, config, device="cpu", workers=Workers(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.nnunet, "PSEUDO", PSEUDO)
        execute(run, PREPARE)
        execute(run, PSEUDO)
        yield run


def made_up_labels(run: Run, folder: Path) -> dict[str, int]:
    for case in read_cases(run.data):
        lobes = prepared(run, case).array("scan_lobes")
        np.save(folder / f"{case.name}_labels.npy", np.where(lobes == 1, 2, np.where(lobes == 2, 1, 0)))
    return {}


PREPARE = Stage("prepare", "", (), lambda c: c.prepare, prepare)
PSEUDO = Stage("pseudo", "", (PREPARE,), lambda c: c.pseudo, made_up_labels)


def exported(run: Run, out: Path, labels: Labels = "reference") -> Path:
    return export_nnunet(run, out, dataset_id=7, name="Lesions", labels=labels)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    return exported(run, tmp_path_factory.mktemp("raw"))


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_files_lie_where_nnunet_looks_for_them(folder):
    assert folder.name == "Dataset007_Lesions"
    assert sorted(files(folder)) == [
        "basis.json",
        "dataset.json",
        "imagesTr/p0001_0000.nii.gz",
        "imagesTr/p0002_0000.nii.gz",
        "imagesTr/p0003_0000.nii.gz",
        "imagesTs/p0000_0000.nii.gz",
        "labelsTr/p0001.nii.gz",
        "labelsTr/p0002.nii.gz",
        "labelsTr/p0003.nii.gz",
        "labelsTs/p0000.nii.gz",
        "splits_final.json",
    ]


def test_the_description_is_what_nnunet_reads(folder):
    content = json.loads((folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    assert content["labels"] == {"background": 0, "lesion": 1}
    assert (content["numTraining"], content["file_ending"]) == (3, ".nii.gz")
    assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["p0002", "p0003"], "val": ["p0001"]}]


def test_images_are_the_ct_on_its_own_grid(run, folder):
    case = read_cases(run.data)[1]
    ct, image = read_ct(case.ct), read_ct(folder / "imagesTr" / "p0001_0000.nii.gz")
    require_same_grid(image, ct, "image")
    assert np.array_equal(image.array, ct.array) and image.array.dtype == np.int16


@pytest.mark.parametrize(("path", "index"), [("labelsTr/p0001.nii.gz", 1), ("labelsTs/p0000.nii.gz", 0)])
def test_labels_are_the_reference_lesions_in_the_lobes(run, folder, path, index):
    case = read_cases(run.data)[index]
    labels = read_labels(folder / path)
    require_same_grid(labels, read_ct(case.ct), "labels")
    inside = read_labels(case.lobes).array > 0
    assert np.array_equal(labels.array, (read_labels(case.lesions).array > 0) & inside)
    assert labels.array.max() == 1


def test_a_stored_orientation_is_kept(run, tmp_path):
    """The first case again, stored upside down and back to front."""
    table = pd.read_csv(run.data / "cases.csv").iloc[[1, 3]]
    for name in FILES:
        image = sitk.ReadImage(table.iloc[0][name])
        sitk.WriteImage(sitk.Flip(image, [False, True, True]), str(tmp_path / f"{name}.mha"))
        table.loc[table.index[0], name] = str(tmp_path / f"{name}.mha")
    table.to_csv(tmp_path / "cases.csv", index=False)
    folder = exported(Run(tmp_path, run.directory, run.config, workers=Workers(1)), tmp_path)
    flipped = read_labels(folder / "labelsTr" / "p0001.nii.gz")
    require_same_grid(flipped, read_ct(tmp_path / "ct.mha"), "labels")
    expected = (read_labels(tmp_path / "lesions.mha").array > 0) & (read_labels(tmp_path / "lobes.mha").array > 0)
    assert expected.any() and np.array_equal(flipped.array, expected)


def test_pseudo_labels_come_back_to_the_ct(run, tmp_path):
    folder = exported(run, tmp_path, "pseudo")
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 4  # the case without lesions among them
    case = read_cases(run.data)[4]
    labels = read_labels(folder / "labelsTr" / f"{case.name}.nii.gz").array
    lobe = read_labels(case.lobes).array == 1
    assert iou(lobe, labels > 0) > 0.85  # lesion was said to be lobe 1, vessel lobe 2; on a grid of 3 mm


def test_only_what_is_missing_is_written_again(run, tmp_path):
    folder = exported(run, tmp_path)
    before = files(folder)
    (folder / "labelsTr" / "p0002.nii.gz").unlink()
    exported(run, tmp_path)
    after = files(folder)
    changed = {path for path in before if after[path] != before[path]}
    assert before.keys() == after.keys()
    assert changed == {"labelsTr/p0002.nii.gz", "basis.json", "dataset.json", "splits_final.json"}


def test_a_folder_of_other_labels_is_refused(run, tmp_path):
    exported(run, tmp_path)
    with pytest.raises(InputError, match="Dataset007_Lesions: begun with other labels and pseudo_sha256"):
        exported(run, tmp_path, "pseudo")


def test_what_a_killed_export_left_is_removed(run, tmp_path):
    left = tmp_path / "Dataset007_Lesions" / "imagesTr" / "p0001_0000.nii.gz.0f.tmp"
    left.mkdir(parents=True)
    (left / "p0001_0000.nii.gz").touch()
    exported(run, tmp_path)
    assert not left.exists()


def test_a_full_disk_is_said(run, tmp_path, monkeypatch):
    def full(image, path, **options):
        Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(InputError, match=r"^p000\d: .*p000\d_0000\.nii\.gz: no space left on the disk"):
        exported(run, tmp_path)
    assert not list(tmp_path.rglob("*.nii.gz*"))


def test_the_next_commands_are_printed(run, folder, capsys):
    exported(run, folder.parent)
    printed = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 7 --verify_dataset_integrity" in printed
    assert f"splits_final.json $nnUNet_preprocessed/{folder.name}/" in printed
    assert "nnUNetv2_train 7 3d_fullres 0" in printed
    assert f"nnUNetv2_predict -i {folder}/imagesTs -o predictions -d 7 -c 3d_fullres -f 0" in printed


def test_without_validation_labels_there_is_no_split(run, tmp_path, capsys):
    table = pd.read_csv(run.data / "cases.csv").iloc[[3]]
    table.to_csv(tmp_path / "cases.csv", index=False)
    folder = exported(Run(tmp_path, run.directory, run.config, workers=Workers(1)), tmp_path)
    assert not (folder / "splits_final.json").exists()
    assert "nnUNetv2_train 7 3d_fullres all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset_id", "name", "message"),
    [
        (0, "Lesions", "got 0, expected 1 to 999"),
        (1000, "Lesions", "got 1000, expected 1 to 999"),
        (7, "my lesions", "got 'my lesions', expected letters and digits"),
    ],
)
def test_names_that_nnunet_would_not_read_are_refused(run, tmp_path, dataset_id, name, message):
    with pytest.raises(InputError, match=message):
        export_nnunet(run, tmp_path, dataset_id=dataset_id, name=name, labels="reference")
    assert not list(tmp_path.iterdir())


def test_labels_must_be_there(run, tmp_path):
    table = pd.read_csv(run.data / "cases.csv")
    table["lesions"] = None
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(InputError, match="got no training or validation case with reference labels"):
        exported(Run(tmp_path, run.directory, run.config), tmp_path / "out")
    with pytest.raises(InputError, match="stage pseudo is not done"):
        unlabelled = Run(tmp_path, tmp_path / "run", run.config, workers=Workers(1))
        execute(unlabelled, PREPARE)
        exported(unlabelled, tmp_path / "out", "pseudo")
    assert not (tmp_path / "out").exists()


def test_pseudo_labels_of_other_splits_or_settings_are_refused(run, tmp_path):
    """A test case that the dRAM has learnt from would be measured with it."""
    table = pd.read_csv(run.data / "cases.csv")
    table["split"] = table["split"].to_numpy()[::-1]
    table.to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(InputError, match="prepare: begun with other data_sha256"):
        exported(replace(run, data=tmp_path), tmp_path / "out", "pseudo")
    config = run.config.model_copy(update={"pseudo": run.config.pseudo.model_copy(update={"threshold": 0.9})})
    with pytest.raises(InputError, match=r"pseudo: begun with other settings.*settings\.threshold"):
        exported(replace(run, config=config), tmp_path / "out", "pseudo")
    assert not (tmp_path / "out").exists()


def test_cases_without_reference_lesions_are_named(run, tmp_path, capsys):
    exported(run, tmp_path)
    assert f"left out, as they have no reference lesions: {read_cases(run.data)[-1].name}" in capsys.readouterr().out
