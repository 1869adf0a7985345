"""Stages that are killed again and again, and started again, end with what an unbroken run ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
STAGES = ("prepare", "vessels", "regress", "cam", "pseudo")  # all that write more than a checkpoint or a table

DRIVER = """
import os, signal, sys
from pathlib import Path

import torch

from training.parallel import Workers
from training.run import STAGES
from training.settings import TrainingConfig
from training.stages import Run, execute

torch.set_num_threads(1)  # a forked process has no threads of its parent
MOMENTS = (5, 6, 8, 11, 14)
data, directory, config, *names = sys.argv[1:]


def die_at(moment):
    '''Kill this process at that one of all moments before a file is on the disk, and before it has its name.'''
    left = iter(range(moment - 1, -1, -1))

    def between(function):
        def dies(*args, **kwargs):
            if next(left, None) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return dies

    os.fsync, os.replace, Path.rename = map(between, (os.fsync, os.replace, Path.rename))


def start(run, stage, *, moment):
    '''Whether the stage, in another process, came to its end.'''
    child = os.fork()
    if child == 0:
        if moment:
            die_at(moment)
        execute(run, stage)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    return status == 0


for variant in ("unbroken", "killed"):
    run = Run(Path(data), Path(directory) / variant, TrainingConfig.model_validate_json(config), "cpu", Workers(1))
    for stage in (stage for stage in STAGES if stage.name in names):
        moments = (*MOMENTS, None) if variant == "killed" else (None,)
        killed = next(k for k, moment in enumerate(moments) if start(run, stage, moment=moment))
        print(variant, stage.name, "killed", killed, flush=True)
"""


def files(folder: Path) -> dict[str, Path]:
    """All files of a stage but those that tell when it ran, how, and from what."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {n: p for n, p in found.items() if n not in ("done.json", "basis.json") and "tensorboard" not in n}


def test_killed_at_many_moments_and_run_again_ends_like_an_unbroken_run(phantoms, tiny_config, tmp_path):
    regress = tiny_config.regress.model_copy(update={"steps": 5})
    config = tiny_config.model_copy(update={"regress": regress})
    words = [sys.executable, "-c", DRIVER, phantoms, tmp_path, config.model_dump_json(), *STAGES]
    done = subprocess.run(list(map(str, words)), env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    for stage in STAGES:
        assert re.search(f"killed {stage} killed [1-5]", done.stdout)
        unbroken, killed = (tmp_path / name / stage for name in ("unbroken", "killed"))
        expected, found = files(unbroken), files(killed)
        assert found.keys() == expected.keys()
        for name, path in expected.items():
            if path.suffix == ".pt":  # which may say the same in other bytes
                pair = (torch.load(one, weights_only=True) for one in (found[name], path))
                torch.testing.assert_close(*pair, rtol=0, atol=0, msg=name)
            else:
                assert found[name].read_bytes() == path.read_bytes(), name
        records = [json.loads((folder / "done.json").read_text()) for folder in (unbroken, killed)]
        assert records[0]["results"] == records[1]["results"]
