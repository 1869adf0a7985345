import numpy as np
import pandas as pd
import pytest

from algorithm.errors import InputError
from algorithm.images import read_geometry, read_labels
from algorithm.lobes import LOBES
from algorithm.model import PACKAGED_DIRECTORY
from algorithm.segmenter import LesionSegmenter
from training.cases import of_split, read_cases
from training.reproduce.presence import compare_presence, presence_of, real_scans


@pytest.fixture
def real(finished, tmp_path):
    """A phantom in place of a real scan; the readers saw what the given lesions say."""
    case = of_split(read_cases(finished.data), "test")[0]
    folder = tmp_path / "real" / "p1"
    folder.mkdir(parents=True)
    for name, path in (("ct.mha", case.ct), ("lobes.mha", case.lobes)):
        (folder / name).symlink_to(path.resolve())
    return folder


@pytest.fixture
def segmenter() -> LesionSegmenter:
    return LesionSegmenter.from_directory(PACKAGED_DIRECTORY, device="cpu")


def test_lesion_counts_from_20_mm2_in_a_slice_of_a_lobe():
    lobes = np.zeros((3, 4, 6), dtype=np.uint8)
    lobes[:, :, :3], lobes[:, :, 3:] = 1, 4
    lesions = np.zeros_like(lobes)
    lesions[0, :2, :2] = 1
    lesions[1, 0, :3] = 2
    lesions[2, :2, 2:5] = 3  # 2 pixels in lobe 1, 4 in lobe 4
    found = presence_of(lesions, lobes, pixel_mm2=5.0)
    keys = {lobe.label: lobe.key for lobe in LOBES}
    assert found[keys[1]].tolist() == [True, False, False]
    assert found[keys[4]].tolist() == [False, False, True]
    assert not any(found[keys[label]].any() for label in (2, 3, 5))


def test_agreement_with_readers_over_slices_that_show_the_lobe(real, segmenter, tmp_path):
    """Readers who saw what the model finds, but for one slice on either side."""
    without = compare_presence(segmenter, real.parent, tmp_path / "first")
    assert "sensitivity" not in without and "| - | - |" in (tmp_path / "first/presence.md").read_text()
    lesions, lobes = read_labels(tmp_path / "first/p1/lesions.mha"), read_labels(real / "lobes.mha")
    _, height, width = lobes.geometry.spacing_zyx_mm
    seen = pd.DataFrame(presence_of(lesions.array, lobes.array, height * width)).astype(int)
    there = {lobe.key: (lobes.array == lobe.label).any(axis=(1, 2)) for lobe in LOBES}
    pairs = [(key, z) for key, where in there.items() for z in np.flatnonzero(where)]
    found = [pair for pair in pairs if seen.loc[pair[1], pair[0]]]
    assert found and len(found) < len(pairs)
    wrong = [found[0], next(pair for pair in pairs if pair not in found)]
    for key, z in wrong:
        seen.loc[z, key] = 1 - seen.loc[z, key]
    seen.rename_axis("slice").iloc[::-1].to_csv(real / "presence.csv")
    row = compare_presence(segmenter, real.parent, tmp_path / "second").iloc[0]
    assert row["diseased"] == len(found) and row["healthy"] == len(pairs) - len(found)
    assert row["sensitivity"] == pytest.approx(1 - 1 / len(found))
    assert row["specificity"] == pytest.approx(1 - 1 / (len(pairs) - len(found)))
    assert (tmp_path / "second/p1/overview.png").stat().st_size > 1000


def test_what_cannot_be_used_is_refused(real, segmenter, tmp_path):
    with pytest.raises(InputError, match=r"no folder with ct\.mha"):
        real_scans(real)
    (real / "presence.csv").write_text("slice,lul\n0,1\n")
    with pytest.raises(InputError, match=r"presence\.csv: got no column lll, rul, rll, rml"):
        compare_presence(segmenter, real.parent, tmp_path / "out")
    for content in (b"", b"slice,lul\n0,1,0,0\n0,1\n1,2,3,4,5,6,7\n", "slice,l\u00e9\n".encode("latin-1")):
        (real / "presence.csv").write_bytes(content)
        with pytest.raises(InputError, match=r"presence\.csv: cannot be read as a table .*; save it as CSV, in UTF-8"):
            compare_presence(segmenter, real.parent, tmp_path / "out")
    (real / "presence.csv").write_text("slice,lul,lll,rul,rll,rml\n0,1,0,0,0,0\n")
    with pytest.raises(InputError, match=r"presence\.csv: got 1 slices, expected one line for each of the CT's \d+"):
        compare_presence(segmenter, real.parent, tmp_path / "out")
    depth = read_geometry(real / "ct.mha").size_zyx[0]
    for value in ("", "-1", "yes"):
        rows = [f"{z},1,{value},0,0,0\n" for z in range(depth)]
        (real / "presence.csv").write_text("".join(["slice,lul,lll,rul,rll,rml\n", *rows]))
        with pytest.raises(InputError, match=r"presence\.csv: got other values than 0 and 1, or none, in lll"):
            real_scans(real.parent)
    (real / "lobes.mha").unlink()
    with pytest.raises(InputError, match=r"p1: no lobes\.mha"):
        real_scans(real.parent)
