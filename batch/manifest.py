"""What is known of every case, kept in one JSON file so that a run can end at any time, in any way, and go on later."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from batch.cases import Case, identity_of, shortened
from batch.errors import InputError
from batch.results import finished_here, read_case_file, write_whole

FILE_NAME = "manifest.json"
SCHEMA_VERSION = 2
PENDING = "Pending"
UPLOADING = "Uploading"
STARTING = "Starting"
HERE = "Computed here"
SUCCEEDED = "Succeeded"
UNSUCCESSFUL = ("Failed", "Cancelled")
ENDED = (SUCCEEDED, *UNSUCCESSFUL)
TEMPORARY = ".partial-"
"""Folders whose names begin so belong to the running command; what a killed one left is removed."""

_NOT_STARTED = (PENDING, UPLOADING, STARTING)

log = logging.getLogger(__name__)


class CaseRecord(BaseModel):
    """The state of one case. The next step follows from it alone, and each step is written down before it is taken.

    Attributes:
        files: the input files or DICOM folders on this machine, by slug.
        inputs: SHA-256 of each input file, or the address of one that lies on the platform, by slug.
        attempt: part of the names under which the files are uploaded; tells what a killed run left on the platform.
        uploads: addresses of the uploaded files, by slug.
        job: the job's pk on the platform; None until it is known to be started.
        status: `Pending`; `Uploading` from before the first upload; `Starting` from before the job is asked for; then
            the platform's own word. `Computed here` for results of `python -m algorithm segment-batch`.
        outputs: SHA-256 of the files in the case's folder; None until they are all there.
        error: what went wrong last; None if nothing did.
        algorithm_image: address of the image that the job ran.
        earlier_jobs: those of the case that ended without success before.
        older_jobs: those of others, or of earlier versions, on the images that lie on the platform; none of them is
            the one that was asked for.
    """

    model_config = ConfigDict(extra="forbid")

    files: dict[str, Path]
    inputs: dict[str, str]
    attempt: str | None = None
    uploads: dict[str, str] = {}
    job: str | None = None
    status: str = PENDING
    outputs: dict[str, str] | None = None
    error: str | None = None
    algorithm_image: str | None = None
    earlier_jobs: list[str] = []
    older_jobs: list[str] = []

    @property
    def is_finished(self) -> bool:
        """Whether the outputs are here."""
        return self.outputs is not None

    @property
    def is_active(self) -> bool:
        """Whether the platform has a job of this case that has not ended."""
        return self.job is not None and self.status not in ENDED

    @property
    def is_unsuccessful(self) -> bool:
        """Whether the platform has given this case up."""
        return self.status in UNSUCCESSFUL

    @property
    def is_to_start(self) -> bool:
        """Whether a job is still to be started."""
        return self.status in _NOT_STARTED

    @property
    def images(self) -> dict[str, str]:
        """Addresses of the inputs that lie on the platform already, by slug."""
        return {slug: url for slug, url in self.inputs.items() if slug not in self.files}

    def current_inputs(self) -> dict[str, str]:
        """What `inputs` would be if the files were taken up now."""
        return identity_of(self.files, self.images)

    def begin(self) -> None:
        """Give the uploads to come a name of their own."""
        self.attempt, self.uploads, self.status = uuid4().hex[:12], {}, UPLOADING


class Manifest(BaseModel):
    """All cases of one algorithm in one output folder."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[2] = 2
    platform: str
    algorithm: str
    cases: dict[str, CaseRecord] = {}

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of an output folder.

        Raises:
            InputError: there is none, it is damaged, or another version of this program wrote it.
        """
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_bytes())
            version = content.get("schema_version") if isinstance(content, dict) else None
            if isinstance(version, int) and version != SCHEMA_VERSION:
                raise InputError(
                    f"{path}: got version {version}, expected {SCHEMA_VERSION}; finish it with the program that began "
                    "it, or choose another --out"
                )
            return cls.model_validate(content)
        except FileNotFoundError:
            raise InputError(f"{path}: got no such file, expected the folder of an earlier run") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path}: got a damaged manifest: {place}: {first['msg']}; restore it") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: got a damaged manifest: {error}; restore it") from error

    @classmethod
    def load_or_new(cls, folder: Path, *, platform: str, algorithm: str) -> Manifest:
        """Read the manifest of an output folder, or begin one.

        Raises:
            InputError: the manifest is damaged, or of another version, algorithm or platform.
        """
        if not (folder / FILE_NAME).exists():
            return cls(platform=platform, algorithm=algorithm)
        manifest = cls.load(folder)
        for what, got, expected in (
            ("algorithm", algorithm, manifest.algorithm),
            ("platform", platform, manifest.platform),
        ):
            if got != expected:
                raise InputError(f"{folder}: got {what} {got}, expected {expected} as before; choose another --out")
        return manifest

    def save(self, folder: Path) -> None:
        """Write the manifest whole or not at all."""
        write_whole(folder / FILE_NAME, f"{self.model_dump_json(indent=2)}\n".encode())

    def plan(self, cases: Collection[Case], folder: Path) -> list[str]:
        """Take up new cases and those computed here, and make ready to try again what could not be sent or fetched.

        Other cases are dropped where no job was asked for, so that nothing is sent of what was taken out or renamed.

        Args:
            cases: the cases to run.
            folder: the output folder.

        Returns:
            Their names.

        Raises:
            InputError: an input is not the one of a job that succeeded or may be running.
        """
        names = [case.name for case in cases]
        changed = [case.name for case in cases if not self._take_up(case, folder)]
        if changed:
            raise InputError(
                f"got other input files than those of {len(changed)} earlier jobs ({shortened(changed)}), "
                "expected the same; choose another --out"
            )
        others = sorted(self.cases.keys() - set(names))
        dropped = [name for name in others if self.cases[name].status in (PENDING, UPLOADING)]
        for name in dropped:
            del self.cases[name]
        if dropped:
            log.warning("dropped, for they are no longer among the cases and have no job: %s", ", ".join(dropped))
        self.forget_errors(folder)
        return names

    def _take_up(self, case: Case, folder: Path) -> bool:
        """Bring the record of a case in line with its inputs; False where a job has, or may have, taken others."""
        inputs = case.identity()
        fresh = CaseRecord(files={slug: path.resolve() for slug, path in case.files.items()}, inputs=inputs)
        record = self.cases.setdefault(case.name, fresh)
        if record.inputs == inputs or record.is_unsuccessful:
            record.files, record.inputs = fresh.files, inputs
        elif record.status in (PENDING, UPLOADING, HERE):
            fresh.earlier_jobs = record.earlier_jobs
            record = self.cases[case.name] = fresh
        else:
            return False
        if record.status in (PENDING, HERE):
            record.outputs = finished_here(folder / case.name, inputs)
            record.status = PENDING if record.outputs is None else HERE
        return True

    def forget_errors(self, folder: Path) -> None:
        """Let what could not be sent or fetched be tried again, and fetched results that are gone be fetched again.

        Where `segment-batch` has put results of the same inputs in their place, these count.
        """
        for name, record in self.cases.items():
            if not record.is_unsuccessful:
                record.error = None
            if record.job is None or record.outputs is None:
                continue
            found = read_case_file(folder / name)
            record.outputs = found.outputs if found and found.computed == record.job else None
            if record.outputs is None and (here := finished_here(folder / name, record.inputs)):
                record.earlier_jobs, record.job = [*record.earlier_jobs, record.job], None
                record.outputs, record.status = here, HERE

    def retry(self, names: Iterable[str]) -> list[str]:
        """Begin cases anew, with their files as they are now, whose job ended without success; costs credits again.

        Args:
            names: the cases; none for all that ended so.

        Returns:
            The names of those begun anew.

        Raises:
            InputError: a case is unknown or did not end so, or a file of it cannot be read.
        """
        unsuccessful = {name for name, record in self.cases.items() if record.is_unsuccessful}
        chosen = set(names) or unsuccessful
        if chosen - unsuccessful:
            raise InputError(
                f"{shortened(chosen - unsuccessful)}: got cases that did not fail, expected some of those that did "
                f"({shortened(unsuccessful) or 'none'})"
            )
        try:
            inputs = {name: self.cases[name].current_inputs() for name in sorted(chosen)}
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}), expected an input of a case to retry; put it "
                "back, or name other cases"
            ) from error
        for name in inputs:
            record = self.cases[name]
            jobs = [*record.earlier_jobs, record.job] if record.job else record.earlier_jobs
            self.cases[name] = CaseRecord(files=record.files, inputs=inputs[name], earlier_jobs=jobs)
        return list(inputs)

    def jobs(self) -> set[str]:
        """The pk of every job of every case."""
        records = self.cases.values()
        return {pk for record in records for pk in (*record.earlier_jobs, record.job) if pk is not None}


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Make an output folder and keep other processes out of it; the lock ends with the process, however that ends.

    Raises:
        InputError: another process works on the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another command is working on this folder; wait for it to end") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}), expected a writable folder") from error
    with held:
        for left in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
