"""The evaluation container's job: every algorithm result of a submission against the hidden reference.

Text that reaches a participant (`SubmissionError`) names jobs, never cases, files or values of the reference; the
details go to the log, which the platform shows to organisers only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter, ValidationError

from evaluation.errors import InputError, SubmissionError
from evaluation.masks import Grid, GridMismatchError, Mask, read_mask
from evaluation.metrics import SUBTYPES
from evaluation.reference import ReferenceCase, case_name, read_reference
from evaluation.report import write_json
from evaluation.scoring import ScanScore, aggregate, score_scan, severity_kappa

SCAN_SLUG = "ct-image"
LESIONS_PATH = Path("output", "images", "covid-19-lesion-segmentation")

log = logging.getLogger(__name__)


class Socket(BaseModel):
    """The part of a socket's description that is used here."""

    slug: str


class PlatformImage(BaseModel):
    """An image on the platform; its name is that of the uploaded file."""

    name: str


class SocketValue(BaseModel):
    """One input of a job. Older versions of the platform call the socket `interface`."""

    socket: Socket = Field(validation_alias=AliasChoices("socket", "interface"))
    image: PlatformImage | None = None


class Job(BaseModel):
    """One run of the submitted algorithm on one scan."""

    pk: str = Field(pattern=r"^[0-9A-Za-z_-]+$")
    status: str
    inputs: list[SocketValue]

    @property
    def case(self) -> str:
        """Name of the scan that the job was run on."""
        names = [value.image.name for value in self.inputs if value.socket.slug == SCAN_SLUG and value.image]
        if len(names) != 1:
            raise SubmissionError(f"job {self.pk}: got {len(names)} images for {SCAN_SLUG}, expected 1")
        return case_name(names[0])


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
    scans: list[ScanScore] = []
    for case, job in jobs.items():
        log.info("case %s: job %s", case, job.pk)
        lesions, lobes = reference[case].read()
        prediction = _read_prediction(job, directory=input_directory / job.pk / LESIONS_PATH, grid=lesions.grid)
        scans.append(score_scan(reference[case], lesions=lesions, lobes=lobes, prediction=prediction))
    metrics = {
        "results": [{"job": jobs[scan.case].pk, **scan.as_result()} for scan in scans],
        "aggregates": aggregate(scans),
        "agreement": severity_kappa(scans).word,
    }
    write_json(output_directory / "metrics.json", metrics)
    return metrics


def read_jobs(path: Path) -> list[Job]:
    """Read the platform's list of jobs.

    Raises:
        SubmissionError: there is no such list, or it is not as the platform writes it.
    """
    try:
        return TypeAdapter(list[Job]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        log.error("%s: %s", path, error)
        raise SubmissionError("predictions.json: cannot be read as the platform's list of jobs") from None


def match_jobs(jobs: list[Job], reference: dict[str, ReferenceCase]) -> dict[str, Job]:
    """The job of each case, in the order of the reference.

    Raises:
        SubmissionError: a job did not succeed, two jobs are of one case, or jobs and cases are not the same set.
    """
    by_case: dict[str, Job] = {}
    for job in jobs:
        if job.status != "Succeeded":
            raise SubmissionError(f"job {job.pk}: got status {job.status}, expected Succeeded")
        if job.case in by_case:
            log.error("case %s: jobs %s and %s", job.case, by_case[job.case].pk, job.pk)
            raise SubmissionError(f"jobs {by_case[job.case].pk} and {job.pk}: got two of one scan, expected one")
        by_case[job.case] = job
    missing, extra = reference.keys() - by_case.keys(), by_case.keys() - reference.keys()
    if missing or extra:
        log.error("cases without a job: %s; jobs of unknown cases: %s", sorted(missing), sorted(extra))
        raise SubmissionError(
            f"got {len(jobs)} jobs: {len(missing)} scans of the phase have none, {len(extra)} are of other scans; "
            "expected one of each scan"
        )
    return {case: by_case[case] for case in reference}


def _read_prediction(job: Job, *, directory: Path, grid: Grid) -> Mask:
    files = sorted(directory.glob("*.mha"))
    if len(files) != 1:
        raise SubmissionError(f"job {job.pk}: got {len(files)} .mha files in {LESIONS_PATH}, expected 1")
    try:
        return read_mask(files[0], highest_label=max(SUBTYPES), grid=grid)
    except GridMismatchError as error:
        log.error("job %s: %s", job.pk, error)
        raise SubmissionError(
            f"job {job.pk}: the mask's grid is not its CT's: got {error.got}; "
            "write it with the size, spacing, origin and direction of the CT"
        ) from None
    except InputError as error:
        raise SubmissionError(f"job {job.pk}: {error}") from error
