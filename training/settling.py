"""Batch norm's statistics as they will be needed: of images whose contrast nobody stretched."""

from __future__ import annotations

from collections.abc import Callable

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
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
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
