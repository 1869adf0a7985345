"""A run that is killed at any step and run again ends as if it had not been."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batch.manifest import Manifest

ROOT = Path(__file__).parents[2]


def ending(folder: Path) -> dict[str, Any]:
    """The manifest without what tells one attempt from another, and the bytes of all results."""
    manifest = Manifest.load(folder)
    for record in manifest.cases.values():
        assert record.attempt is not None and record.uploads.keys() == {"ct-image", "pulmonary-lobes"}
        record.attempt, record.uploads = None, {}
    results = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    return results | {"manifest.json": manifest.model_dump()}


@pytest.mark.parametrize("names", [["a"], pytest.param(["a", "b"], marks=pytest.mark.slow)])
def test_killed_at_every_step(platform, standin, write_cases, inputs, tmp_path, names) -> None:
    write_cases(names)
    for step in range(1, 300):
        platform.account(f"kill-{step}").statuses = ("Queued",)
    arguments = [platform.url, standin.SLUG, str(inputs["scans"]), str(inputs["lobes"]), str(tmp_path / "killed")]
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_steps.py")), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    steps = int(result.stdout)
    assert steps > 40 * len(names)
    unharmed = ending(tmp_path / "killed" / str(steps + 1))
    assert unharmed.keys() >= {"manifest.json", "a/case.json", "a/lesions.mha", "a/severity.json"}
    for step in range(1, steps + 1):
        account = platform.account(f"kill-{step}")
        assert ending(tmp_path / "killed" / str(step)) == unharmed, f"killed at step {step}"
        assert [name[0] for name in account.uploaded()] == sorted(2 * names), f"killed at step {step}"
        assert [job.names["ct-image"][0] for job in account.jobs.values()] == names, f"killed at step {step}"
        assert account.breaches == []
