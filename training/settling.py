"""Batch norm's statistics as they will be needed: of many images, whose contrast nobody stretched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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
class Statistics:
    """Batch norm's statistics in the course of a training.

    By the statistics of a small batch itself, a crop that lesion fills looks like one without any, and a network that
    is trained so throughout is another one at inference, where the statistics are those of many. From a step on they
    are those, and stay.

    Attributes:
        network: that is trained.
        plain: as for `settle_statistics`; None leaves batch norm to itself.
        settled: the step from which the statistics stay.
        autocast: context in which the network computes.
    """

    network: nn.Module
    plain: Callable[[nn.Module, int], object] | None
    settled: int
    autocast: Callable[[], AbstractContextManager[object]]

    def before_step(self, step: int) -> None:
        """Put the network into training mode."""
        if step == self.settled:
            self._settle()
        self.network.train()
        if self.plain and step >= self.settled:
            for norm in _norms(self.network):
                norm.eval()

    def before_use(self, steps: int) -> None:
        """Make the network, after some steps, fit for validation or as the result."""
        if steps <= self.settled:
            self._settle()

    def _settle(self) -> None:
        if self.plain:
            with self.autocast():
                settle_statistics(self.network, self.plain)


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
