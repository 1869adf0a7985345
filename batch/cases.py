"""Scans and their lobe masks, paired by file name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from batch.errors import InputError

SCAN_SLUG = "ct-image"
LOBES_SLUG = "pulmonary-lobes"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One scan to run.

    Attributes:
        name: file name of scan and lobes without .mha.
        files: the input files by the slug of their socket.
    """

    name: str
    files: dict[str, Path]

    def sha256(self) -> dict[str, str]:
        """Hexadecimal SHA-256 of each input file, by slug."""
        digests: dict[str, str] = {}
        for slug, path in self.files.items():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            digests[slug] = digest.hexdigest()
        return digests


def pair_cases(*, scans: Path, lobes: Path) -> list[Case]:
    """Pair `<name>.mha` of both folders, sorted by name. Other files are left alone, which the log says.

    Raises:
        InputError: a folder is missing or has no .mha, or a file of one has no partner in the other.
    """
    scan_files, lobe_files = _mha_files(scans), _mha_files(lobes)
    alone = scan_files.keys() ^ lobe_files.keys()
    if alone:
        raise InputError(
            f"{scans} and {lobes}: got {len(alone)} files without a partner of the same name ({shortened(alone)}), "
            "expected one lobe mask a scan"
        )
    return [Case(name, {SCAN_SLUG: scan_files[name], LOBES_SLUG: lobe_files[name]}) for name in sorted(scan_files)]


def shortened(names: Iterable[str], *, most: int = 5) -> str:
    """The first few names, sorted, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _mha_files(directory: Path) -> dict[str, Path]:
    if not directory.is_dir():
        raise InputError(f"{directory}: got no such folder, expected one with .mha files")
    visible = [path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")]
    files = {path.stem: path for path in visible if path.suffix == ".mha"}
    if not files:
        raise InputError(f"{directory}: got no .mha file, expected at least one; convert the scans")
    if len(files) < len(visible):
        others = shortened(path.name for path in visible if path.suffix != ".mha")
        log.warning("%s: left alone, not .mha: %s", directory, others)
    return files
