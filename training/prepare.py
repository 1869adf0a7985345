"""Stage prepare: every scan read, checked and resampled once; later stages read only these caches.

python -m training prepare --data DATA --run-dir RUN
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import Geometry
from algorithm.lobes import LOBES
from algorithm.model import LESION, VESSEL
from algorithm.preprocess import Box, bounding_box, covering_grid, crop, masked_intensity, resample
from training.cases import Case, Scan, all_problems, read_cases, read_scan
from training.chunks import LobeChunk, cut_lobe
from training.files import files_of, load_array, read_json, save_array, whole_folder, write_json
from training.parallel import over_scans
from training.settings import PrepareSettings
from training.stages import Run

GEOMETRIES = "geometries.json"
SOURCE = "source.json"
_PART_BYTES = 1 << 20


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
        return self._geometries[name]

    def chunk(self, key: str) -> LobeChunk:
        """The chunk of a lobe, by the lobe's key."""
        return LobeChunk(self.array(f"{key}_image"), self.array(f"{key}_mask"), self.geometry(key))

    def array(self, name: str) -> NDArray[Any]:
        """An array of the cache, read from disk.

        Scan arrays (z, y, x): scan_image float16; scan_lobes uint8; where a reference is known, scan_classes uint8 with
        0 background, 1 vessel, 2 lesion.

        Raises:
            InputError: its file is missing or damaged.
        """
        return load_array(self._path(name))

    def mapped(self, name: str) -> NDArray[Any]:
        """The same array, of which only what is used is read."""
        return load_array(self._path(name), mapped=True)

    def has(self, name: str) -> bool:
        """Whether the cache has an array."""
        return self._path(name).is_file()

    def is_whole(self, *, with_reference: bool) -> bool:
        """Whether every file that the stage writes is there."""
        if not (self.folder / GEOMETRIES).is_file():
            return False
        lobes = [name for name in self._geometries if name != "scan"]
        names = ["scan_image", "scan_lobes", *(f"{key}_{part}" for key in lobes for part in ("image", "mask"))]
        return all(map(self.has, names)) and (self.has("scan_classes") or not with_reference)

    @cached_property
    def _geometries(self) -> dict[str, Geometry]:
        content = read_json(self.folder / GEOMETRIES)
        return {name: Geometry(**{key: tuple(value) for key, value in grid.items()}) for name, grid in content.items()}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def prepared(run: Run, case: Case) -> PreparedCase:
    """The caches of a case after the stage has run."""
    return PreparedCase(case.name, run.folder("prepare") / case.name)


def prepare(run: Run, folder: Path) -> dict[str, Any]:
    """Make the caches of all cases, leaving those that are there already.

    Raises:
        InputError: cases cannot be used; all of them are named, and the caches of the others are kept.
    """
    cases = read_cases(run.data)
    make = partial(_prepare_case, folder=folder, settings=run.config.prepare)
    problems = [problem for problem in over_scans("prepare", make, cases, run.workers) if problem is not None]
    if problems:
        raise all_problems(str(run.data), problems)
    return {
        "cases": len(cases),
        "lobes": sum(len(case.scores) for case in cases),
        "images_sha256": {case.name: read_json(folder / case.name / SOURCE)["sha256"] for case in cases},
    }


def _prepare_case(case: Case, folder: Path, settings: PrepareSettings) -> str | None:
    """Cache one case; the problem is returned so that one bad case does not hide another."""
    target = folder / case.name
    source = {"sha256": sha256_of_images(case)}
    is_whole = PreparedCase(case.name, target).is_whole(with_reference=case.lesions is not None)
    if is_whole and is_made_of(source, target):
        return None
    shutil.rmtree(target, ignore_errors=True)
    try:
        scan = read_scan(case)
        chunks = _cut_lobes(case, scan, settings)
    except InputError as error:
        return f"{case.name}: {error}"
    with whole_folder(target) as unnamed:
        _write_caches(scan, chunks, unnamed, settings)
        write_json(unnamed / SOURCE, source)
    return None


def is_made_of(source: dict[str, str], folder: Path) -> bool:
    """Whether a cache is there and says that it was made of this."""
    return (folder / SOURCE).is_file() and read_json(folder / SOURCE) == source


def sha256_of_images(case: Case) -> str:
    """Digest of the bytes of a case's images; all files of a DICOM folder, and those with the voxels of an .mhd."""
    digest = hashlib.sha256()
    for path in (case.ct, case.lobes, case.lesions, case.vessels):
        for file in files_of(path) if path is not None else []:
            digest.update(_sha256_of_file(file))
    return digest.hexdigest()


def _sha256_of_file(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
    return digest.digest()


def _cut_lobes(case: Case, scan: Scan, settings: PrepareSettings) -> dict[str, LobeChunk]:
    """The chunk of every lobe in the scan, by the lobe's key.

    Raises:
        InputError: a scored lobe has no voxel at the chunks' spacing.
    """
    chunks = {}
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
        if lobe.label in case.scores and not chunk.mask.any():
            raise InputError(
                f"{lobe.name} has a score, but no voxel is left of it at {settings.chunk_spacing_mm:g} mm; correct "
                f"{case.lobes.name}, or leave the score empty"
            )
        chunks[lobe.key] = chunk
    return chunks


def _write_caches(scan: Scan, chunks: dict[str, LobeChunk], folder: Path, settings: PrepareSettings) -> None:
    geometries: dict[str, Geometry] = {}
    for key, chunk in chunks.items():
        save_array(folder / f"{key}_image.npy", chunk.image)
        save_array(folder / f"{key}_mask.npy", chunk.mask)
        geometries[key] = chunk.geometry
    box = bounding_box(scan.lobes.array)
    ct, lobes = crop(scan.ct, box), crop(scan.lobes, box)
    grid = covering_grid(ct.geometry, spacing_mm=settings.scan_spacing_mm)
    save_array(folder / "scan_image.npy", masked_intensity(ct, lobes.array > 0, grid).array.astype(np.float16))
    save_array(folder / "scan_lobes.npy", resample(lobes, grid, "nearest").array)
    if scan.lesions is not None:
        save_array(folder / "scan_classes.npy", _reference_classes(scan, box, grid))
    geometries["scan"] = grid
    write_json(folder / GEOMETRIES, {name: asdict(geometry) for name, geometry in geometries.items()})


def _reference_classes(scan: Scan, box: Box, grid: Geometry) -> NDArray[np.uint8]:
    """Network classes of the reference in the lobes, on another grid; a voxel of both is lesion."""
    classes = np.zeros(scan.ct.array.shape, dtype=np.uint8)
    if scan.vessels is not None:
        classes[scan.vessels.array > 0] = VESSEL
    if scan.lesions is not None:
        classes[scan.lesions.array > 0] = LESION
    classes[scan.lobes.array == 0] = 0
    return resample(crop(scan.ct.with_array(classes), box), grid, "nearest").array
