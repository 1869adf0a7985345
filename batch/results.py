"""The results of a case in its folder: which files belong to it, and whether they are as they were written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from batch.cases import LOBES_SLUG, sha256
from batch.errors import InputError

CASE_FILE = "case.json"
LESIONS_FILE = "lesions.mha"
SEVERITY_FILE = "severity.json"
LOBES_FILE = "lobes.mha"
LESIONS_SLUG = "covid-19-lesion-segmentation"
SEVERITY_SLUG = "covid-19-severity"
FILE_NAMES = {LESIONS_SLUG: LESIONS_FILE, SEVERITY_SLUG: SEVERITY_FILE, LOBES_SLUG: LOBES_FILE}
"""What outputs are called in a case's folder; others keep the path that the platform gives them."""


class CaseFile(BaseModel):
    """case.json, which `python -m algorithm segment-batch` writes in the same way.

    Attributes:
        computed: pk of the job on the platform, or ``here``.
        inputs: SHA-256 of each input, or its address on the platform, by slug.
        outputs: SHA-256 of each file beside case.json, by path.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    computed: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def require_no_folder(folder: Path) -> None:
    """Check that the place of a case's results is free.

    Raises:
        InputError: it is not.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already; move it away, then run again")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_case_file(folder: Path, *, computed: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Complete a folder that holds all outputs of a case.

    Args:
        folder: has the outputs, and nothing else.
        computed: pk of the job on the platform.
        inputs: what each input is, by slug.

    Returns:
        SHA-256 of each output, by path.
    """
    outputs = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
    outputs = dict(sorted(outputs.items()))
    case_file = CaseFile(computed=computed, inputs=dict(inputs), outputs=outputs)
    (folder / CASE_FILE).write_text(case_file.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return outputs


def read_case_file(folder: Path) -> CaseFile | None:
    """What a folder says of its case; None where it says nothing that can be used, or a file is not as it says."""
    try:
        case_file = CaseFile.model_validate_json((folder / CASE_FILE).read_bytes())
        whole = all(sha256(folder / name) == digest for name, digest in case_file.outputs.items())
    except (OSError, ValidationError):
        return None
    return case_file if whole else None


def finished_here(folder: Path, inputs: Mapping[str, str]) -> dict[str, str] | None:
    """The outputs that `segment-batch` computed from the same inputs; None where it did not."""
    case_file = read_case_file(folder)
    if case_file is None or case_file.computed != "here" or case_file.inputs != inputs:
        return None
    return case_file.outputs
