import pickle

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume
from training.cases import read_cases, read_scan
from training.importers import mosmed
from training.importers.dataset import write_dataset
from training.importers.lobes import LobeFiles
from training.importers.source import assign_splits
from training.parallel import Workers


@pytest.fixture
def root(tmp_path, chest, five_lobes, grid, write_image):
    """A scan without lesions, one with a mask and one with a class only."""
    for path in ("CT-0/study_0001", "CT-1/study_0255", "CT-2/study_0900"):
        write_image(Volume(chest, grid), tmp_path / "data" / "studies" / f"{path}.nii.gz")
        write_image(five_lobes, tmp_path / "lobes" / f"{path[-10:]}.nii.gz")
    mask = np.zeros(grid.size_zyx, np.uint8)
    mask[1:3, 4:10, 4:6] = 1  # half of the right lower lobe: 24 of 48 voxels
    write_image(Volume(mask, grid), tmp_path / "data" / "masks" / "study_0255_mask.nii.gz")
    return tmp_path / "data"


def test_zeros_of_ct_0_and_scores_of_masks(root, tmp_path, capsys):
    cases = assign_splits(mosmed.read(root), seed=0, validation=0, test=0)
    assert "left out: 1 scans of CT-1 to CT-4 without a mask" in capsys.readouterr().out
    lobes = LobeFiles(tmp_path / "lobes", "ours")
    write_dataset(mosmed.SOURCE, pickle.loads(pickle.dumps(cases)), tmp_path / "out", lobes=lobes, workers=Workers(1))
    healthy, ill = read_cases(tmp_path / "out")
    assert (healthy.name, ill.name) == ("study_0001", "study_0255")
    assert healthy.scores == {1: 0, 2: 0, 3: 0, 4: 0, 5: 0} and healthy.lesions is None
    assert ill.scores == {1: 0, 2: 0, 3: 0, 4: 4, 5: 0}
    lesions = read_scan(ill).lesions.array
    assert np.count_nonzero(lesions == 4) == np.count_nonzero(lesions) == 24
    assert "CC BY-NC-ND 3.0" in (tmp_path / "out" / "LICENCE.txt").read_text()


def test_folders_without_studies_do_as_well(root):
    for folder in (root / "studies").iterdir():
        folder.rename(root / folder.name)
    (root / "studies").rmdir()
    assert [case.name for case in mosmed.read(root)] == ["study_0001", "study_0255"]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no scans; expected studies/CT-0/study_0001.nii.gz"):
        mosmed.read(tmp_path)


def test_a_windowed_scan_is_refused_with_its_name(root, tmp_path, grid, write_image):
    path = root / "studies" / "CT-0" / "study_0001.nii.gz"
    write_image(Volume(np.random.default_rng(0).integers(0, 255, grid.size_zyx).astype(np.int16), grid), path)
    cases = assign_splits(mosmed.read(root), seed=0, validation=0, test=0)
    with pytest.raises(InputError, match="1 of 2 cases cannot be used: study_0001: .*got a windowed picture"):
        write_dataset(
            mosmed.SOURCE, cases, tmp_path / "out", lobes=LobeFiles(tmp_path / "lobes", "ours"), workers=Workers(1)
        )
