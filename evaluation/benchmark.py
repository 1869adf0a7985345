"""How long it takes to judge one large scan, as a ratio to reading its files, and how much memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from evaluation.masks import read_mask
from evaluation.metrics import LOBES, SUBTYPES
from evaluation.reference import ReferenceCase
from evaluation.scoring import score_scan

SIZE_ZYX = (400, 512, 512)
SPACING_ZYX_MM = (0.8, 0.7, 0.7)

_LESIONS = 60
_RADIUS_MM = (6.0, 28.0)
_SHIFT_VOXELS = (1, 3, -2)


def benchmark(*, size_zyx: tuple[int, int, int] = SIZE_ZYX, seed: int = 0) -> dict[str, float]:
    """Make a scan's masks, write them, and judge them once, in this process and one thread.

    Args:
        size_zyx: voxels along z, y, x.
        seed: of the made lesions.

    Returns:
        `read_seconds` for the three files, `score_seconds` for all measures, `ratio` of the second to the first,
        `lesions_ml`, and `peak_gib`, the most memory that this process has used.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = ("lesions", "lobes", "prediction")
        files = {name: Path(folder) / f"{name}.mha" for name in names}
        _write_case(files, size_zyx=size_zyx, seed=seed)
        start = time.perf_counter()
        lesions = read_mask(files["lesions"], highest_label=max(SUBTYPES))
        lobes = read_mask(files["lobes"], highest_label=max(LOBES), grid=lesions.grid)
        prediction = read_mask(files["prediction"], highest_label=max(SUBTYPES), grid=lesions.grid)
        read_seconds = time.perf_counter() - start
        case = ReferenceCase("benchmark", files["lesions"], files["lobes"], dict.fromkeys(LOBES.values(), 1))
        score = score_scan(case, lesions=lesions, lobes=lobes, prediction=prediction)
        score_seconds = time.perf_counter() - start - read_seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "read_seconds": read_seconds,
        "score_seconds": score_seconds,
        "ratio": score_seconds / read_seconds,
        "lesions_ml": score.lesions.reference * float(np.prod(SPACING_ZYX_MM)) / 1000,
        "peak_gib": peak / 1024**3,
    }


def _write_case(files: dict[str, Path], *, size_zyx: tuple[int, int, int], seed: int) -> None:
    """Lobes that fill the middle of the scan, balls of every subtype in them, and a prediction that is a bit off."""
    lobes = _lobes(size_zyx)
    lesions = _lesions(lobes, np.random.default_rng(seed))
    _write(files["lobes"], lobes)
    _write(files["lesions"], lesions)
    _write(files["prediction"], np.roll(lesions, _SHIFT_VOXELS, axis=(0, 1, 2)))


def _lobes(size_zyx: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Two lungs side by side; each cut into its lobes from bottom to top."""
    depth, height, width = size_zyx
    lobes = np.zeros(size_zyx, dtype=np.uint8)
    lungs = lobes[depth // 20 : -depth // 20, height // 6 : -height // 6]
    for labels, columns in (((4, 5, 3), slice(width // 10, width // 2)), ((2, 1), slice(width // 2, -width // 10))):
        for part, label in zip(np.array_split(lungs, len(labels)), labels, strict=True):
            part[:, :, columns] = label
    return lobes


def _lesions(lobes: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    lesions = np.zeros(lobes.shape, dtype=np.uint8)
    places_mm = [np.arange(size) * step for size, step in zip(lobes.shape, SPACING_ZYX_MM, strict=True)]
    for _ in range(_LESIONS):
        centre_mm = [rng.uniform(places[0], places[-1]) for places in places_mm]
        radius_mm = rng.uniform(*_RADIUS_MM)
        box, squares = [], []
        for places, centre in zip(places_mm, centre_mm, strict=True):
            near = np.flatnonzero(np.abs(places - centre) <= radius_mm)
            box.append(slice(int(near[0]), int(near[-1]) + 1))
            squares.append((places[near] - centre) ** 2)
        z, y, x = np.ix_(*squares)
        lesions[tuple(box)][z + y + x <= radius_mm**2] = rng.integers(1, 4)
    lesions[lobes == 0] = 0
    return lesions


def _write(path: Path, labels: NDArray[np.uint8]) -> None:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING_ZYX_MM[::-1])
    sitk.WriteImage(image, str(path), useCompression=True)
