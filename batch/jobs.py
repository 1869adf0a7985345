"""The steps of every case on the platform: its files uploaded, its job started and watched, its outputs fetched."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from batch.cases import LOBES_SLUG
from batch.connection import Algorithm, Connection
from batch.errors import InputError, PlatformError
from batch.integrity import require_whole
from batch.manifest import STARTING, SUCCEEDED, TEMPORARY, UNSUCCESSFUL, UPLOADING, CaseRecord, Manifest
from batch.results import CASE_FILE, FILE_NAMES, read_case_file, require_no_folder, write_case_file
from batch.scans import convert

MOST_ACTIVE_JOBS = 16  # the platform's limit for one user
MOST_TRIES = 5  # of one upload, start or download
MOST_REFUSALS = 3  # of starts, in a row
MOST_SILENT_ROUNDS = 10
MOST_IDLE_ROUNDS = 10
CERTAIN_AFTER_LOOKS = 2  # that a lost request started no job
FIRST_DELAY_S = 10.0
LONGEST_DELAY_S = 120.0

_NO_ROOM = ("too many active jobs", "too many uploads", "upload limit reached", "active image post processing tasks")
_EXISTS = "already exists"

log = logging.getLogger(__name__)


class NotYetError(Exception):
    """A step has to wait; it is taken again in the next round."""


class Batch:
    """The cases of one output folder and the platform that works on them; the manifest is saved at each step."""

    def __init__(
        self,
        connection: Connection,
        manifest: Manifest,
        folder: Path,
        *,
        wanted: Collection[str],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take up a batch where its manifest stands.

        Args:
            connection: to the manifest's platform.
            manifest: of the folder.
            folder: gets a folder for each case.
            wanted: the cases that may be sent; of others, jobs that were asked for before are found and followed.
            sleep: waits for so many seconds.
        """
        self.connection = connection
        self.manifest = manifest
        self.folder = folder
        self._wanted = frozenset(wanted)
        self._sleep = sleep
        self._failures: Counter[tuple[str, str]] = Counter()  # of a case's step, since it last got further
        self._own_uploads: set[str] = set()  # cases of whose uploads nothing is left by an earlier try
        self._jobs_before: dict[str, set[str]] | None = None  # once asked for

    def run(self) -> None:
        """Start every wanted case that has no job as room permits, wait for all jobs and fetch their outputs.

        What goes wrong with a case is written to its record. Nothing is uploaded while 16 jobs are active. The time
        between two rounds of questions grows from 10 to 120 s while nothing happens.

        Raises:
            InputError: the algorithm cannot take these inputs, or the account has no room for jobs. The manifest
                holds all that was reached.
            TokenRefusedError: the platform does not take the token.
        """
        to_start = {name: record for name, record in self.manifest.cases.items() if record.is_to_start}
        pending = [name for name, record in to_start.items() if name in self._wanted or record.status == STARTING]
        algorithm = self._check_algorithm(self._wanted.intersection(pending)) if pending else None
        self.manifest.save(self.folder)
        delay_s, idle_rounds = FIRST_DELAY_S, 0
        while True:
            moved = self._start(algorithm, pending) if algorithm else 0
            moved += self.refresh()
            awaited = any(map(_is_awaited, self.manifest.cases.values()))
            if not pending and not awaited:
                return
            idle_rounds = 0 if moved or awaited else idle_rounds + 1
            if idle_rounds >= MOST_IDLE_ROUNDS:
                raise InputError("the platform has had no answer or no room for your jobs for a while; run again later")
            delay_s = FIRST_DELAY_S if moved else min(1.5 * delay_s, LONGEST_DELAY_S)
            self._sleep(delay_s)

    def refresh(self) -> int:
        """Ask once for the status of every active job, and fetch the outputs of those that succeeded.

        Returns:
            How many cases got further.

        Raises:
            TokenRefusedError: the platform does not take the token.
        """
        moved = 0
        for name, record in self.manifest.cases.items():
            if not _is_awaited(record):
                continue
            before = record.model_copy()
            try:
                self._follow(name, record)
            except PlatformError as error:
                self._fail(name, record, "no answer", error, most=1 if error.is_refusal else MOST_SILENT_ROUNDS)
            if record != before:
                moved += 1
                self.manifest.save(self.folder)
                log.info("%s: %s", name, record.error or record.status)
        return moved

    def _active(self) -> int:
        return sum(record.is_active for record in self.manifest.cases.values())

    def _check_algorithm(self, names: Iterable[str]) -> Algorithm:
        slug = self.manifest.algorithm
        try:
            algorithm = self._ask_for_algorithm(slug)
        except PlatformError as error:
            cure = "; take the slug from its web address" if error.status_code == 404 else ""
            raise InputError(f"algorithm {slug}: {error}{cure}") from error
        wanted = " or ".join("{" + ", ".join(sorted(inputs)) + "}" for inputs in algorithm.interfaces) or "nothing"
        for name in sorted(names):
            got = frozenset(self.manifest.cases[name].inputs)
            if got not in algorithm.interfaces:
                hint = "; give --lobes" if got | {LOBES_SLUG} in algorithm.interfaces else ""
                raise InputError(
                    f"algorithm {slug}: got the inputs {{{', '.join(sorted(got))}}} for case {name}, expected "
                    f"{wanted}{hint}"
                )
        return algorithm

    def _ask_for_algorithm(self, slug: str) -> Algorithm:
        for _ in range(MOST_TRIES - 1):
            try:
                return self.connection.algorithm(slug)
            except PlatformError as error:
                if error.is_refusal:
                    raise
                log.warning("algorithm %s: no answer, tried again: %s", slug, error)
                self._sleep(FIRST_DELAY_S)
        return self.connection.algorithm(slug)

    def _start(self, algorithm: Algorithm, pending: list[str]) -> int:
        """Start cases from the head of the list, and take them off it, until no more jobs may be active.

        Returns:
            How many were taken off the list.
        """
        taken = refusals = 0
        while pending and self._active() < MOST_ACTIVE_JOBS:
            name = pending[0]
            record = self.manifest.cases[name]
            try:
                self._start_one(algorithm, name, record)
                refusals = 0
            except NotYetError as error:
                log.warning("%s: waits: %s", name, error)
                break
            except PlatformError as error:
                self._fail(name, record, "not started", error, most=1 if error.is_refusal else MOST_TRIES)
                if record.error is None:
                    break
                refusals += 1
            except (InputError, OSError) as error:
                record.error = f"not sent: {error}"
            self.manifest.save(self.folder)
            log.info("%s: %s", name, record.error or f"job {record.job}")
            pending.pop(0)
            taken += 1
            if refusals == MOST_REFUSALS:
                log.warning("%d starts refused in a row: %d cases are left for another run", refusals, len(pending))
                pending.clear()
        return taken

    def _start_one(self, algorithm: Algorithm, name: str, record: CaseRecord) -> None:
        """Take a case from wherever it stands to a job."""
        if record.status == STARTING and self._adopt_job(algorithm, name, record):
            return
        if name not in self._wanted:
            record.status = UPLOADING  # no job was started
            raise InputError("it has no job and is not among the cases of this call; run again with it or without it")
        require_no_folder(self.folder / name)
        if name not in self._own_uploads and not all(map(self.connection.has_upload, record.uploads.values())):
            record.attempt = None  # the platform removes uploads that no job takes for a day
        if record.attempt is None:
            record.begin()
            self._own_uploads.add(name)
            self.manifest.save(self.folder)
        if record.files.keys() - record.uploads.keys():
            self._upload(name, record)
        record.older_jobs = self._jobs_on(algorithm, record.images)
        record.status = STARTING
        self.manifest.save(self.folder)
        try:
            job = self.connection.start(algorithm, uploads=record.uploads, images=record.images)
        except PlatformError as error:
            exists = error.is_refusal and _EXISTS in str(error).lower()
            if exists and record.earlier_jobs and not record.files:
                record.job, record.status = record.earlier_jobs.pop(), UNSUCCESSFUL[0]
                raise InputError(
                    f"its job {record.job} ended without success, and the platform runs the same images once for each "
                    "version of an algorithm; upload the scan with --scans, or a new version"
                ) from error
            if exists and self._adopt_job(algorithm, name, record, may_be_older=True):
                return
            if error.is_refusal:
                record.status = UPLOADING  # no job was started, and the uploads are as they were
            _wait_for_room(error)
            raise
        record.job, record.status = str(job.pk), job.status

    def _jobs_on(self, algorithm: Algorithm, images: Mapping[str, str]) -> list[str]:
        """The jobs that were there on these images before this command asked for any."""
        if images and self._jobs_before is None:
            self._jobs_before = self.connection.jobs_by_images(algorithm)
        before = self._jobs_before or {}
        return sorted(pk for pk, inputs in before.items() if images and inputs.issuperset(images.values()))

    def _adopt_job(self, algorithm: Algorithm, name: str, record: CaseRecord, *, may_be_older: bool = False) -> bool:
        """Find out whether a start whose answer was lost has started a job, and take that job over.

        Args:
            algorithm: which it runs.
            name: of the case.
            record: of the case.
            may_be_older: whether a job that was there before will do, as the platform says that its result is the same.

        Raises:
            NotYetError: that cannot be told yet.
        """
        cases = self.manifest.cases.values()
        known = self.manifest.jobs() - {other.job for other in cases if other.inputs == record.inputs}
        known |= set() if may_be_older else set(record.older_jobs)
        lookup = self.connection.find_job(algorithm, attempt=str(record.attempt), images=record.images, known=known)
        if lookup.job is not None:
            record.job, record.status = str(lookup.job.pk), lookup.job.status
            return True
        self._failures[name, "look"] += 1
        if not lookup.is_certain or self._failures[name, "look"] < CERTAIN_AFTER_LOOKS:
            raise NotYetError("a job may have been started; looking for it")
        return False

    def _upload(self, name: str, record: CaseRecord) -> None:
        """Upload what is not uploaded yet, under names that hold nothing but the case's name and the attempt."""
        with TemporaryDirectory(dir=self.folder, prefix=TEMPORARY) as temporary:
            converted = convert(record.files, Path(temporary))
            if record.current_inputs() != record.inputs:
                raise InputError("its files have changed since this command began; run again")
            for slug in sorted(record.files.keys() - record.uploads.keys()):
                upload_name = f"{name}_{record.attempt}_{slug}.mha"
                left = None if name in self._own_uploads else self.connection.find_upload(upload_name)
                try:
                    record.uploads[slug] = left or self.connection.upload(converted[slug], upload_name)
                except PlatformError as error:
                    self._own_uploads.discard(name)
                    _wait_for_room(error)
                    raise PlatformError(f"upload: {error}") from error  # no refusal: it may have been done already
                self.manifest.save(self.folder)
        self._own_uploads.add(name)

    def _follow(self, name: str, record: CaseRecord) -> None:
        """Take over what the platform says of a job, and fetch its outputs."""
        job = self.connection.job(str(record.job))
        self._failures.pop((name, "no answer"), None)
        record.status, record.algorithm_image = job.status, job.algorithm_image
        if record.is_unsuccessful:
            record.error = f"{job.status}, see {job.url}"
        elif record.status == SUCCEEDED:
            try:
                self._fetch(name, record, job)
            except (PlatformError, InputError, OSError) as error:
                self._fail(name, record, "not fetched", error, most=MOST_TRIES)

    def _fetch(self, name: str, record: CaseRecord, job: Any) -> None:
        """Download all outputs of a job beside their place, then move them there."""
        place = self.folder / name
        here = read_case_file(place)
        if here is not None and here.computed == record.job:  # fetched, but the manifest was not saved
            record.outputs = here.outputs
        elif place.exists():
            record.error = f"not fetched: {place} is there already; move it away, then run again"
        elif not job.outputs:
            record.error = f"no outputs, see {job.url}"
        else:
            with TemporaryDirectory(dir=self.folder, prefix=TEMPORARY) as temporary:
                target = Path(temporary, "whole")
                for value in sorted(job.outputs, key=lambda value: value.interface.slug not in FILE_NAMES):
                    self._download(value, Path(temporary, "loading", str(value.pk)), target)
                outputs = write_case_file(target, computed=str(record.job), inputs=record.inputs)
                target.rename(place)
            record.outputs = outputs

    def _download(self, value: Any, loading: Path, target: Path) -> None:
        """One output, whole, under the name that it has in a case's folder."""
        loading.mkdir(parents=True)
        self.connection.download(value, loading)
        files = sorted(path for path in loading.rglob("*") if path.is_file())
        for path in files:
            require_whole(path)
            known = FILE_NAMES.get(value.interface.slug) if len(files) == 1 else None
            name = known or path.relative_to(loading)
            final = target / name
            if final.exists() or final == target / CASE_FILE:  # the name of a file that is ours
                final = target / value.interface.slug / name
            final.parent.mkdir(parents=True, exist_ok=True)
            path.rename(final)

    def _fail(self, name: str, record: CaseRecord, what: str, error: Exception, *, most: int) -> None:
        """Count a failure of a case's step; the last becomes its error, earlier ones are tried again."""
        self._failures[name, what] += 1
        if self._failures[name, what] >= most:
            record.error = f"{what}: {error}"
        else:
            log.warning("%s: %s, tried again: %s", name, what, error)


def _is_awaited(record: CaseRecord) -> bool:
    """Whether the platform is to be asked about a case's job."""
    return record.job is not None and record.error is None and not record.is_finished


def _wait_for_room(error: PlatformError) -> None:
    """Wait where the account has as many active jobs or uploads as the platform allows."""
    if any(reason in str(error).lower() for reason in _NO_ROOM):
        raise NotYetError(error) from error
