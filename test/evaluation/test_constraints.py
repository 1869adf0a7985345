"""The evaluation image's versions are the project's: a copy, since the image is built from its own folder."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import evaluation

FOLDER = Path(evaluation.__file__).parent


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def name_of(line: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line)[0]).lower()


def needed() -> set[str]:
    """Names of all distributions that the requirements need on this machine, those of extras left out."""
    found: set[str] = set()
    to_do = [name_of(line) for line in lines_of(FOLDER / "requirements.txt")]
    while to_do:
        name = to_do.pop()
        if name in found:
            continue
        try:
            wanted = requires(name) or []
        except PackageNotFoundError:  # of another system or Python
            continue
        found.add(name)
        to_do += [name_of(line) for line in wanted if not re.search(r";.*\bextra\b", line)]
    return found


def test_all_that_is_needed_has_the_projects_versions() -> None:
    projects, ours = lines_of(FOLDER.parent / "constraints.txt"), lines_of(FOLDER / "constraints.txt")
    names = {name_of(line) for line in ours}
    assert len(needed()) > 20
    assert needed() <= names
    assert ours == [line for line in projects if name_of(line) in names]


def test_the_image_installs_them() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert "--constraint evaluation/constraints.txt" in text
    assert "!constraints.txt" in (FOLDER / ".dockerignore").read_text().splitlines()


def test_the_version_is_the_projects() -> None:
    algorithm = FOLDER.parent / "algorithm" / "__init__.py"
    assert f'__version__ = "{evaluation.__version__}"' in algorithm.read_text()
