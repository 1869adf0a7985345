"""Stage prepare: every scan read, checked and resampled once; later stages read only these caches.

python -m training prepare --data DATA --run RUN
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from algorithm.errors import InputError
from algorithm.images import Geometry
from algorithm.lobes import LOBES
from algorithm.model import CLASSES
from algorithm.preprocess import Box, bounding_box, covering_grid, crop, masked_intensity, resample
from training.cases import Case, Scan, read_cases, read_scan
from training.chunks import LobeChunk, cut_lobe
from training.config import PrepareSettings
from training.stages import Run, console

GEOMETRIES = "geometries.json"
VESSEL, LESION = CLASSES.index("vessel"), CLASSES.index("lesion")


@dataclass(frozen=True)
class PreparedCase:
    """The caches of one case.

    Attributes:
        name: the case.
        folder: where they lie.
    """

    name: str
    folder: Path

    def geometry(self, name: str) -> Geometry:
        """Grid of ``scan``, or of the chunk of a lobe by its key."""
        content = json.loads((self.folder / GEOMETRIES).read_text(encoding="utf-8"))[name]
        return Geometry(**{key: tuple(value) for key, value in content.items()})

    def chunk(self, key: str) -> LobeChunk:
        """The chunk of a lobe, by the lobe's key."""
        return LobeChunk(self.array(f"{key}_image"), self.array(f"{key}_mask"), self.geometry(key))

    def array(self, name: str) -> NDArray[Any]:
        """An array of the cache, read from disk.

        Scan arrays (z, y, x): scan_image float16; scan_lobes uint8; where a reference is known, scan_classes uint8 with
        0 background, 1 vessel, 2 lesion.
        """
        array: NDArray[Any] = np.load(self._path(name))
        return array

    def mapped(self, name: str) -> NDArray[Any]:
        """The same array, of which only what is used is read."""
        array: NDArray[Any] = np.load(self._path(name), mmap_mode="r")
        return array

    def has(self, name: str) -> bool:
        """Whether the cache has an array."""
        return self._path(name).is_file()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def prepared(run: Run, case: Case) -> PreparedCase:
    """The caches of a case after the stage has run."""
    return PreparedCase(case.name, run.folder("prepare") / case.name)


def prepare(run: Run, folder: Path) -> dict[str, Any]:
    """Make the caches of all cases, leaving those that are there already."""
    cases = read_cases(run.data)
    settings = run.config.prepare
    todo = [case for case in cases if not (folder / case.name).is_dir()]
    jobs = (joblib.delayed(_prepare_case)(case, folder, settings) for case in todo)
    results = joblib.Parallel(n_jobs=settings.workers, return_as="generator_unordered")(jobs)
    problems = [p for p in track(results, "prepare", total=len(todo), console=console) if p is not None]
    if problems:
        raise InputError(f"{len(problems)} of {len(cases)} cases cannot be used: " + "; ".join(sorted(problems)))
    return {"cases": len(cases), "lobes": sum(len(case.scores) for case in cases)}


def _prepare_case(case: Case, folder: Path, settings: PrepareSettings) -> str | None:
    """Cache one case; the problem is returned so that one bad case does not hide another."""
    temporary = folder / f"{case.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_caches(case, temporary, settings)
    except InputError as error:
        shutil.rmtree(temporary)
        return f"{case.name}: {error}"
    temporary.rename(folder / case.name)
    return None


def _write_caches(case: Case, folder: Path, settings: PrepareSettings) -> None:
    scan = read_scan(case)
    geometries: dict[str, Geometry] = {}
    for lobe in LOBES:
        if not (scan.lobes.array == lobe.label).any():
            continue
        chunk = cut_lobe(
            scan.ct,
            scan.lobes,
            lobe.label,
            spacing_mm=settings.chunk_spacing_mm,
            margin_mm=settings.chunk_margin_mm,
        )
        np.save(folder / f"{lobe.key}_image.npy", chunk.image)
        np.save(folder / f"{lobe.key}_mask.npy", chunk.mask)
        geometries[lobe.key] = chunk.geometry

    box = bounding_box(scan.lobes.array)
    ct, lobes = crop(scan.ct, box), crop(scan.lobes, box)
    grid = covering_grid(ct.geometry, spacing_mm=settings.scan_spacing_mm)
    np.save(folder / "scan_image.npy", masked_intensity(ct, lobes.array > 0, grid).array.astype(np.float16))
    np.save(folder / "scan_lobes.npy", resample(lobes, grid, "nearest").array)
    if scan.lesions is not None:
        np.save(folder / "scan_classes.npy", _reference_classes(scan, box, grid))
    geometries["scan"] = grid
    (folder / GEOMETRIES).write_text(json.dumps({name: asdict(g) for name, g in geometries.items()}), encoding="utf-8")


def _reference_classes(scan: Scan, box: Box, grid: Geometry) -> NDArray[np.uint8]:
    """Network classes of the reference on another grid; a voxel of both is lesion."""
    classes = np.zeros(scan.ct.array.shape, dtype=np.uint8)
    if scan.vessels is not None:
        classes[scan.vessels.array > 0] = VESSEL
    if scan.lesions is not None:
        classes[scan.lesions.array > 0] = LESION
    return resample(crop(scan.ct.with_array(classes), box), grid, "nearest").array
