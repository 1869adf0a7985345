"""What is wanted of the network: where lesion is likelier than anything else, and by how much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from algorithm.images import Volume
from algorithm.inference_network import InferenceNetwork
from algorithm.model import LESION
from algorithm.tiling import predict_scan


def lesion_margin(
    network: InferenceNetwork,
    image: Volume,
    inside: NDArray[np.bool_],
    *,
    memory_bytes: float,
    progress: Callable[[float], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Volume:
    """By how much lesion is likelier than the likeliest other class.

    Args:
        network: three classes.
        image: windowed intensity on the network's grid, zero outside the lobes.
        inside: bool (z, y, x), the lobes; no more than their surroundings are computed.
        memory_bytes: what the activations of one tile may take.
        progress: told the finished fraction.
        warn: told that memory ran out, and that smaller tiles went on.

    Returns:
        float32 in [-1, 1], positive where lesion wins; -1 where nothing was computed.
    """

    def margin(logits: Tensor) -> Tensor:
        probability = logits.softmax(dim=0)  # (3, D, H, W)
        return probability[LESION] - probability[:LESION].amax(dim=0)

    values = predict_scan(
        network,
        image.array,
        inside,
        margin,
        outside=-1.0,
        memory_bytes=memory_bytes,
        progress=progress,
        warn=warn,
    )
    return image.with_array(values)
