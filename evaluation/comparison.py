"""Several methods judged on one reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evaluation import __version__
from evaluation.cts import check_ct
from evaluation.errors import InputError
from evaluation.masks import MASK_SUFFIXES, Mask, read_mask
from evaluation.metrics import SUBTYPES
from evaluation.pairwise import paired_tests
from evaluation.reference import ReferenceCase, case_name, read_reference
from evaluation.scoring import ScanScore, score_scan
from evaluation.summary import aggregate, severity_kappa, severity_table
from evaluation.workers import over_scans

log = logging.getLogger(__name__)

_LEAST_COVERED = 0.95


@dataclass(frozen=True)
class Comparison:
    """What several methods are worth on the scans of one reference.

    Attributes:
        reference: name of the reference's folder.
        cases: the reference, by case.
        masks: file of each method's prediction, by method and case.
        scans: numbers of each scan in the order of the cases, by method.
        metrics: the content of metrics.json, see `compare.compare_methods`.
        against: the method that all tests are against; None if every pair is tested.
    """

    reference: str
    cases: dict[str, ReferenceCase]
    masks: dict[str, dict[str, Path]]
    scans: dict[str, list[ScanScore]]
    metrics: dict[str, Any]
    against: str | None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order of the command line."""
        return tuple(self.scans)


class Task(NamedTuple):
    """One scan and what every method has made of it."""

    reference: ReferenceCase
    predictions: dict[str, Path]
    resample: bool


def judge_methods(
    *, reference_directory: Path, methods: Mapping[str, Path], against: str | None, resample: bool, seed: int
) -> Comparison:
    """Judge every method on every scan; see `compare.compare_methods` for arguments and errors."""
    cases = read_reference(reference_directory)
    for case in cases.values():
        check_ct(case)
    masks = {name: find_masks(name, directory, cases) for name, directory in methods.items()}
    tasks = [Task(case, {name: masks[name][case.case] for name in methods}, resample) for case in cases.values()]
    scans: dict[str, list[ScanScore]] = {name: [] for name in methods}
    judged = over_scans(judge_scan, tasks, name=lambda task: f"case {task.reference.case}")
    for number, scores in enumerate(judged, start=1):
        for name, score in scores.items():
            scans[name].append(score)
        log.info("case %s (%d of %d)", tasks[number - 1].reference.case, number, len(tasks))
    metrics = {
        "methods": {
            name: {
                "aggregates": aggregate(scores, seed=seed),
                "agreement": severity_kappa(scores).word,
                "score_table": severity_table(scores).tolist(),
                "resampled_cases": [score.case for score in scores if score.is_resampled],
            }
            for name, scores in scans.items()
        },
        "comparisons": paired_tests(scans, against=against),
        "seed": seed,
        "version": __version__,
    }
    return Comparison(
        reference=reference_directory.resolve().name,
        cases=cases,
        masks=masks,
        scans=scans,
        metrics=metrics,
        against=against,
    )


def judge_scan(task: Task) -> dict[str, ScanScore]:
    """Judge every method on one scan.

    Raises:
        InputError: a mask is unusable; the message names method and case.
    """
    lesions, lobes = task.reference.read()
    scores = {}
    for name, file in task.predictions.items():
        try:
            prediction = read_mask(file, highest_label=max(SUBTYPES), grid=lesions.grid, resample=task.resample)
            _require_lungs_within(prediction, lobes, file.name)
        except InputError as error:
            raise InputError(f"method {name}, case {task.reference.case}: {error}") from error
        scores[name] = score_scan(task.reference, lesions=lesions, lobes=lobes, prediction=prediction)
    return scores


def _require_lungs_within(prediction: Mask, lobes: Mask, name: str) -> None:
    """A resampled mask may end within the scan, but not within the lungs: what it leaves out would count as healthy."""
    if prediction.resampled_from is None or not lobes.array.any():
        return
    share = prediction.resampled_from.covered_share(lobes.array > 0, lobes.grid)
    if share < _LEAST_COVERED:
        raise InputError(
            f"{name}: got a mask that covers {100 * share:.0f} % of the lungs, expected {100 * _LEAST_COVERED:.0f} % "
            "at least; write it with the origin, spacing and direction of its CT"
        )


def find_masks(name: str, directory: Path, cases: Mapping[str, ReferenceCase]) -> dict[str, Path]:
    """The mask of every case in a method's folder.

    Args:
        name: of the method.
        directory: holds `<case>.mha` or `<case>/lesions.mha` (or .nii.gz, .nii) for every case.
        cases: the reference.

    Raises:
        InputError: the folder holds no case at all, lacks one, or holds two masks of one: the one file and the folder,
            for a folder's lesions.mha goes before the same in another format.
    """
    found = {
        case: [
            *(path for suffix in MASK_SUFFIXES if (path := directory / f"{case}{suffix}").is_file()),
            *[path for suffix in MASK_SUFFIXES if (path := directory / case / f"lesions{suffix}").is_file()][:1],
        ]
        for case in cases
    }
    if not any(found.values()):
        raise InputError(
            f"method {name}: got masks of none of the {len(cases)} cases in {directory}, "
            "expected <case>.mha or <case>/lesions.mha for each"
        )
    for case, paths in found.items():
        if len(paths) != 1:
            raise InputError(
                f"method {name}, case {case}: got {len(paths)} masks, expected either {case}.mha or {case}/lesions.mha"
            )
    others = sorted(path.name for path in directory.iterdir() if is_of_another_case(path, cases))
    if others:
        log.warning("method %s: %d masks of other cases are left alone: %s", name, len(others), ", ".join(others))
    return {case: path for case, (path,) in found.items()}


def is_of_another_case(path: Path, cases: Mapping[str, ReferenceCase]) -> bool:
    """Whether a file or folder in a method's folder looks like the mask of a scan that is not in the reference."""
    if path.is_dir():
        return path.name not in cases and any((path / f"lesions{suffix}").is_file() for suffix in MASK_SUFFIXES)
    return path.name.lower().endswith(MASK_SUFFIXES) and case_name(path.name) not in cases


def read_prediction(comparison: Comparison, *, method: str, case: str, like: Mask) -> Mask:
    """A prediction once more, on the reference's grid."""
    return read_mask(comparison.masks[method][case], highest_label=max(SUBTYPES), grid=like.grid, resample=True)
