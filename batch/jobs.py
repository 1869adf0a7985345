"""Jobs on the platform: started, watched, and their outputs fetched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from batch.cases import LOBES_SLUG, SCAN_SLUG, Case
from batch.connection import Connection, describe
from batch.errors import InputError
from batch.manifest import SUCCEEDED, CaseRecord, Manifest

MOST_ACTIVE_JOBS = 16  # the platform's limit for one user
MOST_FAILED_STARTS = 3  # in a row; each has uploaded its files in vain, and uploads are limited too
MOST_SILENT_ROUNDS = 10
FIRST_DELAY_S = 10.0
LONGEST_DELAY_S = 120.0

log = logging.getLogger(__name__)


class StartError(Exception):
    """A job could not be started."""


class NoRoomError(StartError):
    """The account has as many active jobs as the platform allows."""


@dataclass
class Batch:
    """The cases of one output folder and the platform that works on them; the manifest is saved at each change."""

    connection: Connection
    manifest: Manifest
    folder: Path

    def run(self, cases: Iterable[Case], *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Start every pending case as room permits, wait for all jobs and fetch their outputs.

        What goes wrong with a case is written to its record. Nothing is uploaded while 16 jobs are active.

        Args:
            cases: the cases to run; those without a pending record are passed over.
            sleep: waits for so many seconds; between 10 and 120, the longer the less happens.

        Raises:
            InputError: the algorithm cannot take these inputs, the account has no room for jobs, or the platform
                stays silent. The manifest holds all that was reached.
        """
        pending = [case for case in cases if self.manifest.cases[case.name].job is None]
        if pending:
            self._check_algorithm()
        delay_s, silent_rounds, has_room = FIRST_DELAY_S, 0, True
        while True:
            if has_room:
                has_room = self._start(pending)
            ended, answered = self.refresh()
            if not self._active() and not pending:
                return
            silent_rounds = 0 if answered else silent_rounds + 1
            if silent_rounds >= MOST_SILENT_ROUNDS:
                raise InputError(f"grand-challenge.org: no answer in {silent_rounds} rounds; run again to go on")
            if ended:
                delay_s, has_room = FIRST_DELAY_S, True
                continue
            sleep(delay_s)
            delay_s = min(1.5 * delay_s, LONGEST_DELAY_S)

    def refresh(self) -> tuple[int, bool]:
        """Ask once for the status of every active job, and fetch the outputs of those that succeeded.

        Returns:
            How many jobs ended, and whether the platform answered at all (True if there was nothing to ask).
        """
        ended, answers, asked = 0, 0, 0
        for name, record in self.manifest.cases.items():
            waits_for_outputs = record.status == SUCCEEDED and not record.is_finished and record.error is None
            if not (record.is_active or waits_for_outputs):
                continue
            asked += 1
            try:
                job = self.connection.client.algorithm_jobs.detail(pk=record.job)
            except self.connection.errors as error:
                log.warning("%s: no status: %s", name, describe(error))
                continue
            answers += 1
            before = record.model_copy()
            record.status = job.status
            if record.status == SUCCEEDED:
                self._fetch(name, record, job)
            elif record.is_unsuccessful:
                record.error = f"{job.status}, see {job.url}"
            ended += before.is_active and not record.is_active
            if record != before:
                log.info("%s: %s", name, record.error or record.status)
                self.manifest.save(self.folder)
        return ended, answers > 0 or asked == 0

    def _active(self) -> int:
        return sum(record.is_active for record in self.manifest.cases.values())

    def _check_algorithm(self) -> None:
        slug = self.manifest.algorithm
        try:
            algorithm = self.connection.client.algorithms.detail(slug=slug)
        except self.connection.errors as error:
            raise InputError(f"algorithm {slug}: not found, or not open to you: {describe(error)}") from error
        offered = [{socket.slug for socket in interface.inputs} for interface in algorithm.interfaces]
        if {SCAN_SLUG, LOBES_SLUG} not in offered:
            listed = "; ".join(", ".join(sorted(slugs)) for slugs in offered)
            raise InputError(f"algorithm {slug}: got inputs {listed or 'none'}, expected {SCAN_SLUG}, {LOBES_SLUG}")

    def _start(self, pending: list[Case]) -> bool:
        """Start cases from the head of the list, and take them off it, until no more jobs may be active.

        Returns:
            False if the platform had no room for a job: another try would upload its files again, so it has to wait
            until a job of this batch ends.
        """
        failed_starts = 0
        while pending and self._active() < MOST_ACTIVE_JOBS:
            case = pending[0]
            record = self.manifest.cases[case.name]
            try:
                record.job, record.status = self._post(case)
                record.error, failed_starts = None, 0
            except NoRoomError as error:
                if not self._active():
                    raise InputError(f"no room: {error}; wait for your other jobs, then run again") from error
                log.warning("%s: waits: %s", case.name, error)
                return False
            except StartError as error:
                record.error = f"not started: {error}"
                failed_starts += 1
            pending.pop(0)
            self.manifest.save(self.folder)
            log.info("%s: %s", case.name, record.error or f"started job {record.job}")
            if failed_starts == MOST_FAILED_STARTS:
                log.warning("%d starts failed in a row: %d cases are left for another run", failed_starts, len(pending))
                pending.clear()
        return True

    def _post(self, case: Case) -> tuple[str, str]:
        """Upload a case and start its job; the job's pk and status."""
        refusals: tuple[type[Exception], ...] = (*self.connection.errors, OSError, ValueError)
        try:
            inputs = [self.connection.socket_value(socket_slug=slug, file=file) for slug, file in case.files.items()]
            job = self.connection.client.start_algorithm_job(algorithm_slug=self.manifest.algorithm, inputs=inputs)
        except refusals as error:
            reason = describe(error)
            raise (NoRoomError if "too many active jobs" in reason.lower() else StartError)(reason) from error
        return job.pk, job.status

    def _fetch(self, name: str, record: CaseRecord, job: Any) -> None:
        """Download all outputs of a job beside their place, then move them there."""
        place = self.folder / name
        if place.exists():
            record.error = f"not fetched: {place} is there already; move it away, then run again"
            return
        failures: tuple[type[Exception], ...] = (*self.connection.errors, OSError)
        try:
            with TemporaryDirectory(dir=self.folder, prefix=".fetch-") as temporary:
                target = Path(temporary, name)
                for value in job.outputs:
                    self.connection.client.download_socket_value(value, output_directory=target)
                outputs = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
                if outputs:
                    target.rename(place)
        except failures as error:
            record.error = f"not fetched: {describe(error)}"
            return
        record.outputs = outputs or None
        record.error = None if outputs else f"no outputs, see {job.url}"
