import itertools
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from algorithm import segmenter as segmenter_module
from algorithm import tiling
from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.inference_network import InferenceNetwork
from algorithm.lobes import LOBES
from algorithm.segmenter import LesionSegmenter

CPU = torch.device("cpu")

ORIENTATIONS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


def threshold(network, image: Volume, inside, *, memory_bytes, progress, warn) -> Volume:
    """Stands in for the network: lesion is what is brighter than -600 HU."""
    progress(1.0)
    return image.with_array(np.tanh((image.array - 0.4) * 25))


@pytest.fixture
def segmenter(tiny_model, monkeypatch) -> LesionSegmenter:
    monkeypatch.setattr(segmenter_module, "lesion_margin", threshold)
    return LesionSegmenter(tiny_model, device=CPU, memory_gb=1.0)


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, Volume]:
    """Asymmetric lungs on an oblique grid: five lobes, lesions in the left lower and the right middle one."""
    shape = (20, 28, 36)
    angle = np.deg2rad(7)
    turn = (np.cos(angle), -np.sin(angle), 0.0, np.sin(angle), np.cos(angle), 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry(shape, (2.0, 1.25, 1.0), (-151.3, 27.125, -310.6), tuple(float(v) for v in turn))
    z, y, x = np.indices(shape)
    lobes = np.zeros(shape, dtype=np.uint8)
    left, right = (x >= 21) & (x < 33), (x >= 3) & (x < 17)
    inside = (z >= 2) & (z < 18) & (y >= 3) & (y < 25)
    lobes[inside & left & (z >= 9)] = 1
    lobes[inside & left & (z < 9)] = 2
    lobes[inside & right & (z >= 12)] = 3
    lobes[inside & right & (z < 8)] = 4
    lobes[inside & right & (z >= 8) & (z < 12)] = 5
    hu = np.where(inside & (left | right), -850, 40).astype(np.int16)
    hu[3:8, 15:23, 23:30] = -500  # left lower, ground-glass
    hu[8:12, 5:15, 5:10] = 0  # right middle, consolidation
    return Volume(hu, geometry), Volume(lobes, geometry)


def reoriented(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    image = sitk.Flip(sitk.PermuteAxes(volume.to_sitk(), order), flips, flipAboutOrigin=False)
    return Volume.from_sitk(image)


def test_lesion_begins_where_the_model_says(tiny_model, scan, monkeypatch):
    """The stand-in's margin is tanh(25 (f - 0.4)); at the border 0.9 it takes another 90 HU."""
    monkeypatch.setattr(segmenter_module, "lesion_margin", threshold)
    counts = []
    for border in (-0.9, 0.0, 0.9):
        description = tiny_model.description.model_copy(update={"lesion_margin": border})
        model = replace(tiny_model, description=description)
        result = LesionSegmenter(model, device=CPU, memory_gb=1.0).segment(*scan)
        counts.append(int((result.labels.array > 0).sum()))
    assert counts[0] > counts[1] > counts[2] > 0


def test_lesions_lobes_and_subtypes_are_right(segmenter, scan):
    ct, lobes = scan
    result = segmenter.segment(ct, lobes)
    percent = {lobe.key: entry.percent for lobe, entry in zip(LOBES, result.report.lobes, strict=True)}
    truth = {
        lobe.key: 100 * ((ct.array > -600) & (lobes.array == lobe.label)).sum() / (lobes.array == lobe.label).sum()
        for lobe in LOBES
    }
    assert percent == pytest.approx(truth, abs=6)  # edges are drawn at 1.5 mm
    assert percent["lul"] == percent["rul"] == percent["rll"] == 0
    assert set(np.unique(result.labels.array[lobes.array == 2])) == {0, 1}
    assert set(np.unique(result.labels.array[lobes.array == 5])) == {0, 2}
    assert (result.labels.array[lobes.array == 0] == 0).all()
    assert result.report.total_score == sum(entry.score for entry in result.report.lobes)
    assert [c.subtype for c in result.report.components] == ["consolidation", "ground-glass"]  # largest first
    centre = ct.to_sitk().TransformContinuousIndexToPhysicalPoint((26.0, 18.5, 5.0))
    assert result.report.components[1].centre_xyz_mm == pytest.approx(centre, abs=1.0)


@pytest.mark.parametrize("order, flips", ORIENTATIONS)
def test_result_follows_the_scan_through_every_orientation(segmenter, scan, order, flips):
    ct, lobes = scan
    expected = segmenter.segment(ct, lobes)
    turned_ct, turned_lobes = (reoriented(volume, order, flips) for volume in scan)
    result = segmenter.segment(turned_ct, turned_lobes)
    assert result.labels.geometry == turned_ct.geometry
    assert (result.labels.array == reoriented(expected.labels, order, flips).array).all()
    assert [e.percent for e in result.report.lobes] == [e.percent for e in expected.report.lobes]


def test_left_and_right_are_told_apart(segmenter, scan):
    """Mirrored patient: the lesion of the left lower lobe is now the right lower lobe's."""
    ct, lobes = scan
    mirror = np.array([0, 3, 4, 1, 2, 5], dtype=np.uint8)
    mirrored = segmenter.segment(
        ct.with_array(ct.array[:, :, ::-1].copy()), lobes.with_array(mirror[lobes.array[:, :, ::-1]])
    )
    plain = segmenter.segment(ct, lobes)
    left, right = plain.report.lobes[1], mirrored.report.lobes[3]
    assert left.percent > 0 and plain.report.lobes[3].percent == 0
    assert right.percent == pytest.approx(left.percent, abs=2) and mirrored.report.lobes[1].percent == 0


def test_twice_the_same_scan_is_twice_the_same_result(segmenter, scan):
    first, second = segmenter.segment(*scan), segmenter.segment(*scan)
    assert (first.labels.array == second.labels.array).all()
    assert first.report.model_dump(exclude={"timings"}) == second.report.model_dump(exclude={"timings"})


def test_tiles_do_not_change_the_answer_of_a_real_network(tiny_model, scan, monkeypatch):
    segmenter = LesionSegmenter(tiny_model, device=CPU, memory_gb=1.0)
    whole = segmenter.segment(*scan).labels.array
    monkeypatch.setattr(tiling, "plan_tiles", lambda shape, **_: tiling.TilePlan(shape, (16, 16, 16)))
    assert (segmenter.segment(*scan).labels.array == whole).mean() > 0.9999


def test_memory_that_runs_out_is_told(tiny_model, scan, monkeypatch):
    """The first tile does not fit; the answer is that of one that does, and the report says so."""
    encode, failures = InferenceNetwork.encode, [RuntimeError("DefaultCPUAllocator: can't allocate memory")]

    def fails_once(self, image):
        if failures:
            raise failures.pop()
        return encode(self, image)

    segmenter = LesionSegmenter(tiny_model, device=CPU, memory_gb=1.0)
    expected = segmenter.segment(*scan)
    monkeypatch.setattr(InferenceNetwork, "encode", fails_once)
    monkeypatch.setattr(tiling, "SHRINK", 1.0)  # so small a scan has no smaller tiles
    result = segmenter.segment(*scan)
    added = [warning for warning in result.report.warnings if warning not in expected.report.warnings]
    assert [warning.partition(" in ")[0] for warning in added] == ["memory ran out"]
    assert (result.labels.array == expected.labels.array).mean() > 0.9999


def test_warm_up_takes_nothing_but_time(tiny_model):
    LesionSegmenter(tiny_model, device=CPU, memory_gb=1.0).warm_up()


def test_an_absent_lobe_has_no_score_and_neither_has_the_total(segmenter, scan):
    ct, lobes = scan
    report = segmenter.segment(ct, lobes.with_array(np.where(lobes.array == 5, 0, lobes.array))).report
    assert report.lobes[4].percent is None and report.lobes[4].score is None and report.total_score is None
    assert "right middle lobe absent from the lobe mask: no total score" in report.warnings
    assert all(entry.score is not None for entry in report.lobes[:4])


def test_what_is_odd_about_given_lobes_is_in_the_report(segmenter, scan):
    ct, lobes = scan
    doubt = "lies to the right of the right upper lobe"
    assert not any(doubt in warning for warning in segmenter.segment(ct, lobes).report.warnings)
    mirrored = segmenter.segment(ct, lobes.with_array(np.ascontiguousarray(lobes.array[:, :, ::-1]))).report.warnings
    assert any(doubt in warning for warning in mirrored)


def test_healthy_lungs_give_an_empty_mask(segmenter, scan):
    ct, lobes = scan
    result = segmenter.segment(ct.with_array(np.full_like(ct.array, -850)), lobes)
    assert not result.labels.array.any()
    assert result.report.total_score == 0 and result.report.components == []


def test_lobes_on_another_grid_are_refused(segmenter, scan):
    ct, lobes = scan
    moved = Volume(lobes.array, Geometry(**{**lobes.geometry.__dict__, "origin_xyz_mm": (0.0, 0.0, 0.0)}))
    with pytest.raises(InputError, match="grid|origin"):
        segmenter.segment(ct, moved)


def test_progress_is_told_step_by_step(segmenter, scan):
    told: list[tuple[str, float]] = []
    segmenter.segment(*scan, progress=lambda step, fraction: told.append((step, fraction)))
    assert [step for step, _ in itertools.groupby(told, key=lambda entry: entry[0])] == [
        "lobes and preprocess",
        "network",
        "postprocess",
    ]
    assert ("network", 1.0) in told


def test_devices(model_directory):
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        LesionSegmenter.from_directory(model_directory, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto"):
            LesionSegmenter.from_directory(model_directory, device="cuda")
        assert LesionSegmenter.from_directory(model_directory).device.type == "cpu"
