"""Phantoms as a whole: reproducible, labelled consistently, and laid out as a data directory."""

from __future__ import annotations

import csv
import hashlib
import subprocess
from pathlib import Path

import cc3d
import numpy as np
import pytest
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobes import LEFT, RIGHT
from training.phantom import generate
from training.phantom.generate import (
    COLUMNS,
    SCORE_COLUMNS,
    Phantom,
    PhantomOptions,
    make_phantom,
    shapes_by_split,
    split_of,
    write_phantoms,
)
from training.phantom.grid import positions
from training.phantom.lesions import score_of
from training.phantom.lobes import LOBE_LABELS
from training.phantom.shapes import procedural_lobes

COARSE = 6.0


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(np.random.default_rng([3, k]), PhantomOptions(coarseness=3.5)) for k in range(3)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_phantoms(cases=3, seed=7, out=out, options=PhantomOptions(coarseness=COARSE, validation=1, test=1))
    return out


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _digests(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.suffix in (".mha", ".csv"))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_all_volumes_share_the_grid_and_hold_valid_labels(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        for volume in (phantom.lobes, phantom.lesions, phantom.vessels):
            assert volume.geometry == phantom.ct.geometry
            assert volume.array.shape == phantom.ct.geometry.size_zyx
            assert volume.array.dtype == np.uint8
        assert phantom.ct.array.dtype == np.int16
        assert phantom.ct.array.min() >= -1024
        assert set(np.unique(phantom.lobes.array)) == {0, *LOBE_LABELS}
        assert set(np.unique(phantom.lesions.array)) <= {0, 1, 2, 3}
        assert set(np.unique(phantom.vessels.array)) == {0, 1}


def test_lesions_and_vessels_lie_inside_lobes(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        outside = phantom.lobes.array == 0
        assert not phantom.lesions.array[outside].any()
        assert not phantom.vessels.array[outside].any()


def test_left_lobes_lie_at_larger_x_and_lower_lobes_lower(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        lobes = phantom.lobes
        centre = {
            label: positions(lobes.geometry, np.stack(np.nonzero(lobes.array == label))).mean(axis=0)
            for label in LOBE_LABELS
        }
        assert min(centre[1][0], centre[2][0]) > max(centre[3][0], centre[4][0], centre[5][0]) + 50
        assert centre[1][2] > centre[2][2]
        assert centre[3][2] > max(centre[4][2], centre[5][2])
        assert centre[5][1] < centre[4][1]


def test_one_subtype_per_component(phantoms: list[Phantom]) -> None:
    count = 0
    for phantom in phantoms:
        lesions = phantom.lesions.array
        components = cc3d.connected_components((lesions > 0).astype(np.uint8), connectivity=26)
        for component in range(1, int(components.max()) + 1):
            assert len(np.unique(lesions[components == component])) == 1
            count += 1
    assert count > 3


def test_vessels_belong_to_consolidation_but_not_to_ground_glass(phantoms: list[Phantom]) -> None:
    """The paper's references had the vessels suppressed, II-2; those that consolidation hides no one could suppress."""
    glass = np.concatenate([phantom.vessels.array[phantom.lesions.array == 1] for phantom in phantoms])
    assert len(glass) > 1000 and glass.mean() < 0.01
    half = make_phantom(np.random.default_rng(8), PhantomOptions(coarseness=3.5, disease="half-lung"))
    assert half.vessels.array[half.lesions.array == 2].mean() > 0.01


def test_densities_are_those_of_a_chest(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        hu, lobes, lesions = phantom.ct.array, phantom.lobes.array, phantom.lesions.array
        healthy = (lobes > 0) & (lesions == 0)
        assert -910 < np.median(hu[healthy]) < -750
        assert 0.0 < (phantom.vessels.array[lobes > 0]).mean() < 0.15
        vessels = healthy & (phantom.vessels.array > 0)
        assert np.median(hu[vessels]) > np.median(hu[healthy]) + 150
        diseased = hu[(lesions > 0) & (phantom.vessels.array == 0)]
        if len(diseased) > 50:
            assert np.median(diseased) > np.median(hu[healthy]) + 40
        corner = hu[:, :3, :3]
        assert np.median(corner) < -900 or np.median(corner) > -200  # air, or a body wider than the field of view


def test_spacing_is_realistic_times_coarseness() -> None:
    options = PhantomOptions(coarseness=COARSE)
    for seed in range(3):
        spacing_z, spacing_y, spacing_x = make_phantom(np.random.default_rng(seed), options).ct.geometry.spacing_zyx_mm
        assert spacing_x == spacing_y
        assert 0.6 * COARSE <= spacing_x <= 0.9 * COARSE
        assert 1.0 * COARSE <= spacing_z <= 3.0 * COARSE


def test_same_seed_same_bytes_whatever_the_workers(directory: Path, tmp_path: Path) -> None:
    options = PhantomOptions(coarseness=COARSE, validation=1, test=1, workers=2)
    write_phantoms(cases=3, seed=7, out=tmp_path, options=options)
    assert _digests(tmp_path) == _digests(directory)


def test_another_seed_gives_other_phantoms(directory: Path) -> None:
    other = make_phantom(np.random.default_rng([8, 0]), PhantomOptions(coarseness=COARSE))
    first = Volume.from_sitk(sitk.ReadImage(str(directory / "images/p0000/ct.mha")))
    assert other.ct.geometry != first.geometry


def test_cases_csv_has_the_layout_and_the_scores_of_the_masks(directory: Path) -> None:
    text = (directory / "cases.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split"
    assert tuple(text.splitlines()[0].split(",")) == COLUMNS
    rows = _rows(directory)
    assert [row["split"] for row in rows] == ["test", "validation", "train"]
    for row in rows:
        lobes = sitk.GetArrayFromImage(sitk.ReadImage(str(directory / row["lobes"])))
        lesions = sitk.GetArrayFromImage(sitk.ReadImage(str(directory / row["lesions"])))
        for label, column in SCORE_COLUMNS.items():
            percent = 100 * np.count_nonzero(lesions[lobes == label]) / np.count_nonzero(lobes == label)
            assert int(row[column]) == score_of(percent)


def test_score_noise_misreads_lobes_of_training_and_validation_cases_and_changes_nothing_else(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def scores(percentages: dict[int, float], rng: np.random.Generator, *, noise: float) -> dict[int, int]:
        asked.append(noise)
        return dict.fromkeys(percentages, 5 if noise else 0)

    monkeypatch.setattr(generate, "reader_scores", scores)
    options = PhantomOptions(coarseness=COARSE, validation=1, test=1, score_noise=0.3)
    write_phantoms(cases=3, seed=7, out=tmp_path, options=options)
    assert asked == [0.0, 0.3, 0.3]
    assert [row["lul"] for row in _rows(tmp_path)] == ["0", "5", "5"]
    images = {name: digest for name, digest in _digests(tmp_path).items() if name.endswith(".mha")}
    assert images.items() < _digests(directory).items()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_and_with_space_it_goes_on(small_disk: Path, directory: Path, workers: int) -> None:
    options = PhantomOptions(coarseness=COARSE, validation=1, test=1, workers=workers)
    with pytest.raises(InputError, match=r"no space left on the disk, .* run the same command again, finished parts"):
        write_phantoms(cases=3, seed=7, out=small_disk, options=options)
    assert not (small_disk / "cases.csv").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    write_phantoms(cases=3, seed=7, out=small_disk, options=options)
    assert _digests(small_disk) == _digests(directory) and not list(small_disk.rglob("*.tmp"))


def test_complete_cases_are_kept_and_incomplete_ones_made_again(tmp_path: Path) -> None:
    options = PhantomOptions(coarseness=COARSE)
    write_phantoms(cases=2, seed=1, out=tmp_path, options=options)
    before = _digests(tmp_path)
    kept = tmp_path / "images/p0000/ct.mha"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "images/p0001").rename(tmp_path / "images/p0001.0.tmp")
    (tmp_path / "images/p0001.0.tmp/ct.mha").unlink()
    write_phantoms(cases=2, seed=1, out=tmp_path, options=options)
    assert kept.stat().st_mtime_ns == stamp
    assert _digests(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["p0000", "p0001"]


def test_a_directory_of_other_phantoms_is_refused(directory: Path) -> None:
    with pytest.raises(InputError, match=r"holds phantoms made otherwise \(seed: then \d, now 8\)"):
        write_phantoms(cases=3, seed=8, out=directory, options=PhantomOptions(coarseness=COARSE, validation=1, test=1))


def test_more_held_out_cases_than_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 2 cases, expected at least 3 \(2 validation, 1 test, 0 healthy\)"):
        write_phantoms(cases=2, seed=1, out=tmp_path, options=PhantomOptions(validation=2, test=1))
    assert not list(tmp_path.iterdir())


def _write_shapes(folder: Path, count: int) -> None:
    for k in range(count):
        shape = procedural_lobes(np.random.default_rng(k), 6.0)
        sitk.WriteImage(shape.to_sitk(), str(folder / f"s{k:04d}.nii.gz"))


def test_real_shapes_are_used_and_divided_among_the_splits(tmp_path: Path) -> None:
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    _write_shapes(shapes, 4)
    divided = shapes_by_split(shapes, seed=2)
    everything = [path for paths in divided.values() for path in paths]
    assert len(everything) == len(set(everything)) == 4
    assert all(divided.values())
    options = PhantomOptions(coarseness=COARSE, lobe_shapes=shapes, test=1)
    write_phantoms(cases=2, seed=2, out=tmp_path / "out", options=options)
    lobes = Volume.from_sitk(sitk.ReadImage(str(tmp_path / "out/images/p0000/lobes.mha")))
    source = Volume.from_sitk(sitk.ReadImage(str(divided["test"][0])))
    for label in LOBE_LABELS:
        made_ml = np.count_nonzero(lobes.array == label) * lobes.geometry.voxel_ml
        real_ml = np.count_nonzero(source.array == label) * source.geometry.voxel_ml
        assert 0.5 < made_ml / real_ml < 1.6


def test_other_shapes_would_mix_the_splits_and_are_refused(tmp_path: Path) -> None:
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    _write_shapes(shapes, 3)
    options = PhantomOptions(coarseness=COARSE, lobe_shapes=shapes)
    write_phantoms(cases=1, seed=2, out=tmp_path / "out", options=options)
    moved = shapes.rename(tmp_path / "moved")
    options = PhantomOptions(coarseness=COARSE, lobe_shapes=moved)
    (moved / "._s0000.nii.gz").write_bytes(b"what macOS adds")
    write_phantoms(cases=1, seed=2, out=tmp_path / "out", options=options)
    _write_shapes(moved, 4)
    with pytest.raises(InputError, match=r"made otherwise \(lobe_shapes_sha256: then \w+, now \w+\)"):
        write_phantoms(cases=2, seed=2, out=tmp_path / "out", options=options)


def test_shapes_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    _write_shapes(tmp_path, 2)
    with pytest.raises(InputError, match="at least 3 lobe shapes"):
        shapes_by_split(tmp_path, seed=1)
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[1:3] = 7
    for k in range(3):
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / f"s{k:04d}.nii.gz"))
    with pytest.raises(InputError, match="expected the labels 0 to 5"):
        write_phantoms(cases=1, seed=1, out=tmp_path / "out", options=PhantomOptions(lobe_shapes=tmp_path))
    for k in range(3):
        (tmp_path / f"s{k:04d}.nii.gz").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"s000\d\.nii\.gz"):
        write_phantoms(cases=1, seed=1, out=tmp_path / "other", options=PhantomOptions(lobe_shapes=tmp_path))
    assert not (tmp_path / "out" / "cases.csv").exists()


def test_more_cases_only_add_training() -> None:
    options = PhantomOptions(validation=2, test=1)
    assert [split_of(case, options) for case in range(5)] == ["test", "validation", "validation", "train", "train"]


def test_diseases_share_the_anatomy_of_a_seed() -> None:
    usual, none, half = (
        make_phantom(np.random.default_rng(8), PhantomOptions(coarseness=COARSE, disease=disease))
        for disease in ("usual", "none", "half-lung")
    )
    assert np.array_equal(usual.lobes.array, none.lobes.array) and np.array_equal(usual.lobes.array, half.lobes.array)
    assert not none.lesions.array.any()
    sides = [np.isin(half.lobes.array, side) for side in (LEFT, RIGHT)]
    shares = sorted(float((half.lesions.array[side] > 0).mean()) for side in sides)
    assert shares[0] == 0 and shares[1] == pytest.approx(0.5, abs=0.05)
    diseased = half.lesions.array > 0
    assert set(np.unique(half.lesions.array[diseased])) == {2}
    assert np.median(half.ct.array[diseased]) > -150


def test_wide_scans_show_more_than_lungs() -> None:
    def margins(field: str) -> list[int]:
        options = PhantomOptions(coarseness=COARSE, field_of_view=field)
        found = []
        for seed in range(4):
            lobes = make_phantom(np.random.default_rng([6, seed]), options).lobes
            z = np.flatnonzero(lobes.array.any(axis=(1, 2)))
            found.append(round(float(z[0]) * lobes.geometry.spacing_zyx_mm[0]))
        return found

    narrow, wide = margins("lungs"), margins("wide")
    assert max(narrow) <= 45  # 30 mm, and a slice of up to 18 mm
    assert max(wide) > 60
