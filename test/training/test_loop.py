"""The loop itself; what it trains is tested where it is built."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm.errors import InputError
from training.cam import CamNetwork, scan_cam
from training.cases import read_cases
from training.loop import BEST, CHECKPOINT, learning_rate, load_trained, make_fabric, make_optimiser
from training.prepare import prepared
from training.regress import new_network, train_dram
from training.settings import LoopSettings, TrainingConfig
from training.stages import Run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def toml(config: TrainingConfig, **regress: object) -> str:
    """Settings as a file: sections of plain values and inline tables."""

    def text(value: object) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{k} = {text(v)}" for k, v in value.items() if v is not None) + " }"
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(text, value)) + "]"
        return f'"{value}"' if isinstance(value, str) else str(value).lower()

    content = config.model_dump(mode="json")
    content["regress"] |= regress
    sections = {name: part for name, part in content.items() if isinstance(part, dict)}
    lines = [f"seed = {content['seed']}"]
    for name, part in sections.items():
        lines += [f"[{name}]", *(f"{key} = {text(value)}" for key, value in part.items() if value is not None)]
    return "\n".join(lines) + "\n"


def log(directory: Path) -> dict[str, np.ndarray]:
    with (directory / "regress" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


def test_two_processes_learn_like_one_with_twice_the_batch(ready, with_caches, tmp_path):
    """Batch statistics belong to a process, so the equality needs instance normalisation."""
    curves = []
    for processes, batch in ((1, 4), (2, 2)):
        config = tmp_path / f"{processes}.toml"
        config.write_text(toml(ready.config, batch=batch, norm="instance", steps=8))
        directory = with_caches(tmp_path / f"run{processes}")
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2] if processes == 2 else []
        subprocess.run(
            command(
                sys.executable, *start, "-m", "training", "regress", "--data", ready.data, "--run-dir", directory,
                "--config", config, "--device", "cpu",
            ),
            check=True, env=ENVIRONMENT, cwd=ROOT, timeout=240, capture_output=True,
        )  # fmt: skip
        curves.append(log(directory))
    assert list(curves[0]["step"]) == list(curves[1]["step"]) == list(range(8))
    steps = np.abs(np.diff(curves[0]["loss"])) / curves[0]["loss"][1:]
    assert np.median(steps) > 10 * 2e-3  # the curves go up and down by more than they may differ
    for term in ("loss", "interval", "equivariance", "entropy", "refinement"):
        np.testing.assert_allclose(curves[1][term], curves[0][term], rtol=2e-3, atol=1e-5, err_msg=term)


def run_on_two(*words: object, limit_s: float = 240) -> None:
    """Run Python with these words in two processes, neither of which is left when it takes too long."""
    start = command(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *words)
    process = subprocess.Popen(start, env=ENVIRONMENT, cwd=ROOT)
    try:
        assert process.wait(timeout=limit_s) == 0
    finally:
        process.terminate()  # torchrun ends its processes with itself
        process.wait()


def train_on_two(ready: Run, stage: str, directory: Path, config: Path) -> None:
    words = ("--data", ready.data, "--run-dir", directory, "--config", config, "--device", "cpu")
    run_on_two("-m", "training", stage, *words)


def test_two_processes_train_with_batch_norm_vessels_and_attention(ready, with_caches, tmp_path):
    """Batch norm's statistics differ between processes, and with them what each finds at the validations."""
    settings = ready.config.regress
    assert settings.norm == "batch" and settings.attention and settings.suppress_vessels
    config = tmp_path / "config.toml"
    config.write_text(toml(ready.config, batch=2, validate_every=1))
    directory = with_caches(tmp_path / "run")
    train_on_two(ready, "regress", directory, config)
    curve = log(directory)
    assert list(curve["step"]) == list(range(6))
    assert np.isfinite(curve["loss"]).all() and curve["refinement"][-1] > 0
    state = torch.load(directory / "regress" / CHECKPOINT, weights_only=True)
    assert state["step"] == 6 and state["network"]["attention.r.weight"].any()
    assert len((directory / "regress" / "validation.csv").read_text().splitlines()) == 1 + 6


UNLIKE = """
import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric

from training.loop import Validation, train
from training.settings import LoopSettings

fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
value = (1.0, 3.0, 2.0, 4.0) if fabric.global_rank == 0 else (4.0, 3.0, 2.0, 1.0)
measure = lambda network, step, logbook: {"value": value[step - 1]}
validation = Validation(every=1, first=0, measure=measure, rank=lambda found: (found["value"],))
settings = LoopSettings(steps=4, precision="32-true")
terms = lambda model, data, step: {"square": (1.0, model(data).square().mean())}
train(fabric, torch.nn.Linear(1, 1), torch.ones(8, 2, 1), terms, settings, Path(sys.argv[1]), validation=validation)
"""


def test_processes_that_measure_unlike_numbers_agree_on_the_best(tmp_path):
    """As batch norm makes them do; the first one decides, lest one wait for another that goes on."""
    script, folder = tmp_path / "unlike.py", tmp_path / "stage"
    script.write_text(UNLIKE)
    folder.mkdir()
    run_on_two(script, folder, limit_s=60)
    assert torch.load(folder / BEST, weights_only=True)["step"] == 4
    assert torch.load(folder / CHECKPOINT, weights_only=True)["best"] == [4.0]


def test_two_processes_make_the_maps_of_the_baseline(ready, with_caches, tmp_path):
    """With the weights and the statistics of the checkpoint, whichever process makes one."""
    config = tmp_path / "config.toml"
    config.write_text(toml(ready.config))
    directory = with_caches(tmp_path / "run")
    train_on_two(ready, "cam", directory, config)
    run = replace(ready, directory=directory)
    held_out = [case for case in read_cases(ready.data) if case.split == "test"]
    assert len(held_out) == 1
    network = load_trained(CamNetwork(width=ready.config.cam.width), directory / "cam")
    for case in held_out:
        scales, device = ready.config.pseudo.scales, torch.device("cpu")
        expected = scan_cam(network, prepared(run, case), ready.config.cam, scales=scales, device=device)
        np.testing.assert_allclose(np.load(directory / "cam" / f"{case.name}_cam.npy"), expected, atol=1e-3)


@pytest.mark.parametrize("stage", ["regress", "segment-reference"])
def test_killed_and_run_again_ends_like_an_unbroken_run(ready, with_caches, tmp_path, stage):
    content = ready.config.model_dump(mode="json")
    content["regress"] |= {"steps": 60, "checkpoint_every": 10, "validate_every": 15}
    content["segment"] |= {"steps": 30, "checkpoint_every": 5}
    config = tmp_path / "config.toml"
    config.write_text(toml(TrainingConfig.model_validate(content)))
    states = {}
    for name in ("unbroken", "killed"):
        directory = with_caches(tmp_path / name)
        words = command(
            sys.executable, "-m", "training", stage, "--data", ready.data, "--run-dir", directory, "--config", config,
            "--device", "cpu",
        )  # fmt: skip
        if name == "killed":
            kill_after_lines(words, directory / stage / "log.csv", 18)
        subprocess.run(words, check=True, env=ENVIRONMENT, cwd=ROOT, timeout=240, capture_output=True)
        states[name] = torch.load(directory / stage / CHECKPOINT, weights_only=True)
    assert all(torch.equal(states["unbroken"]["network"][k], states["killed"]["network"][k]) for k in
               states["unbroken"]["network"])  # fmt: skip
    logs = [(tmp_path / name / stage / "log.csv").read_bytes() for name in ("unbroken", "killed")]
    assert logs[0] == logs[1]
    if stage == "regress":
        best = [torch.load(tmp_path / name / stage / BEST, weights_only=True) for name in ("unbroken", "killed")]
        assert best[0]["step"] == best[1]["step"]
        assert all(torch.equal(best[0]["network"][k], best[1]["network"][k]) for k in best[0]["network"])


def kill_after_lines(words: list[str], path: Path, lines: int) -> None:
    process = subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") > lines):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was not through yet


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_damaged_checkpoint_is_named_and_never_gone_on_with(ready, share, tmp_path):
    settings = ready.config.regress
    torch.save({"step": 3, "best": [], "processes": 1, "network": new_network(settings).state_dict()}, tmp_path / BEST)
    whole = (tmp_path / BEST).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"checkpoint\.pt: damaged checkpoint; delete the folder .* to train again"):
        train_dram(ready, settings, tmp_path)
    (tmp_path / CHECKPOINT).rename(tmp_path / BEST)
    with pytest.raises(InputError, match=r"best\.pt: damaged checkpoint; delete the folder .* to train again"):
        load_trained(torch.nn.Linear(1, 1), tmp_path)


def test_a_gpu_that_is_not_there_is_refused(phantoms, tiny_config, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="device: got cuda, but PyTorch sees no usable GPU"):
        make_fabric(Run(phantoms, tmp_path, tiny_config, device="cuda"), "32-true")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_freed_memory_is_kept_for_the_next_tensor_and_given_back_at_the_end():
    """Pages that the process must ask for while it makes and frees tensors, and what it holds.

    The last tensors are larger, as the room of the earlier ones may be used again after its pages have been given back.
    """
    code = (
        "import os, resource, torch; from training.loop import freed_memory_kept\n"
        "def faults(size, times):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(times): torch.ones(size)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "before, plain = held(), faults(25_000_000, 20)\n"
        "with freed_memory_kept(): kept = faults(25_000_000, 20)\n"
        "print(plain, kept, held() - before, faults(250_000_000, 2))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT)
    plain, kept, held, after = map(int, output.split())
    assert kept < plain / 2
    assert after > plain * 0.75
    assert held < 50e6


def test_learning_rate_falls_along_a_cosine_or_stays():
    falling = LoopSettings(steps=4, learning_rate=0.1)
    rates = [learning_rate(falling, step) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)
    constant = LoopSettings(steps=4, learning_rate=0.1, schedule="constant")
    assert [learning_rate(constant, step) for step in range(5)] == [0.1] * 5


def test_the_papers_optimiser_has_momentum():
    network = torch.nn.Linear(1, 1)
    sgd = make_optimiser(network, LoopSettings(optimiser="sgd", learning_rate=1e-5))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.9 and sgd.defaults["lr"] == 1e-5
    assert isinstance(make_optimiser(network, LoopSettings()), torch.optim.Adam)
