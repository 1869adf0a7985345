"""The submission as the platform hands it over: `predictions.json` and the outputs beside it.

Every message here may reach a participant, so it names jobs, never cases of the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter, ValidationError

from evaluation.errors import SubmissionError
from evaluation.reference import case_name

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

    def lesions(self, input_directory: Path) -> Path:
        """The one mask that the job has written.

        Raises:
            SubmissionError: it has written none, or several.
        """
        files = sorted((input_directory / self.pk / LESIONS_PATH).glob("*.mha"))
        if len(files) != 1:
            raise SubmissionError(f"job {self.pk}: got {len(files)} .mha files in {LESIONS_PATH}, expected 1")
        return files[0]


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


def match_jobs(jobs: list[Job], cases: Collection[str]) -> dict[str, Job]:
    """The job of each case, in the order of the cases.

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
    missing, extra = set(cases) - by_case.keys(), by_case.keys() - set(cases)
    if missing or extra:
        log.error("cases without a job: %s; jobs of unknown cases: %s", sorted(missing), sorted(extra))
        raise SubmissionError(
            f"got {len(jobs)} jobs: {len(missing)} scans of the phase have none, {len(extra)} are of other scans; "
            "expected one of each scan"
        )
    return {case: by_case[case] for case in cases}
