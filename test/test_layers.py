"""Which folder may import what, read from the sources without running them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = {
    "algorithm": {"algorithm"},
    "training": {"training", "algorithm", "evaluation"},
    "evaluation": {"evaluation"},
    "batch": {"batch"},
    "test": {"algorithm", "training", "evaluation", "batch"},
}
"""Each folder and those of ours that it may import."""

REQUIREMENTS = {"algorithm": "requirements.txt"} | {
    folder: f"{folder}/requirements.txt" for folder in PACKAGES if folder != "algorithm"
}
OPTIONAL = {
    "algorithm": "requirements-optional.txt",
    "training": "training/requirements-optional.txt",
    "test": "test/benchmarks/requirements.txt",
}

IMPORTED_BY_OTHERS = {"tensorboard"}  # torch.utils.tensorboard needs it

IMPORT_NAMES = {
    "connected-components-3d": "cc3d",
    "dynamic-network-architectures": "dynamic_network_architectures",
    "lightning-fabric": "lightning_fabric",
    "pydensecrf2": "pydensecrf",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "simpleitk": "SimpleITK",
}
"""Import name by distribution, where they differ."""

STANDARD_LIBRARY = sys.stdlib_module_names | {"tomllib"}  # not yet in Python 3.10


def source_files(root: Path, folder: str) -> list[Path]:
    return sorted((root / folder).rglob("*.py"))


def imported_packages(source: str) -> set[str]:
    """Top-level names of everything imported anywhere in a module, relative imports left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def required_packages(path: Path, *, follow: bool = True) -> set[str]:
    """Import names of what a requirements file names, in itself or (where followed) by -r."""
    names: set[str] = set()
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            names |= required_packages(path.parent / line.removeprefix("-r").strip()) if follow else set()
        elif line:
            distribution = re.split(r"[^A-Za-z0-9._-]", line)[0].lower()
            names.add(IMPORT_NAMES.get(distribution, distribution))
    return names


def import_breaches(root: Path, folder: str) -> Iterator[str]:
    allowed = PACKAGES[folder] | (STANDARD_LIBRARY - set(PACKAGES))
    requirements = REQUIREMENTS[folder]
    required = required_packages(root / requirements)
    if folder in OPTIONAL:
        required |= required_packages(root / OPTIONAL[folder], follow=False)
    for path in source_files(root, folder):
        for name in sorted(imported_packages(path.read_text()) - allowed):
            place = path.relative_to(root).as_posix()
            if name in PACKAGES:
                yield f"{place} imports {name}: {folder}/ may not"
            elif name not in required:
                yield f"{place} imports {name}: {requirements} does not name it"


def name_breaches(root: Path, folder: str) -> Iterator[str]:
    for path in source_files(root, folder):
        place = path.relative_to(root)
        inner = (*place.parts[1:-1], place.stem)
        if "utils" in inner:
            yield f"{place.as_posix()}: 'utils' says nothing"
        for name in inner:
            if name in STANDARD_LIBRARY:
                yield f"{place.as_posix()}: '{name}' is a standard-library module"
        if folder == "test" and path.name == "__init__.py":
            yield f"{place.as_posix()}: there are no packages under test/"


def breaches(root: Path) -> list[str]:
    return [line for folder in PACKAGES for check in (import_breaches, name_breaches) for line in check(root, folder)]


def test_the_project_keeps_its_layers() -> None:
    assert breaches(ROOT) == []


@pytest.mark.parametrize("folder", [folder for folder in PACKAGES if folder != "test"])
def test_requirements_name_nothing_unused(folder: str) -> None:
    used = set().union(*(imported_packages(path.read_text()) for path in source_files(ROOT, folder)))
    for requirements in (REQUIREMENTS[folder], OPTIONAL.get(folder, REQUIREMENTS[folder])):
        assert required_packages(ROOT / requirements, follow=False) - used - IMPORTED_BY_OTHERS == set()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project that breaks no rule."""
    files = {
        "requirements.txt": "numpy>=1\nSimpleITK>=2 # files\nuvicorn[standard]>=0.3\n",
        "requirements-optional.txt": "-r requirements.txt\nlungmask\n",
        "training/requirements.txt": "-r ../requirements.txt\nscikit-learn\n",
        "training/requirements-optional.txt": "-r requirements.txt\ndask[distributed]\n",
        "evaluation/requirements.txt": "pandas\n",
        "batch/requirements.txt": "gcapi>=0.16,<0.17\n",
        "test/benchmarks/requirements.txt": "",
        "test/requirements.txt": "-r ../training/requirements.txt\npytest\n",
        "algorithm/images.py": "import os, numpy.typing\nimport SimpleITK as sitk\n",
        "algorithm/lobes.py": "import lungmask\n",
        "algorithm/server.py": "def serve():\n    import uvicorn\n    from . import images\n",
        "training/chunks.py": "import sklearn.metrics, evaluation.metrics, dask\nfrom algorithm.images import read\n",
        "evaluation/metrics.py": "import pandas\nfrom evaluation import masks\n",
        "batch/client.py": "import gcapi\n",
        "test/algorithm/test_images.py": "import pytest\nimport algorithm.images, batch.client\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_clean_tree_has_no_breach(tree: Path) -> None:
    assert breaches(tree) == []


@pytest.mark.parametrize(
    ("name", "text", "breach"),
    [
        ("algorithm/x.py", "import training", "algorithm/x.py imports training: algorithm/ may not"),
        ("algorithm/x.py", "import os, training.chunks", "algorithm/x.py imports training: algorithm/ may not"),
        ("algorithm/a/b.py", "from evaluation import x", "algorithm/a/b.py imports evaluation: algorithm/ may not"),
        (
            "evaluation/x.py",
            "from algorithm.x import y",
            "evaluation/x.py imports algorithm: evaluation/ may not",
        ),
        ("batch/x.py", "import algorithm", "batch/x.py imports algorithm: batch/ may not"),
        ("training/x.py", "import batch", "training/x.py imports batch: training/ may not"),
        ("algorithm/x.py", "import pandas", "algorithm/x.py imports pandas: requirements.txt does not name it"),
        (
            "evaluation/x.py",
            "def f():\n    if True:\n        from sklearn.metrics import x",
            "evaluation/x.py imports sklearn: evaluation/requirements.txt does not name it",
        ),
        (
            "test/batch/test_x.py",
            "import pandas",
            "test/batch/test_x.py imports pandas: test/requirements.txt does not name it",
        ),
        ("algorithm/statistics.py", "", "algorithm/statistics.py: 'statistics' is a standard-library module"),
        ("training/json/a.py", "", "training/json/a.py: 'json' is a standard-library module"),
        ("training/utils/a.py", "", "training/utils/a.py: 'utils' says nothing"),
        ("batch/utils.py", "", "batch/utils.py: 'utils' says nothing"),
        ("test/batch/__init__.py", "", "test/batch/__init__.py: there are no packages under test/"),
    ],
)
def test_each_breach_is_found(tree: Path, name: str, text: str, breach: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert breaches(tree) == [breach]
