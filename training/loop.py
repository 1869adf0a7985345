"""The training loop of every network, on Lightning Fabric."""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from algorithm.errors import InputError
from training.config import LoopSettings
from training.stages import console

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

Terms = dict[str, tuple[float, Tensor]]
"""Loss terms by name: weight and value; their weighted sum is minimised."""


def make_fabric(device: str, precision: str) -> Fabric:
    """Fabric for a device setting.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto")
    return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]


def train(
    fabric: Fabric,
    network: nn.Module,
    steps: Dataset[Any],
    terms: Callable[[nn.Module, Any, int], Terms],
    settings: LoopSettings,
    folder: Path,
) -> nn.Module:
    """Train a network, or go on training it from the folder's checkpoint.

    Everything random belongs to a step and comes from (seed, step), so that a resumed run repeats an unbroken one.

    Args:
        fabric: device and precision.
        network: freshly initialised.
        steps: item k is the data of step k.
        terms: the loss terms of the network on that data at that step.
        settings: steps, learning rate, checkpoints.
        folder: where checkpoint and log go.

    Returns:
        The trained network.
    """
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    model, fabric_optimiser = fabric.setup(network, optimiser)
    model.train()
    done = _load_checkpoint(folder, network, optimiser)
    _truncate_log(folder, done)
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(done, settings.steps),
        num_workers=settings.workers,
        collate_fn=_unchanged,
        multiprocessing_context="spawn" if settings.workers else None,
    )
    with _progress(folder.name, done, settings.steps) as advance:
        for step, data in enumerate(loader, start=done):
            for group in optimiser.param_groups:
                group["lr"] = cosine(settings.learning_rate, step / settings.steps)
            parts = terms(model, data, step)
            loss = torch.stack([weight * value for weight, value in parts.values()]).sum()
            if not torch.isfinite(loss):
                raise RuntimeError(f"{folder.name}: the loss is {loss.item()} at step {step}; lower the learning rate")
            fabric_optimiser.zero_grad()
            fabric.backward(loss)
            fabric_optimiser.step()
            _log(folder, step, {"loss": loss, **{name: value for name, (_, value) in parts.items()}})
            advance(loss.item())
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                _save_checkpoint(folder, network, optimiser, step + 1)
    return network


def load_trained(network: nn.Module, folder: Path) -> nn.Module:
    """Load the weights of a finished training into a network, in evaluation mode on the CPU."""
    state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    return network.eval()


def cosine(learning_rate: float, fraction: float) -> float:
    """Learning rate after a fraction of the steps, from its full value to zero along half a cosine."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))


def _unchanged(data: Any) -> Any:
    return data


def _load_checkpoint(folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save_checkpoint(folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    temporary = folder / (CHECKPOINT + ".tmp")
    torch.save({"step": step, "network": network.state_dict(), "optimiser": optimiser.state_dict()}, temporary)
    os.replace(temporary, folder / CHECKPOINT)


def _log(folder: Path, step: int, values: dict[str, Tensor]) -> None:
    path = folder / LOG
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["step", *values])
        writer.writerow([step, *(f"{value.item():.6g}" for value in values.values())])


def _truncate_log(folder: Path, steps: int) -> None:
    """Drop the lines of steps after the checkpoint, which will be written again."""
    path = folder / LOG
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[: steps + 1]), encoding="utf-8")


@contextmanager
def _progress(name: str, done: int, total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar with the current loss and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, completed=done, loss=math.nan)
        yield lambda loss: bar.update(task, advance=1, loss=loss)


def shuffled(count: int, batch: int, step: int, seed: int) -> Iterator[int]:
    """Indices of a step's batch when ``count`` items are gone through in a new random order every epoch."""
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        yield int(np.random.default_rng([seed, epoch]).permutation(count)[place])
