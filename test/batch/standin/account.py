"""What one user has on the stand-in, how its jobs go, and what is to go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .faults import Fault

SLUG = "covid-lesions"
ACTIVE = ("Validating inputs", "Queued", "Started", "Executing", "Executed", "Parsing Outputs")
KINDS = {
    "ct-image": ("Image", "Image", "images/ct"),
    "pulmonary-lobes": ("Segmentation", "Image", "images/pulmonary-lobes"),
    "covid-19-lesion-segmentation": ("Segmentation", "Image", "images/covid-19-lesion-segmentation"),
    "covid-19-severity": ("Anything", "File", "covid-19-severity.json"),
    "covid-19-ct-severity-score": ("Integer", "Value", "covid-19-ct-severity-score.json"),
    "heat-map": ("Heat Map", "Image", "images/heat-map"),
    "other-severity": ("Anything", "File", "severity.json"),
    "other-case": ("Anything", "File", "case.json"),
}
"""Kind, super kind and relative path of each socket."""


@dataclass
class Upload:
    """A file on its way to the platform."""

    pk: str
    filename: str
    s3_upload_id: str
    status: str = "Initialized"
    parts: dict[int, bytes] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return b"".join(self.parts[number] for number in sorted(self.parts))


@dataclass
class Job:
    """A job and how many questions about it have been answered."""

    pk: str
    uploads: dict[str, str]
    images: dict[str, str]
    names: dict[str, str]
    algorithm_image: str
    questions: int = 0
    status: str = "Validating inputs"
    outputs: dict[str, Any] = field(default_factory=dict)


Compute = Callable[[str], dict[str, Any]]


@dataclass
class Account:
    """What one user has on the platform, what is to go wrong, and all that was asked."""

    pk: str
    statuses: tuple[str, ...] = ("Queued", "Executing")
    endings: dict[str, str] = field(default_factory=dict)
    interfaces: list[tuple[str, ...]] = field(default_factory=lambda: [("ct-image", "pulmonary-lobes"), ("ct-image",)])
    import_after: int = 0
    most_active: int = 16
    most_uploads: int = 2000
    compute: Compute = field(default_factory=lambda: example_outputs)
    faults: Iterable[Fault] = field(default_factory=list)
    algorithm_image: str = "image-1"
    archives: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    taken: dict[str, Upload] = field(default_factory=dict)
    images: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    peak: int = 0
    last_upload: int = 0

    def uploaded(self) -> list[str]:
        """File names of all complete uploads, in order."""
        both = self.uploads | self.taken
        return [both[pk].filename for pk in sorted(both, key=_number) if both[pk].status == "Completed"]

    def uploaded_cases(self) -> list[str]:
        """The case of every uploaded scan; each has its lobes."""
        names = [name.removesuffix(".mha").rsplit("_", 2) for name in self.uploaded()]
        scans = [case for case, _, slug in names if slug == "ct-image"]
        assert sorted(case for case, _, slug in names if slug == "pulmonary-lobes") == sorted(scans)
        return scans

    def active(self) -> int:
        return sum(job.status in ACTIVE for job in self.jobs.values())

    def add_image(self, name: str, content: bytes) -> str:
        pk = f"image-{len(self.images) + 1}"
        self.images[pk] = (name, content)
        return pk

    def advance(self, job: Job) -> None:
        """Take a job a step further at each question about it."""
        if job.status not in ACTIVE:
            return
        if self.import_after > 0:
            self.import_after -= 1
            return
        if job.status == "Validating inputs":
            self._import(job)
        if job.status not in ACTIVE:
            return
        if job.questions < len(self.statuses):
            job.status = self.statuses[job.questions]
        else:
            self._end(job)
        job.questions += 1

    def _import(self, job: Job) -> None:
        for slug, pk in job.uploads.items():
            self.taken[pk] = upload = self.uploads.pop(pk)
            job.images[slug] = self.add_image(upload.filename, upload.content)
            if b"ElementDataFile = LOCAL" not in upload.content:
                job.status = "Cancelled"
        job.uploads = {}

    def _end(self, job: Job) -> None:
        case = re.sub(r"(_[0-9a-f]{12}_ct-image)?\.mha$", "", self.images[job.images["ct-image"]][0])
        job.status = self.endings.get(case, "Succeeded")
        if job.status == "Succeeded":
            for slug, output in self.compute(case).items():
                is_image = KINDS[slug][1] == "Image"
                job.outputs[slug] = self.add_image("output.mha", output) if is_image else output


def _number(pk: str) -> int:
    return int(pk.rpartition("-")[2])


def example_outputs(case: str) -> dict[str, Any]:
    """Lesions of 2 x 2 x 2 voxels, and a severity that depends on the case's name."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    percent = float(sum(case.encode()) % 70)
    lobes = [{"name": str(label), "label": label, "percent": percent + label, "score": 3} for label in range(1, 6)]
    severity = json.dumps({"lobes": lobes, "total_score": 15}).encode()
    return {"covid-19-lesion-segmentation": header.encode() + bytes(8), "covid-19-severity": severity}
