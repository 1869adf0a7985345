"""The results of a case in its folder: which files belong to it, and whether they are whole."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from batch.cases import sha256
from batch.errors import InputError

CASE_FILE = "case.json"
LESIONS_FILE = "lesions.mha"
SEVERITY_FILE = "severity.json"
LESIONS_SLUG = "covid-19-lesion-segmentation"
SEVERITY_SLUG = "covid-19-severity"
FILE_NAMES = {LESIONS_SLUG: LESIONS_FILE, SEVERITY_SLUG: SEVERITY_FILE}
"""What outputs are called in a case's folder; others keep the path that the platform gives them."""

_VOXEL_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}


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


def require_whole(path: Path) -> None:
    """Check that a downloaded file did not end too early, as far as its format tells.

    Args:
        path: .mha and .json are checked; of others the client compares the length that the platform states.

    Raises:
        InputError: it did.
    """
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError as error:
            raise InputError(f"{path.name}: cut short or damaged ({error})") from error
    elif path.suffix == ".mha":
        got, expected = _voxel_bytes(content)
        if got != expected:
            raise InputError(f"{path.name}: cut short or damaged, got {got} of {expected} bytes")
    elif not content:
        raise InputError(f"{path.name}: empty")


def _voxel_bytes(content: bytes) -> tuple[int, int]:
    """How many bytes of voxels a .mha has, and how many it should have."""
    end = re.search(rb"^ElementDataFile\s*=\s*LOCAL\s*?\n", content, flags=re.MULTILINE)
    header = content[: end.start()].decode("latin-1") if end else ""
    fields = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", header, flags=re.MULTILINE))
    kind = _VOXEL_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"), 0)
    size = [int(word) for word in fields.get("DimSize", "").split() if word.isdecimal()]
    expected = kind * math.prod(size) * int(fields.get("ElementNumberOfChannels", "1"))
    if end is None or not expected:
        return 0, max(1, expected)
    voxels = content[end.end() :]
    if fields.get("CompressedData", "False").lower().startswith("t"):
        stream = zlib.decompressobj()
        try:
            got = len(stream.decompress(voxels))
        except zlib.error:
            return 0, expected
        return (got if stream.eof else min(got, expected - 1)), expected
    return len(voxels), expected
