"""Lobes by the package lungmask, where it and its weights are on this machine; nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobe_segmenter import FoundLobes, found_lobes
from algorithm.lobes import LOBES

NAMES = {1: "lul", 2: "lll", 3: "rul", 4: "rml", 5: "rll"}
"""What lungmask's labels mean, by our lobes' keys."""
LOBE_MODEL, LUNG_MODEL = "LTRCLobes", "R231"  # the second fills what the first leaves out


class Lungmask:
    """Lungmask's lobe model, filled up by its lung model, on a device."""

    def __init__(self, device: torch.device) -> None:
        """Load both.

        Raises:
            InputError: the package or its weights are not here.
        """
        try:
            from lungmask.mask import MODEL_URLS, LMInferer
        except ImportError as error:
            raise InputError(
                "--lobes lungmask: the package lungmask is not installed; run `pip install lungmask`, or leave --lobes "
                "out to use the model's own lobe network"
            ) from error
        self._inferer = LMInferer(
            modelpath=str(_weights(MODEL_URLS[LOBE_MODEL][0])),
            fillmodel=LUNG_MODEL,
            fillmodel_path=str(_weights(MODEL_URLS[LUNG_MODEL][0])),
            force_cpu=device.type == "cpu",
            tqdm_disable=True,
        )

    def segment(self, ct: Volume) -> FoundLobes:
        """Find the lobes.

        Args:
            ct: HU, (z, y, x), any orientation.

        Raises:
            InputError: there are no lungs.
        """
        theirs = self._inferer.apply(ct.to_sitk())
        return found_lobes(ct.with_array(renumbered(np.asarray(theirs))), ct, "lungmask", {})


def renumbered(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Our labels for lungmask's, by name; other labels become 0."""
    ours = {lobe.key: lobe.label for lobe in LOBES}
    table = np.zeros(256, dtype=np.uint8)
    for label, key in NAMES.items():
        table[label] = ours[key]
    ours_there: NDArray[np.uint8] = table[labels]
    return ours_there


def _weights(url: str) -> Path:
    """Where PyTorch's hub keeps a file that was downloaded from an address.

    Raises:
        InputError: it is not there.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise InputError(
            f"--lobes lungmask: its weights are not on this machine, expected {path}; copy them there (they are never "
            "downloaded from here), or leave --lobes out to use the model's own lobe network"
        )
    return path
