"""A data directory full of phantoms."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import joblib
import numpy as np
from rich.progress import track

from algorithm.errors import InputError
from algorithm.lobes import LOBES
from training.cases import COLUMNS, TABLE
from training.files import (
    changes,
    read_json,
    remove_stale,
    sha256_of_files,
    whole_folder,
    write_image,
    write_json,
    write_text,
)
from training.phantom.chest import Phantom, PhantomOptions, make_phantom
from training.phantom.reader import reader_scores
from training.phantom.shapes import read_lobe_shape

__all__ = [
    "COLUMNS",
    "SCORE_COLUMNS",
    "Phantom",
    "PhantomOptions",
    "make_phantom",
    "shapes_by_split",
    "split_of",
    "write_phantoms",
]

OPTIONS = "phantom.json"
SCORE_COLUMNS = {lobe.label: lobe.key for lobe in LOBES}
_SCORES = "scores.json"
_VOLUMES = ("ct", "lobes", "lesions", "vessels")
_SHAPE_SHARES = {"test": 0.2, "validation": 0.1}


def split_of(case: int, options: PhantomOptions) -> str:
    """Test cases come first, then validation, then training: more cases only add training."""
    if case < options.test:
        return "test"
    return "validation" if case < options.test + options.validation else "train"


def shapes_by_split(directory: Path, seed: int) -> dict[str, list[Path]]:
    """Divide the shapes in a directory among the splits, by the seed and their names.

    Raises:
        InputError: if there are fewer than three, one for each split.
    """
    paths = sorted(path for path in directory.glob("*.nii.gz") if not path.name.startswith("."))  # macOS adds ._NAME
    if len(paths) < 3:
        raise InputError(f"{directory}: expected at least 3 lobe shapes (*.nii.gz), got {len(paths)}")
    order = [paths[k] for k in np.random.default_rng([seed, 0x5A]).permutation(len(paths))]
    divided, start = {}, 0
    for split, share in _SHAPE_SHARES.items():
        count = max(1, round(share * len(paths)))
        divided[split] = order[start : start + count]
        start += count
    divided["train"] = order[start:]
    return divided


def write_phantoms(*, cases: int, seed: int, out: Path, options: PhantomOptions) -> None:
    """Write a data directory of phantoms; cases that are complete already are kept.

    Case i depends on the seed, on i, on the shapes and on the options other than `workers`, on nothing else.

    Args:
        cases: number of cases of all splits together.
        seed: of the whole data set.
        out: directory: cases.csv, phantom.json and images/<case>/{ct,lobes,lesions,vessels}.mha.
        options: see there.

    Raises:
        InputError: if the counts do not fit, shapes are missing, `out` holds phantoms of other options or shapes, or
            the disk is full.
    """
    held_out = options.validation + options.test + options.healthy
    if cases < max(held_out, 1):
        raise InputError(
            f"got {cases} cases, expected at least {max(held_out, 1)} ({options.validation} validation, {options.test} "
            f"test, {options.healthy} healthy): ask for more cases or hold out fewer"
        )
    shapes = shapes_by_split(options.lobe_shapes, seed) if options.lobe_shapes is not None else None
    _claim(out, seed, options, shapes)
    remove_stale(out / "images")
    jobs = (
        joblib.delayed(_write_case)(
            case, seed, out, options, None if shapes is None else shapes[split_of(case, options)]
        )
        for case in range(cases)
    )
    results: Iterator[dict[str, str | int]] = joblib.Parallel(n_jobs=options.workers, return_as="generator")(jobs)
    rows = list(track(results, description="phantoms", total=cases))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE, text.getvalue())


def _claim(out: Path, seed: int, options: PhantomOptions, shapes: dict[str, list[Path]] | None) -> None:
    """Refuse a directory that holds phantoms of another seed, other options or shapes, which would mix the splits."""
    mine = {"seed": seed, **options.model_dump(mode="json", exclude={"workers", "lobe_shapes"})}
    if shapes is not None:
        mine["lobe_shapes_sha256"] = sha256_of_files(sorted(chain(*shapes.values())))
    note = out / OPTIONS
    out.mkdir(parents=True, exist_ok=True)
    if note.exists():
        if changed := changes(read_json(note), mine):
            raise InputError(f"{out} holds phantoms made otherwise ({'; '.join(changed)}): choose an empty directory")
    write_json(note, mine)


def _write_case(
    case: int, seed: int, out: Path, options: PhantomOptions, shapes: list[Path] | None
) -> dict[str, str | int]:
    name = f"p{case:04d}"
    folder = out / "images" / name
    if not (folder / _SCORES).exists():
        shutil.rmtree(folder, ignore_errors=True)
        rng = np.random.default_rng([seed, case])
        shape = None if shapes is None else read_lobe_shape(shapes[int(rng.integers(len(shapes)))])
        first_healthy = options.test + options.validation
        is_healthy = first_healthy <= case < first_healthy + options.healthy
        phantom = make_phantom(rng, options, shape, healthy=is_healthy)
        noise = 0.0 if split_of(case, options) == "test" else options.score_noise
        scores = reader_scores(phantom.percentages(), np.random.default_rng([seed, case, 1]), noise=noise)
        with whole_folder(folder) as unnamed:
            for kind in _VOLUMES:
                write_image(unnamed / f"{kind}.mha", getattr(phantom, kind))
            write_json(unnamed / _SCORES, {SCORE_COLUMNS[label]: score for label, score in scores.items()})
    row: dict[str, str | int] = {"case": name, "split": split_of(case, options)}
    row |= {kind: f"images/{name}/{kind}.mha" for kind in _VOLUMES}
    row |= read_json(folder / _SCORES)
    return row
