import os

import numpy as np
import pytest
import SimpleITK as sitk
from dask.distributed import LocalCluster

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from training.cases import Case, read_cases
from training.files import load_array
from training.parallel import Workers
from training.prepare import PreparedCase, prepare, prepared, sha256_of_images
from training.settings import TrainingConfig
from training.stages import Run, Stage, execute

SHAPE = (6, 12, 20)
GRID = Geometry(SHAPE, (2.0, 1.0, 1.0), (-10.0, 5.0, 30.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
CONFIG = TrainingConfig.model_validate(
    {"prepare": {"chunk_spacing_mm": 1.0, "chunk_margin_mm": 1.0, "scan_spacing_mm": 2.0}}
)
STAGE = Stage("prepare", "", (), lambda config: config.prepare, prepare)
FILES = {f"{lobe}_{part}.npy" for lobe in ("lul", "lll", "rul", "rll", "rml") for part in ("image", "mask")}
FILES |= {"scan_image.npy", "scan_lobes.npy", "geometries.json", "source.json"}


def write_case(data, name):
    """Five lobes of 4 x 8 x 3 voxels side by side, and from y = 6 on a lesion."""
    lobes = np.zeros(SHAPE, dtype=np.uint8)
    for label in range(1, 6):
        lobes[1:5, 2:10, 3 * label : 3 * label + 3] = label
    ct = np.where(lobes > 0, -900, -1000).astype(np.int16)
    ct[:, 6:] += np.where(lobes[:, 6:] > 0, 750, 0).astype(np.int16)
    lesions = ((lobes > 0) & (ct == -150)).astype(np.uint8) * 4
    vessels = np.zeros(SHAPE, dtype=np.uint8)
    vessels[2, 2:8, 4] = 1
    for kind, array in {"ct": ct, "lobes": lobes, "lesions": lesions, "vessels": vessels}.items():
        sitk.WriteImage(Volume(array, GRID).to_sitk(), str(data / f"{name}_{kind}.mha"))


def write_table(data, *rows):
    header = "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split\n"
    (data / "cases.csv").write_text(header + "".join(f"{row}\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in "ab":
        write_case(data, name)
    write_table(
        data,
        "a,a_ct.mha,a_lobes.mha,1,1,1,1,1,a_lesions.mha,a_vessels.mha,train",
        "b,b_ct.mha,b_lobes.mha,,,,,5,,,test",
    )
    return Run(data, tmp_path / "run", CONFIG, device="cpu", workers=Workers(1))


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def test_a_scan_is_cached_as_lobes_and_as_a_whole(run):
    execute(run, STAGE)
    results = run.record("prepare")["results"]
    assert (results["cases"], results["lobes"], list(results["images_sha256"])) == (2, 6, ["a", "b"])
    first, second = (prepared(run, case) for case in read_cases(run.data))
    assert {path.name for path in second.folder.iterdir()} == FILES
    assert {path.name for path in first.folder.iterdir()} == FILES | {"scan_classes.npy"}

    chunk = first.chunk("rll")  # label 4: x 12 to 14, with a margin of one voxel in x and y, and 1 mm in z
    assert chunk.geometry.spacing_zyx_mm == (1.0, 1.0, 1.0) and chunk.image.dtype == np.float16
    assert chunk.image.shape == chunk.mask.shape == (12, 10, 5)
    np.testing.assert_array_equal(chunk.mask[6, :, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    healthy, lesion = 0.2, 0.7  # of the window from -1200 to 300 HU
    np.testing.assert_allclose(chunk.image[6, :, 2], [0, *[healthy] * 4, *[lesion] * 4, 0], atol=1e-3)

    assert first.array("scan_lobes").shape == (4, 4, 8)  # 4 x 8 x 15 voxels, 8 x 8 x 15 mm
    assert first.geometry("scan").spacing_zyx_mm == (2.0, 2.0, 2.0)
    classes = first.mapped("scan_classes")  # 0 background, 1 vessel, 2 lesion, which hides a vessel
    assert set(np.unique(classes)) == {0, 1, 2}
    np.testing.assert_array_equal(classes == 2, first.array("scan_image") > 0.5)


def test_reference_lesions_count_in_the_lobes_only(run):
    lobes = sitk.ReadImage(str(run.data / "a_lobes.mha"))
    array = sitk.GetArrayFromImage(lobes)
    array[1:3, 6:10, 4:10] = 0
    holed = sitk.GetImageFromArray(array)
    holed.CopyInformation(lobes)
    sitk.WriteImage(holed, str(run.data / "a_lobes.mha"))
    execute(run, STAGE)
    case = prepared(run, read_cases(run.data)[0])
    outside = case.array("scan_lobes") == 0
    assert outside.any() and not case.array("scan_classes")[outside].any()


def test_the_grids_are_read_once(run):
    execute(run, STAGE)
    case = prepared(run, read_cases(run.data)[0])
    assert case.geometry("scan") == PreparedCase(case.name, case.folder).geometry("scan")
    (case.folder / "geometries.json").unlink()
    assert case.chunk("rml").geometry.spacing_zyx_mm == (1.0, 1.0, 1.0)


def test_bad_cases_are_told_together_and_the_good_ones_are_kept(run):
    for name in ("c", "d"):
        write_case(run.data, name)
        ct = sitk.ReadImage(str(run.data / f"{name}_ct.mha"))
        sitk.WriteImage(sitk.Cast(ct + 1000, sitk.sitkUInt8), str(run.data / f"{name}_ct.mha"))
    rows = (run.data / "cases.csv").read_text().splitlines()[1:]
    bad = [f"{name},{name}_ct.mha,{name}_lobes.mha,1,1,1,1,1,,,train" for name in ("c", "d")]
    write_table(run.data, bad[0], *rows, bad[1])
    with pytest.raises(InputError, match=r"data: 2 problems\n  c: .*got 8-bit values.*\n  d: .*got 8-bit values"):
        execute(run, STAGE)
    folder = run.directory / "prepare"
    before = state(folder / "a")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "basis.json", "seconds.json"]
    for name in ("c", "d"):
        write_case(run.data, name)
    execute(run, STAGE)
    assert state(folder / "a") == before and (folder / "d" / "scan_image.npy").is_file()


def test_a_dask_cluster_writes_the_same(run, tmp_path):
    execute(run, STAGE)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster:
        workers = Workers(dask=cluster.scheduler_address)
        execute(Run(run.data, tmp_path / "other", CONFIG, device="cpu", workers=workers), STAGE)
    paths = list((run.directory / "prepare").rglob("*.npy"))
    assert len(paths) == 25
    for path in paths:
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(run.directory)).read_bytes()


def test_a_damaged_cache_is_named_and_its_cure_works_without_starting_later_stages_again(run):
    later = Stage("later", "", (STAGE,), lambda config: config.pseudo, lambda run, folder: {})
    execute(run, STAGE)
    execute(run, later)
    folder = run.directory / "prepare"
    path = folder / "a" / "rml_image.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    case = prepared(run, read_cases(run.data)[0])
    with pytest.raises(
        InputError, match=r"rml_image\.npy: damaged .*; delete it and the done\.json of its stage, then"
    ):
        case.chunk("rml")

    untouched = state(folder / "b")
    path.unlink()
    (folder / "done.json").unlink()
    execute(run, STAGE)
    assert path.read_bytes() == whole and state(folder / "b") == untouched
    execute(run, later)


def test_other_images_under_the_same_names_are_noticed(run):
    later = Stage("later", "", (STAGE,), lambda config: config.pseudo, lambda run, folder: {})
    execute(run, STAGE)
    execute(run, later)
    folder = run.directory / "prepare"
    untouched, before = state(folder / "b"), run.record("prepare")["results"]["images_sha256"]
    ct = sitk.ReadImage(str(run.data / "a_ct.mha"))
    sitk.WriteImage(ct + 1, str(run.data / "a_ct.mha"))
    (folder / "done.json").unlink()
    execute(run, STAGE)
    after = run.record("prepare")["results"]["images_sha256"]
    assert after["a"] != before["a"] and after["b"] == before["b"] and state(folder / "b") == untouched
    chunk = prepared(run, read_cases(run.data)[0]).chunk("rll")
    np.testing.assert_allclose(chunk.image[6, 2, 2], 301 / 1500, atol=1e-3)  # -899 HU in the window
    with pytest.raises(InputError, match="later: begun with other earlier_stages_sha256"):
        execute(run, later)


def test_a_dicom_folder_counts_with_all_its_files(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"one")
    (tmp_path / "lobes.mha").write_bytes(b"lobes")
    case = Case("a", tmp_path / "series", tmp_path / "lobes.mha", {}, None, None, "train")
    one = sha256_of_images(case)
    (tmp_path / "series" / "2.dcm").write_bytes(b"two")
    both = sha256_of_images(case)
    (tmp_path / "series" / "2.dcm").write_bytes(b"too")
    assert len({one, both, sha256_of_images(case)}) == 3


def test_an_mhd_file_counts_with_the_voxels_beside_it(tmp_path):
    for name in ("a", "ab"):
        (tmp_path / f"{name}.mhd").write_bytes(b"header")
        (tmp_path / f"{name}.raw").write_bytes(b"voxels")
    case = Case("a", tmp_path / "a.mhd", tmp_path / "a.mhd", {}, None, None, "train")
    before = sha256_of_images(case)
    (tmp_path / "ab.raw").write_bytes(b"others")
    assert sha256_of_images(case) == before
    (tmp_path / "a.raw").write_bytes(b"others")
    assert sha256_of_images(case) != before


@pytest.mark.parametrize("score", ["2", ""])
def test_a_scored_lobe_that_vanishes_in_its_chunk_is_refused(run, score):
    """At 7 mm the chunk of a lobe of 3 x 6 x 1 mm in its margin of 1 mm is one voxel, centred outside the lobe."""
    lobes = sitk.ReadImage(str(run.data / "b_lobes.mha"))
    array = sitk.GetArrayFromImage(lobes)
    array[array == 1] = 0
    array[1, 2, 3] = array[3, 8, 7] = 1
    sliver = sitk.GetImageFromArray(array)
    sliver.CopyInformation(lobes)
    sitk.WriteImage(sliver, str(run.data / "b_lobes.mha"))
    rows = (run.data / "cases.csv").read_text().splitlines()
    write_table(run.data, rows[1], f"b,b_ct.mha,b_lobes.mha,{score},,,,5,,,test")
    coarse = CONFIG.model_copy(update={"prepare": CONFIG.prepare.model_copy(update={"chunk_spacing_mm": 7.0})})
    run = Run(run.data, run.directory, coarse, device="cpu", workers=Workers(1))
    if not score:
        execute(run, STAGE)
        assert not prepared(run, read_cases(run.data)[1]).chunk("lul").mask.any()
        return
    with pytest.raises(InputError, match=r"data: b: left upper lobe has a score, but no voxel is left of it at 7 mm;"):
        execute(run, STAGE)


def test_killed_processes_leave_nothing_behind(run):
    folder = run.directory / "prepare"
    (folder / "a.0f.tmp").mkdir(parents=True)
    (folder / "a.0f.tmp" / "lul_image.npy").touch()
    (folder / "b").mkdir()
    (folder / "b" / "lul_image.npy").touch()  # as a whole folder cannot be: it is made again
    execute(run, STAGE)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["a", "b", "basis.json", "done.json"]
    assert load_array(folder / "b" / "lul_image.npy").dtype == np.float16


def test_a_full_disk_stops_at_the_first_case_with_one_line(run, monkeypatch):
    def full(fd):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    (run.directory / "prepare").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^a: .*no space left on the disk.*run the same command again"):
        prepare(run, run.directory / "prepare")
    assert list((run.directory / "prepare").iterdir()) == []
