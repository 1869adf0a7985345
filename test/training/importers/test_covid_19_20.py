import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume
from training.importers import covid_19_20


@pytest.fixture
def root(tmp_path, chest, grid, write_image):
    """Two scans of one patient and one of another, and a scan whose labels are hidden."""
    train = tmp_path / "COVID-19-20_v2" / "Train"
    mask = np.zeros(grid.size_zyx, np.uint8)
    mask[2, 3, 4] = 1
    for name in ("A-0003", "A-0014_0", "A-0014_1"):
        write_image(Volume(chest, grid), train / f"volume-covid19-{name}_ct.nii.gz")
        write_image(Volume(mask, grid), train / f"volume-covid19-{name}_seg.nii.gz")
    write_image(Volume(chest, grid), tmp_path / "COVID-19-20_v2" / "Validation" / "volume-covid19-A-0004_ct.nii.gz")
    return tmp_path


def test_scans_masks_and_patients(root, chest, grid, capsys):
    cases = covid_19_20.read(root)
    assert "left out: 1 scans of the folder Validation" in capsys.readouterr().out
    assert [(case.name, case.patient) for case in cases] == [
        ("volume-covid19-A-0003", "volume-covid19-A-0003"),
        ("volume-covid19-A-0014_0", "volume-covid19-A-0014"),
        ("volume-covid19-A-0014_1", "volume-covid19-A-0014"),
    ]
    imported = cases[2].load()
    assert np.array_equal(imported.ct.array, chest) and imported.scores == {} and imported.lobes is None
    assert imported.ct.geometry.origin_xyz_mm == grid.origin_xyz_mm
    assert imported.ct.geometry.spacing_zyx_mm == pytest.approx(grid.spacing_zyx_mm, abs=1e-6)
    assert np.argwhere(imported.lesions.array == 4).tolist() == [[2, 3, 4]] and imported.lesions.array.sum() == 4


@pytest.mark.parametrize("inner", ["COVID-19-20_v2", "COVID-19-20_v2/Train"])
def test_the_root_may_be_an_inner_folder(root, inner):
    assert len(covid_19_20.read(root / inner)) == 3


def test_missing_scans_and_masks_are_errors(root, tmp_path):
    (root / "COVID-19-20_v2" / "Train" / "volume-covid19-A-0003_seg.nii.gz").unlink()
    with pytest.raises(InputError, match="masks missing: volume-covid19-A-0003_seg.nii.gz; expected one for each scan"):
        covid_19_20.read(root)
    with pytest.raises(InputError, match="no scans; expected COVID-19-20_v2/Train/"):
        covid_19_20.read(tmp_path / "COVID-19-20_v2" / "Validation" / "none")
