import gzip
import struct

import numpy as np
import pandas as pd
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume, read_labels
from training.importers import totalsegmentator
from training.importers.dataset import write_dataset
from training.parallel import Workers

FILES = {
    "lung_upper_lobe_left": 1,
    "lung_lower_lobe_left": 2,
    "lung_upper_lobe_right": 3,
    "lung_lower_lobe_right": 4,
    "lung_middle_lobe_right": 5,
}


@pytest.fixture
def root(tmp_path, chest, five_lobes, grid, write_image):
    """A chest and a scan without lungs."""
    root = tmp_path / "data"
    for name, lobes in (("s0000", five_lobes.array), ("s0007", np.zeros_like(five_lobes.array))):
        write_image(Volume(chest, grid), root / name / "ct.nii.gz")
        for file, label in FILES.items():
            mask = Volume((lobes == label).astype(np.uint8), grid)
            write_image(mask, root / name / "segmentations" / f"{file}.nii.gz")
    (root / "meta.csv").write_text("image_id;age;split\ns0000;60;val\ns0007;70;train\ns0009;80;test\n")
    return root


def test_lobes_by_name_no_scores_and_the_stated_split(root, five_lobes, tmp_path, capsys):
    cases = totalsegmentator.read(root)
    assert [(case.name, case.split) for case in cases] == [("s0000", "validation"), ("s0007", "train")]
    write_dataset(totalsegmentator.SOURCE, cases, tmp_path / "out", workers=Workers(1))
    assert "left out: 1 cases, no lobe in the scan" in capsys.readouterr().out
    (row,) = pd.read_csv(tmp_path / "out" / "cases.csv", dtype=str, keep_default_na=False).to_dict("records")
    assert row == {
        "case": "s0000", "ct": "images/s0000_ct.mha", "lobes": "images/s0000_lobes.mha", "lul": "", "lll": "",
        "rul": "", "rll": "", "rml": "", "lesions": "", "vessels": "", "split": "validation",
    }  # fmt: skip
    assert np.array_equal(read_labels(tmp_path / "out" / row["lobes"]).array, five_lobes.array)


def test_a_sheared_scan_is_named_and_can_be_skipped(root, tmp_path):
    other = root / "s0009"
    (root / "s0000").rename(other)
    (root / "s0000").mkdir()
    for path in [*other.rglob("*.nii.gz")]:
        copy = root / "s0000" / path.relative_to(other)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        header = bytearray(gzip.decompress(path.read_bytes()))
        header[252:256] = struct.pack("<2h", 0, 1)  # sform only
        header[280:328] = struct.pack("<12f", 0.7, 0.35, 0, 0, 0, 0.72, 0, 0, 0, 0, 2.0, 0)  # shears x by y
        path.write_bytes(gzip.compress(bytes(header)))
    cases = totalsegmentator.read(root)
    with pytest.raises(InputError, match="1 of 3 cases cannot be used: s0009: .*not at right angles"):
        write_dataset(totalsegmentator.SOURCE, cases, tmp_path / "out", workers=Workers(1))
    write_dataset(totalsegmentator.SOURCE, cases, tmp_path / "out", skip_unusable=True, workers=Workers(1))
    assert pd.read_csv(tmp_path / "out" / "cases.csv")["case"].tolist() == ["s0000"]


def test_missing_and_overlapping_masks_are_errors(root, five_lobes, write_image):
    folder = root / "s0000" / "segmentations"
    write_image(five_lobes.with_array((five_lobes.array > 2).astype(np.uint8)), folder / "lung_upper_lobe_right.nii.gz")
    with pytest.raises(InputError, match="segmentations: masks of lobes overlap"):
        totalsegmentator.read_lobes(folder)
    (folder / "lung_middle_lobe_right.nii.gz").unlink()
    with pytest.raises(InputError, match=r"lung_middle_lobe_right\.nii\.gz: no such file"):
        totalsegmentator.read_lobes(folder)


def test_meta_csv_must_give_a_split(root, tmp_path):
    (root / "meta.csv").write_text("image_id;split\ns0000;fold1\n")
    with pytest.raises(InputError, match=r"got split s0000 fold1, s0007 absent; expected one of train, val, test"):
        totalsegmentator.read(root)
    (root / "meta.csv").unlink()
    with pytest.raises(InputError, match=r"meta\.csv: got .*No such file.*expected the data set's table"):
        totalsegmentator.read(root)
    with pytest.raises(InputError, match=r"no scans; expected s0000/ct\.nii\.gz"):
        totalsegmentator.read(tmp_path)
