"""A tiny reference of two scans, and ways to write masks and submissions around it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.workers import start_pool

SPACING_XYZ_MM = (0.7, 0.8, 1.5)
ORIGIN_XYZ_MM = (-12.5, 7.25, -300.0)
HEADER = "case,lesions,lobes,lul,lll,rul,rll,rml"

WriteMask = Callable[..., Path]
WriteSubmission = Callable[..., Path]


def lobe_mask() -> np.ndarray:
    """Lobe k fills slice k - 1: 20 voxels each, and one slice outside the lungs."""
    lobes = np.zeros((6, 4, 5), dtype=np.uint8)
    lobes[:5] = np.arange(1, 6).reshape(5, 1, 1)
    return lobes


def lesion_mask(counts: dict[tuple[int, int], int]) -> np.ndarray:
    """The first `count` voxels of lobe k that are still free get the subtype: {(k, subtype): count}."""
    lesions = np.zeros((6, 4, 5), dtype=np.uint8)
    for (lobe, subtype), count in counts.items():
        free = np.flatnonzero(lesions[lobe - 1] == 0)[:count]
        lesions[lobe - 1].flat[free] = subtype
    return lesions


@pytest.fixture(autouse=True)
def _streams_as_before() -> Iterator[None]:
    """A command that was run in this process has set up logging and warnings for its own stdout, which is closed."""
    yield
    logging.captureWarnings(capture=False)
    for handler in [handler for handler in logging.root.handlers if type(handler) is logging.StreamHandler]:
        logging.root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than judging these scans; the tests of them ask for `in_processes`."""
    monkeypatch.setattr("evaluation.workers.start_pool", lambda workers: ThreadPoolExecutor(1))


@pytest.fixture
def in_processes(_in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge in two processes, however many processors and however much memory there are."""
    monkeypatch.setattr("evaluation.workers.start_pool", start_pool)
    monkeypatch.setattr("evaluation.workers.worker_count", lambda tasks: 2)


@pytest.fixture
def write_mask() -> WriteMask:
    """Write an array (z, y, x) as .mha on the reference's grid, or shifted from it."""

    def write(path: Path, array: np.ndarray, *, shift_mm: float = 0.0, spacing: tuple = SPACING_XYZ_MM) -> Path:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing[: image.GetDimension()])
        image.SetOrigin([value + shift_mm for value in ORIGIN_XYZ_MM[: image.GetDimension()]])
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
        return path

    return write


@pytest.fixture
def reference(tmp_path: Path, write_mask: WriteMask) -> Path:
    """Scan a: 4 ground-glass voxels in lobe 1, 2 consolidation in lobe 2. Scan b: no lesion."""
    directory = tmp_path / "ground_truth"
    write_mask(directory / "secret-a.mha", lesion_mask({(1, 1): 4, (2, 2): 2}))
    write_mask(directory / "secret-b.mha", lesion_mask({}))
    write_mask(directory / "lobes.mha", lobe_mask())
    rows = ["a.mha,secret-a.mha,lobes.mha,2,2,0,0,", "b,secret-b.mha,lobes.mha,0,0,0,0,1"]
    (directory / "reference.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return directory


@pytest.fixture
def predictions() -> dict[str, np.ndarray]:
    """Scan a: 2 of 4 ground-glass voxels, and 2 others as mixed. Scan b: one false voxel in lobe 5."""
    return {"a": lesion_mask({(1, 1): 2, (3, 3): 2}), "b": lesion_mask({(5, 2): 1})}


@pytest.fixture
def write_submission(tmp_path: Path, write_mask: WriteMask) -> WriteSubmission:
    """Write an input folder as the platform lays it out: job pk `job-<i>` for the i-th prediction."""

    def write(predictions: list[tuple[str, np.ndarray]], *, key: str = "socket", status: str = "Succeeded") -> Path:
        directory = tmp_path / "input"
        jobs = []
        for number, (image_name, array) in enumerate(predictions):
            pk = f"job-{number}"
            lobes = {key: {"slug": "pulmonary-lobes"}, "image": {"pk": "2", "name": "lobes.mha"}, "value": None}
            scan = {key: {"slug": "ct-image"}, "image": {"pk": "1", "name": image_name}, "value": None}
            jobs.append({"pk": pk, "status": status, "inputs": [lobes, scan], "outputs": []})
            folder = directory / pk / "output" / "images" / "covid-19-lesion-segmentation"
            write_mask(folder / f"uuid-{number}.mha", array)
        (directory / "predictions.json").write_text(json.dumps(jobs))
        return directory

    return write


@pytest.fixture
def methods(tmp_path: Path, reference: Path, predictions: dict[str, np.ndarray], write_mask: WriteMask):
    """`good` repeats the reference, `poor` is the predictions above; each in one of the two layouts."""
    good, poor = tmp_path / "good", tmp_path / "poor"
    for case in ("a", "b"):
        (good / case).mkdir(parents=True)
        (good / case / "lesions.mha").write_bytes((reference / f"secret-{case}.mha").read_bytes())
        write_mask(poor / f"{case}.mha", predictions[case])
    return {"good": good, "poor": poor}


@pytest.fixture
def with_cts(reference: Path, write_mask: WriteMask) -> Path:
    """The reference with a CT for each scan."""
    rng = np.random.default_rng(1)
    for case in ("a", "b"):
        write_mask(reference / f"ct-{case}.mha", rng.integers(-1000, 200, (6, 4, 5), np.int16))
    lines = (reference / "reference.csv").read_text().splitlines()
    cts = ["ct", "ct-a.mha", "ct-b.mha"]
    (reference / "reference.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(lines, cts, strict=True)))
    return reference
