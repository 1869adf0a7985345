"""A platform in memory that honours the signatures of gcapi's client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batch.cases import Case, pair_cases
from batch.connection import Connection
from batch.jobs import Batch
from batch.manifest import Manifest

SLUG = "covid-lesions"


class RefusedError(Exception):
    """Stands for an HTTP error that carries the platform's answer."""

    def __init__(self, text: str, status_code: int = 400) -> None:
        super().__init__("Client error for url 'https://example.org?signature=secret'")
        self.response = SimpleNamespace(status_code=status_code, text=text)


@dataclass
class SocketValue:
    """As gcapi.SocketValueSpec: one file a socket."""

    socket_slug: str
    file: Path


def socket(slug: str, relative_path: str = "", super_kind: str = "Image") -> SimpleNamespace:
    return SimpleNamespace(slug=slug, relative_path=relative_path, super_kind=super_kind)


LESIONS = socket("covid-19-lesion-segmentation", "images/covid-19-lesion-segmentation")
REPORT = socket("results", "results.json", "File")


@dataclass
class FakePlatform:
    """Runs every job in `steps` polls. `endings` gives a case another last status than Succeeded."""

    steps: int = 2
    endings: dict[str, str] = field(default_factory=dict)
    input_slugs: tuple[str, ...] = ("ct-image", "pulmonary-lobes")
    refusals: list[BaseException | None] = field(default_factory=list)  # of the next starts, in order
    silent_polls: int = 0
    broken_downloads: int = 0
    started: list[str] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    most_active: int = 0

    def __post_init__(self) -> None:
        self.algorithms = SimpleNamespace(detail=self._algorithm)
        self.algorithm_jobs = SimpleNamespace(detail=self._job)

    def _algorithm(self, pk: str | None = None, api_url: str | None = None, **params: Any) -> SimpleNamespace:
        if params != {"slug": SLUG}:
            raise RefusedError("not found", 404)
        inputs = [socket(slug) for slug in self.input_slugs]
        return SimpleNamespace(interfaces=[SimpleNamespace(inputs=inputs, outputs=[LESIONS, REPORT])])

    def start_algorithm_job(self, *, algorithm_slug: str, inputs: list[SocketValue]) -> SimpleNamespace:
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        files = {value.socket_slug: value.file for value in inputs}
        assert set(files) == {"ct-image", "pulmonary-lobes"}
        assert files["ct-image"].stem == files["pulmonary-lobes"].stem
        pk = f"job-{len(self.jobs)}"
        self.started.append(files["ct-image"].stem)
        self.jobs[pk] = {"case": files["ct-image"].stem, "left": self.steps}
        self.most_active = max(self.most_active, sum(job["left"] > 0 for job in self.jobs.values()))
        return SimpleNamespace(pk=pk, inputs=[], status="Queued")

    def _job(self, pk: str | None = None, api_url: str | None = None, **params: Any) -> SimpleNamespace:
        if self.silent_polls > 0:
            self.silent_polls -= 1
            raise RefusedError("gateway", 500)
        job = self.jobs[pk or ""]
        job["left"] = max(0, job["left"] - 1)
        status = "Executing" if job["left"] else self.endings.get(job["case"], "Succeeded")
        outputs = [SimpleNamespace(interface=LESIONS), SimpleNamespace(interface=REPORT)]
        return SimpleNamespace(pk=pk, url=f"https://example.org/jobs/{pk}/", status=status, outputs=outputs)

    def download_socket_value(self, value: SimpleNamespace, *, output_directory: Path) -> None:
        path = output_directory / value.interface.relative_path
        if value.interface.super_kind == "Image":
            path = path / "uuid.mha"
        elif self.broken_downloads > 0:
            self.broken_downloads -= 1
            raise RefusedError("gone", 410)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(b"output")


@pytest.fixture
def platform() -> FakePlatform:
    return FakePlatform()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Folders for scans and lobes."""
    folders = {"scans": tmp_path / "scans", "lobes": tmp_path / "lobes"}
    for folder in folders.values():
        folder.mkdir()
    return folders


@pytest.fixture
def write_cases(inputs: dict[str, Path]):
    """Write the files of some cases and pair them."""

    def write(names: Iterable[str]) -> list[Case]:
        for name in names:
            for kind, folder in inputs.items():
                (folder / f"{name}.mha").write_text(f"{kind} of {name}")
        return pair_cases(**inputs)

    return write


@pytest.fixture
def open_batch(tmp_path: Path, platform: FakePlatform):
    """A batch on the output folder as its manifest has it, with the cases planned."""

    def open_(cases: list[Case], *, retry_failed: bool = False) -> Batch:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        manifest = Manifest.load_or_new(folder, algorithm=SLUG)
        manifest.plan(cases, retry_failed=retry_failed)
        return Batch(Connection(platform, SocketValue, (RefusedError,)), manifest, folder)

    return open_
