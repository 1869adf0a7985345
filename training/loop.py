"""The training loop of every network, on Lightning Fabric."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from algorithm.errors import InputError
from training.batches import Batches
from training.files import missing, write_whole
from training.logbook import Logbook
from training.parallel import console
from training.settings import LoopSettings
from training.settling import PlainPasses, Statistics
from training.stages import Run, processes

Network = TypeVar("Network", bound=nn.Module)

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # what mallopt sets, by glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 1024, 65536  # glibc's defaults
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

Terms = dict[str, tuple[float, Tensor | None]]
"""Loss terms by name: weight and value, None where it is not needed at this step; their weighted sum is minimised."""


@dataclass(frozen=True)
class Validation:
    """How a network is judged while it is trained; the best one is kept.

    Attributes:
        every: steps between validations; there is one after the last step in any case.
        first: steps before which a network is not eligible as the best.
        measure: numbers of a network after some steps, by name.
        rank: what makes one set of numbers better than another: the greatest tuple is the best.
    """

    every: int
    first: int
    measure: Callable[[nn.Module, int, Logbook], dict[str, float]]
    rank: Callable[[dict[str, float]], tuple[float, ...]]


def make_fabric(run: Run, precision: str) -> Fabric:
    """Fabric for a run's device; in processes that torchrun started, one of as many as there are.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    options: dict[str, Any] = {"accelerator": run.device, "precision": precision, "devices": here}
    if processes() > 1:
        options |= {"strategy": "ddp", "num_nodes": processes() // here}
    fabric = Fabric(**options)
    fabric.launch()
    fabric.seed_everything(run.config.seed, verbose=False)
    return fabric


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what this process frees, where it is glibc.

    It gives large tensors back to the system at once, and to get the same pages anew, cleared, for the next step takes
    a third of a step's time. Where tensors differ in size, gaps would pile up: so for a training's steps alone.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        library.malloc_trim(0)


def train(
    fabric: Fabric,
    network: nn.Module,
    batches: Batches[Any, Any],
    terms: Callable[[nn.Module, Any, int], Terms],
    settings: LoopSettings,
    folder: Path,
    *,
    plain: PlainPasses | None = None,
    validation: Validation | None = None,
    readers: int = 0,
) -> nn.Module:
    """Train a network, or go on training it from the folder's checkpoint.

    Everything random belongs to a step and comes from (seed, step), so that a resumed run repeats an unbroken one.

    Args:
        fabric: device, precision and processes.
        network: to begin with.
        batches: what to learn from, a batch a step and process.
        terms: the loss terms of the network on a batch at a step.
        settings: steps, optimiser, checkpoints.
        folder: where checkpoints and logs go.
        plain: of which batch norm's statistics are taken, before each validation until they stay.
        validation: how to find the best network; without it the last one is the result.
        readers: processes that read ahead for a GPU.

    Returns:
        The network after the last step.
    """
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    optimiser = make_optimiser(network, settings)
    state = _read_checkpoint(folder, processes=fabric.world_size)
    if state:
        network.load_state_dict(state["network"])
    model, fabric_optimiser = fabric.setup(network, optimiser)
    if state:
        optimiser.load_state_dict(state["optimiser"])  # now that the parameters are on the device
    done, best = (state["step"], state["best"]) if state else (0, [])
    steps = range(done, settings.steps)
    statistics = Statistics(network, plain, settings.steps, fabric)
    with (
        Logbook(folder, done=done, is_writer=fabric.is_global_zero) as logbook,
        _progress(folder.name, done, settings.steps, visible=fabric.is_global_zero) as advance,
        freed_memory_kept() if fabric.device.type == "cpu" else nullcontext(),
    ):
        for step, data in zip(steps, _loader(fabric, batches, steps, readers), strict=True):
            statistics.before_step(step)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, step)
            parts = terms(model, data, step)
            loss = torch.stack([weight * value for weight, value in parts.values() if value is not None]).sum()
            fabric_optimiser.zero_grad()
            fabric.backward(loss)
            fabric_optimiser.step()
            values = _mean_over_processes(fabric, {"loss": loss, **{name: value for name, (_, value) in parts.items()}})
            if not math.isfinite(values["loss"]):
                raise RuntimeError(f"{folder.name}: the loss is {values['loss']} at step {step}; lower learning_rate")
            logbook.step(step, {name: values.get(name) for name in ("loss", *parts)})
            advance(values["loss"])
            finished = step + 1
            is_better = False
            is_last = finished == settings.steps
            is_judged = validation is not None and (finished % validation.every == 0 or is_last)
            if is_judged or is_last:
                statistics.before_use(finished)
            if validation and is_judged:
                before, best = best, _validate(fabric, network, validation, finished, best, folder, logbook)
                is_better = best != before
            if finished % settings.checkpoint_every == 0 or is_last or is_better:
                _save_checkpoint(fabric, folder, network, optimiser, finished, best)
    return network


def make_optimiser(network: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """Adam, or stochastic gradient descent with the paper's momentum of 0.9."""
    if settings.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=0.9)
    return torch.optim.Adam(network.parameters(), lr=settings.learning_rate)


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Learning rate of a step: constant, or falling from its full value to zero along half a cosine."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def load_trained(network: Network, folder: Path) -> Network:
    """Load the best weights of a finished training, the last ones if it had no validation, for use on the CPU.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / BEST if (folder / BEST).is_file() else folder / CHECKPOINT
    network.load_state_dict(_read(path)["network"])
    return network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def _loader(fabric: Fabric, batches: Batches[Any, Any], steps: range, readers: int) -> DataLoader[Any]:
    """This process's batch of each step; on a GPU, read ahead in other processes."""
    readers = readers if fabric.device.type == "cuda" else 0
    return DataLoader(
        batches,
        batch_size=None,
        sampler=[step * fabric.world_size + fabric.global_rank for step in steps],
        num_workers=readers,
        collate_fn=_unchanged,
        multiprocessing_context="spawn" if readers else None,
    )


def _unchanged(data: Any) -> Any:
    return data


def _mean_over_processes(fabric: Fabric, values: dict[str, Tensor | None]) -> dict[str, float]:
    """The mean of each value; values that are None are left out."""
    known = {name: value.detach().float() for name, value in values.items() if value is not None}
    together = torch.stack(list(known.values()))
    mean = fabric.all_reduce(together, reduce_op="mean") if fabric.world_size > 1 else together
    assert isinstance(mean, Tensor)
    return dict(zip(known, mean.tolist(), strict=True))


def _validate(
    fabric: Fabric,
    network: nn.Module,
    validation: Validation,
    finished: int,
    best: list[float],
    folder: Path,
    logbook: Logbook,
) -> list[float]:
    """Measure the network, keep it if it is the best, and return the rank of the best."""
    network.eval()
    with torch.inference_mode(), fabric.autocast():
        values = fabric.broadcast(validation.measure(network, finished, logbook))  # batch statistics differ
    logbook.validation(finished - 1, values)
    rank = list(validation.rank(values))
    if finished < validation.first or (best and rank <= best):
        return best
    keep_best(fabric, network, finished, folder)
    return rank


def keep_best(fabric: Fabric, network: nn.Module, finished: int, folder: Path) -> None:
    """Write the weights that `load_trained` reads: those after some steps, the best so far."""
    if fabric.is_global_zero:
        state = {"step": finished, "network": network.state_dict()}
        write_whole(folder / BEST, lambda file: torch.save(state, file))
    fabric.barrier()


def _save_checkpoint(
    fabric: Fabric, folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer, step: int, best: list[float]
) -> None:
    if fabric.is_global_zero:
        state = {"step": step, "network": network.state_dict(), "optimiser": optimiser.state_dict(), "best": best}
        state |= {"processes": fabric.world_size}
        write_whole(folder / CHECKPOINT, lambda file: torch.save(state, file))
    fabric.barrier()


def _read_checkpoint(folder: Path, *, processes: int) -> dict[str, Any] | None:
    """The folder's checkpoint; None where there is none yet.

    Raises:
        InputError: it is damaged, or was made by another number of processes, whose batches together were of another
            size.
    """
    if not (folder / CHECKPOINT).is_file():
        (folder / BEST).unlink(missing_ok=True)
        return None
    state = _read(folder / CHECKPOINT)
    if state["processes"] != processes:
        raise InputError(
            f"{folder}: begun with {state['processes']} processes, got {processes}; use as many (torchrun "
            f"--nproc-per-node), or delete this folder to train again"
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise missing(path) from error
    except Exception as error:  # torch raises what its unpickler or its zip reader raises
        raise InputError(f"{path}: damaged checkpoint; delete the folder {path.parent} to train again") from error
    return state


@contextmanager
def _progress(name: str, done: int, total: int, *, visible: bool) -> Iterator[Callable[[float], None]]:
    """A progress bar with the current loss and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not visible) as bar:
        task = bar.add_task(name, total=total, completed=done, loss="")
        yield lambda loss: bar.update(task, advance=1, loss=f"loss {loss:.4f}")
