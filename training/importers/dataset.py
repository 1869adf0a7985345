"""What all importers share: lazily read cases go in, a data directory with cases.csv comes out.

An importer is a module with ``SOURCE`` and ``read(root, ...) -> list[PendingCase]``. Then
``write_dataset(SOURCE, assign_splits(cases, ...), out, ...)`` reads, checks and writes case by case, in parallel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algorithm.errors import InputError
from algorithm.images import Volume, require_same_grid
from algorithm.lobes import LOBES, check_lobes
from algorithm.subtypes import SUBTYPES
from training.cases import COLUMNS, TABLE, UNKNOWN_SUBTYPE
from training.files import files_of, read_json, remove_stale, write_image, write_json, write_text
from training.importers.lobes import LobeFiles, derive_scores, require_plausible_lobes
from training.importers.source import LeftOut, PendingCase, Source, remark, require_labels
from training.parallel import Workers, over_scans

LICENCE = "LICENCE.txt"

HOW_TO_MAKE_LOBES = (
    "no lobe masks were given. The CTs are now in {images}: from each CASE_ct.mha make a mask LOBES/CASE.nii.gz, with "
    "`lungmask CASE_ct.mha LOBES/CASE.nii.gz --modelname LTRCLobes_R231`, or (from a copy of the CT in NIfTI format) "
    "`TotalSegmentator -i CASE.nii.gz -o LOBES/CASE.nii.gz --ml --roi_subset lung_upper_lobe_left "
    "lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right`; then import again with "
    "--lobes LOBES and --lobe-labels lungmask or totalsegmentator"
)


def write_dataset(
    source: Source,
    cases: Sequence[PendingCase],
    out: Path,
    *,
    lobes: LobeFiles | None = None,
    skip_unusable: bool = False,
    workers: Workers | None = None,
) -> None:
    """Write OUT/images/CASE_{ct,lobes,lesions}.mha, LICENCE.txt and, last and whole, cases.csv; print a summary.

    Cases that are complete are not read again, unless their files have changed. Scores are the source's; where it
    states none, they are derived from lesions and lobes (`training.importers.lobes.derive_scores`). No other score is
    made up.

    Args:
        source: of the data.
        cases: with their splits.
        out: a new directory, or one that an earlier import of the same source began.
        lobes: masks of the cases that bring none; without them only the CTs are written, to make lobes from.
        skip_unusable: leave unusable cases out of cases.csv; by default they are an error and there is no cases.csv.
        workers: who does the work.

    Raises:
        InputError: cases are unusable (all of them are named), lobe masks are missing, or `out` holds other data.
    """
    _require_sound(cases, lobes)
    _claim(out, source)
    without = [case for case in cases if not case.brings_lobes]
    if without and lobes is None:
        jobs = [_Job(case, None, out / "images") for case in without]
        _require_usable(over_scans(f"CTs of {source.name}", _write_ct_only, jobs, workers), skip_unusable)
        raise InputError(HOW_TO_MAKE_LOBES.format(images=out / "images"))
    jobs = [_Job(case, None if case.brings_lobes else lobes, out / "images") for case in cases]
    outcomes = over_scans(f"import {source.name}", _import_case, jobs, workers)
    _require_usable(outcomes, skip_unusable)
    rows = [_row(case, done.record) for case, done in zip(cases, outcomes, strict=True) if done.record is not None]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    write_text(out / TABLE, table.to_csv(index=False, lineterminator="\n"))
    _summarise(source, table, outcomes, out)


@dataclass(frozen=True)
class _Job:
    """What a worker is given."""

    case: PendingCase
    lobes: LobeFiles | None
    images: Path

    @property
    def name(self) -> str:
        return self.case.name

    def path(self, what: str) -> Path:
        return self.images / f"{self.case.name}_{what}.mha"

    @property
    def record(self) -> Path:
        """Written after the images of a case: they are all there."""
        return self.images / f"{self.case.name}.json"

    def made_of(self) -> list[str]:
        """Tells other images and lobe masks from those of an earlier import, by their sizes and dates."""
        files = [file for path in self.case.sources for file in files_of(path)]
        if self.lobes is not None:
            files.append(self.lobes.find(self.case.name))
        return [self.lobes.labels if self.lobes else "", *(f"{file} {_stamp(file)}" for file in files)]


def _stamp(file: Path) -> str:
    state = file.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


@dataclass(frozen=True)
class _Outcome:
    """What became of a case: a record of what was written, or a reason why nothing was."""

    name: str
    record: dict[str, Any] | None = None
    problem: str = ""
    left_out: str = ""


def _import_case(job: _Job) -> _Outcome:
    return _written(job, lambda: _finished(job) or _read_case(job))


def _write_ct_only(job: _Job) -> _Outcome:
    return _written(job, lambda: ({} if job.path("ct").is_file() else {"ct": job.case.load().ct}, {}))


def _written(job: _Job, read: Callable[[], tuple[dict[str, Volume], dict[str, Any]]]) -> _Outcome:
    """Write a case unless that is done; problems in reading it are returned, so that no case hides another."""
    try:
        images, record = read()
    except LeftOut as reason:
        return _Outcome(job.name, left_out=str(reason))
    except InputError as error:
        return _Outcome(job.name, problem=f"{job.name}: {error}")
    if not images:
        return _Outcome(job.name, record=record)
    job.record.unlink(missing_ok=True)
    for what, volume in images.items():
        write_image(job.path(what), volume)
    if record:
        write_json(job.record, record)
    return _Outcome(job.name, record=record)


def _finished(job: _Job) -> tuple[dict[str, Volume], dict[str, Any]] | None:
    """No images to write, and the record of a complete case."""
    if not job.record.is_file():
        return None
    try:
        record = read_json(job.record)
    except InputError:  # damaged: the case is imported again
        return None
    complete = all(job.path(what).is_file() for what in record["images"])
    return ({}, record) if complete and record.get("made_of") == job.made_of() else None


def _read_case(job: _Job) -> tuple[dict[str, Volume], dict[str, Any]]:
    """The images of a case by what they show, and the record of it."""
    imported = job.case.load()
    lobes = imported.lobes if job.lobes is None else job.lobes.read(job.case.name)
    if lobes is None:
        raise ValueError(f"{job.case.name} has no lobes, expected some of a case that brings them")
    lobes = check_lobes(lobes, imported.ct)
    require_plausible_lobes(lobes)
    images, lesions = {"ct": imported.ct, "lobes": lobes}, imported.lesions
    if lesions is not None:
        require_same_grid(lesions, imported.ct, "lesion mask")
        require_labels(lesions, (*SUBTYPES, UNKNOWN_SUBTYPE))
        images["lesions"] = lesions = imported.ct.with_array(lesions.array.astype(np.uint8, copy=False))
    present = [lobe for lobe in LOBES if (lobes.array == lobe.label).any()]
    scores = imported.scores or (derive_scores(lesions, lobes) if lesions is not None else {})
    record = {
        "made_of": job.made_of(),
        "images": [*images],
        "scores": {lobe.key: scores[lobe.label] for lobe in present if lobe.label in scores},
        "unscored": [lobe.key for lobe in present if scores and lobe.label not in scores],
    }
    return images, record


def _row(case: PendingCase, record: dict[str, Any]) -> dict[str, str]:
    files = {what: f"images/{case.name}_{what}.mha" for what in record["images"]}
    scores = {key: str(score) for key, score in record["scores"].items()}  # pandas turns numbers with gaps into 1.0
    return {"case": case.name, **files, **scores, "split": str(case.split)}


def _require_sound(cases: Sequence[PendingCase], lobes: LobeFiles | None) -> None:
    if not cases:
        raise InputError("no case to import; expected the folders that the importer's help shows")
    repeated = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if repeated:
        raise InputError(f"cases occur twice: {', '.join(repeated[:8])}; expected one of each")
    if any(Path(case.name).name != case.name or case.split is None for case in cases):
        raise ValueError("a case has no split, or a name that is no file name")
    if lobes is not None and not lobes.folder.is_dir():
        raise InputError(f"{lobes.folder}: no such folder; expected lobe masks CASE.nii.gz or CASE.mha")
    if lobes is not None and all(case.brings_lobes for case in cases):
        raise InputError(f"{lobes.folder}: the data set has lobes of its own; leave --lobes out")


def _claim(out: Path, source: Source) -> None:
    """Begin the directory; an older cases.csv goes, lest it describe images that are being replaced."""
    text = (
        f"{source.name}\nLicence: {source.licence}\nCite: {source.citation}\nFrom: {source.url}\n\n"
        "The images in this folder are copies of that data set in another file format, under its licence.\n"
    )
    licence = out / LICENCE
    if licence.exists() and licence.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{out}: holds another data set (see {LICENCE}), expected {source.name}; choose a new directory"
        )
    (out / "images").mkdir(parents=True, exist_ok=True)
    remove_stale(out / "images")
    (out / TABLE).unlink(missing_ok=True)
    write_text(licence, text)


def _require_usable(outcomes: Sequence[_Outcome], skip_unusable: bool) -> None:
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    if problems and not skip_unusable:
        raise InputError(f"{len(problems)} of {len(outcomes)} cases cannot be used: {'; '.join(problems)}")
    if all(outcome.record is None for outcome in outcomes):
        reasons = problems or [f"{outcome.name}: {outcome.left_out}" for outcome in outcomes]
        raise InputError(f"none of {len(outcomes)} cases can be used: {'; '.join(reasons)}")


def _summarise(source: Source, table: pd.DataFrame, outcomes: Sequence[_Outcome], out: Path) -> None:
    splits = ", ".join(f"{count} {split}" for split, count in table["split"].value_counts().items())
    scores = Counter(score for outcome in outcomes if outcome.record for score in outcome.record["scores"].values())
    lines = [f"{source.name}: {len(table)} cases ({splits}) in {out}; licence: {source.licence}, see {LICENCE}"]
    lines.append("lobes by score: " + (", ".join(f"{score}: {scores[score]}" for score in sorted(scores)) or "none"))
    unscored = [f"{o.name} {key}" for o in outcomes if o.record for key in o.record["unscored"]]
    if unscored:
        lines.append(f"lobes without a score (cut by the field of view, or not scored): {', '.join(unscored)}")
    for reason, count in Counter(outcome.left_out for outcome in outcomes if outcome.left_out).items():
        lines.append(f"left out: {count} cases, {reason}")
    lines += [f"unusable: {outcome.problem}" for outcome in outcomes if outcome.problem]
    for line in lines:
        remark(line)
