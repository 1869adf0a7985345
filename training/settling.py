"""Batch norm's statistics as they will be needed: of many images, whose contrast nobody stretched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.batches import Batches

BATCHES = 16


@torch.no_grad()
def settle_statistics(network: nn.Module, plain: Callable[[nn.Module, int], object]) -> None:
    """Replace batch norm's running statistics by their mean over some batches as they are at inference.

    Stretched contrast moves all grey levels, and with them the statistics that are gathered in training: at inference
    they fit no image, and the network finds less than it has learnt. Weights and mode of the network stay.

    Args:
        network: without batch norm nothing is done.
        plain: passes a batch, given its number, through the network without augmentation.
    """
    norms = _norms(network)
    if not norms:
        return
    was_training, momenta = network.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches alike
    network.train()
    for number in range(BATCHES):
        plain(network, number)
    network.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass(frozen=True)
class PlainPasses:
    """Batches without augmentation, of which batch norm's statistics are taken.

    Attributes:
        through: passes a batch, given its number, through a network.
        settled: share of a training's steps from which the statistics stay.
    """

    through: Callable[[nn.Module, int], object]
    settled: float


def image_passes(batches: Batches[Any, Any], *, device: torch.device, settled: float) -> PlainPasses:
    """Batches whose items have an ``image`` (z, y, x) without augmentation, for a network of it alone."""

    def through(model: nn.Module, number: int) -> object:
        image = torch.stack([item.image[None] for item in batches[number]]).to(device)
        return model(image.contiguous(memory_format=torch.channels_last_3d))

    return PlainPasses(through, settled)


@dataclass(frozen=True)
class Statistics:
    """Batch norm's statistics in the course of a training.

    By the statistics of a small batch itself, a crop that lesion fills looks like one without any, and a network that
    is trained so throughout is another one at inference, where the statistics are those of many. From a step on they
    are those, and stay.

    Attributes:
        network: that is trained.
        plain: what the statistics are taken of; None leaves batch norm to itself.
        steps: of the training.
        fabric: precision and processes; each passes batches of its own.
    """

    network: nn.Module
    plain: PlainPasses | None
    steps: int
    fabric: Fabric

    def before_step(self, step: int) -> None:
        """Put the network into training mode."""
        if step == self._settled:
            self._settle()
        self.network.train()
        if self.plain and step >= self._settled:
            for norm in _norms(self.network):
                norm.eval()

    def before_use(self, steps: int) -> None:
        """Make the network, after some steps, fit for validation or as the result."""
        if steps <= self._settled:
            self._settle()

    @property
    def _settled(self) -> int:
        """The step from which the statistics stay."""
        return round(self.plain.settled * self.steps) if self.plain else self.steps

    def _settle(self) -> None:
        if self.plain is None:
            return
        through, fabric = self.plain.through, self.fabric

        def own(network: nn.Module, number: int) -> object:
            return through(network, number * fabric.world_size + fabric.global_rank)

        with fabric.autocast():
            settle_statistics(self.network, own)
        if fabric.world_size > 1:
            for statistic in (buffer for norm in _norms(self.network) for buffer in norm.buffers()):
                if statistic.is_floating_point():
                    statistic.copy_(fabric.all_reduce(statistic.clone(), reduce_op="mean"))  # type: ignore[arg-type]


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
