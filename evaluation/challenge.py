"""The evaluation container's job: every algorithm result of a submission against the hidden reference.

Text that reaches a participant (`SubmissionError`) names jobs, never cases, files or values of the reference; the
details go to the log, which the platform shows to organisers only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.errors import InputError, SubmissionError, WorkerError
from evaluation.files import json_text, write_files
from evaluation.jobs import Job, match_jobs, read_jobs
from evaluation.masks import Grid, GridMismatchError, Mask, read_mask
from evaluation.metrics import SUBTYPES
from evaluation.reference import ReferenceCase, read_reference
from evaluation.scoring import ScanScore, score_scan
from evaluation.summary import aggregate, severity_kappa
from evaluation.workers import over_scans

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """One job and the case that it is judged by."""

    job: Job
    reference: ReferenceCase
    input_directory: Path


def run_challenge(*, input_directory: Path, ground_truth_directory: Path, output_directory: Path) -> dict[str, Any]:
    """Judge a submission and write `metrics.json`.

    Args:
        input_directory: holds predictions.json and `<job pk>/output/images/covid-19-lesion-segmentation/*.mha`.
        ground_truth_directory: the reference, see `reference.read_reference`.
        output_directory: where metrics.json goes.

    Returns:
        What was written: `results` a scan, `aggregates`, and the `agreement` of the scores in a word.

    Raises:
        SubmissionError: the submission is incomplete or unusable; the message is fit for participants.
        GroundTruthError: the reference is unusable; the message is not.
    """
    reference = read_reference(ground_truth_directory)
    jobs = match_jobs(read_jobs(input_directory / "predictions.json"), reference)
    tasks = [Task(job, reference[case], input_directory) for case, job in jobs.items()]
    scans: list[ScanScore] = []
    try:
        for scan in over_scans(judge_job, tasks, name=lambda task: f"job {task.job.pk}"):
            scans.append(scan)
            log.info("case %s: job %s (%d of %d)", scan.case, jobs[scan.case].pk, len(scans), len(tasks))
    except WorkerError as error:
        raise SubmissionError(str(error)) from error
    metrics = {
        "results": [{"job": jobs[scan.case].pk, **scan.as_result()} for scan in scans],
        "aggregates": aggregate(scans),
        "agreement": severity_kappa(scans).word,
    }
    write_files(output_directory, {"metrics.json": json_text(metrics)})
    return metrics


def judge_job(task: Task) -> ScanScore:
    """Judge what one job has written.

    Raises:
        SubmissionError: the job's mask is missing or unusable.
        GroundTruthError: the reference's masks are.
    """
    file = task.job.lesions(task.input_directory)
    lesions, lobes = task.reference.read()
    prediction = _read_prediction(task.job, file, grid=lesions.grid)
    return score_scan(task.reference, lesions=lesions, lobes=lobes, prediction=prediction)


def _read_prediction(job: Job, file: Path, *, grid: Grid) -> Mask:
    try:
        return read_mask(file, highest_label=max(SUBTYPES), grid=grid)
    except GridMismatchError as error:
        raise SubmissionError(
            f"job {job.pk}: the mask's grid is not its CT's: got {error.got}; "
            "write it with the size, spacing, origin and direction of the CT"
        ) from error
    except InputError as error:
        raise SubmissionError(f"job {job.pk}: {error}") from error
