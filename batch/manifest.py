"""What is known of every case, kept in one JSON file so that a run can stop at any time and go on later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from batch.cases import Case, shortened
from batch.errors import InputError

FILE_NAME = "manifest.json"
PENDING = "Pending"
SUCCEEDED = "Succeeded"
UNSUCCESSFUL = ("Failed", "Cancelled")


class CaseRecord(BaseModel):
    """The state of one case.

    Attributes:
        inputs: SHA-256 of each input file, by slug.
        job: the job's pk on the platform; None until it was started.
        status: `Pending` before the start, then the platform's own word.
        outputs: the downloaded files, relative to the case's folder; None until they are all there.
        error: what went wrong last; None if nothing did.
    """

    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, str]
    job: str | None = None
    status: str = PENDING
    outputs: list[str] | None = None
    error: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the outputs are here."""
        return self.outputs is not None

    @property
    def is_active(self) -> bool:
        """Whether the platform has a job of this case that has not ended."""
        return self.job is not None and self.status not in (SUCCEEDED, *UNSUCCESSFUL)

    @property
    def is_unsuccessful(self) -> bool:
        """Whether the platform has given this case up."""
        return self.status in UNSUCCESSFUL


class Manifest(BaseModel):
    """All cases of one algorithm in one output folder."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    algorithm: str
    cases: dict[str, CaseRecord] = {}

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of an output folder.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = folder / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path}: got no such file, expected the folder of an earlier run") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path}: got a damaged manifest: {place}: {first['msg']}; restore it") from error

    @classmethod
    def load_or_new(cls, folder: Path, *, algorithm: str) -> Manifest:
        """Read the manifest of an output folder, or begin one.

        Raises:
            InputError: the manifest is damaged, or of another algorithm.
        """
        if not (folder / FILE_NAME).exists():
            return cls(algorithm=algorithm)
        manifest = cls.load(folder)
        if manifest.algorithm != algorithm:
            raise InputError(
                f"{folder}: got algorithm {algorithm}, expected {manifest.algorithm} as before; choose another --out"
            )
        return manifest

    def save(self, folder: Path) -> None:
        """Write the manifest whole or not at all."""
        partial = folder / f".{FILE_NAME}.partial"
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / FILE_NAME)

    def plan(self, cases: Iterable[Case], *, retry_failed: bool = False) -> None:
        """Take up new cases, and make ready to try again what could not be started or fetched.

        Args:
            cases: the cases to run.
            retry_failed: begin cases anew whose job ended without success. Each costs the platform's credits again.

        Raises:
            InputError: an input file is not the one that its job was started with.
        """
        changed = []
        for case in cases:
            inputs = case.sha256()
            record = self.cases.setdefault(case.name, CaseRecord(inputs=inputs))
            if record.job is None or (retry_failed and record.is_unsuccessful):
                self.cases[case.name] = CaseRecord(inputs=inputs)
            elif record.inputs != inputs:
                changed.append(case.name)
        if changed:
            raise InputError(
                f"got other input files than those of {len(changed)} earlier jobs ({shortened(changed)}), "
                "expected the same; choose another --out"
            )
        self.forget_fetch_errors()

    def forget_fetch_errors(self) -> None:
        """Let outputs that could not be fetched be tried again."""
        for record in self.cases.values():
            if record.status == SUCCEEDED:
                record.error = None
