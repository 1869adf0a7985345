"""The whole job on arrays: a CT and its lobes in, lesions by subtype and their severity out.

segmenter = LesionSegmenter.from_directory(find_model())
segmentation = segmenter.segment(read_ct(ct_path), read_labels(lobes_path))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from algorithm import __version__
from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobe_segmenter import FoundLobes, LobeSegmenter, given_lobes
from algorithm.lungmask_lobes import lungmask_lobes
from algorithm.model import LESION, Model, load_model
from algorithm.orientation import from_canonical, to_canonical
from algorithm.preprocess import (
    Box,
    bounding_box,
    covering_grid,
    crop,
    margin_voxels,
    masked_intensity,
    moved,
    resample,
    uncrop,
)
from algorithm.report import ComponentEntry, LobeEntry, SeverityReport, Timings
from algorithm.severity import lobe_involvement, total_score
from algorithm.subtypes import SUBTYPES, Components, find_components, paint, vote
from algorithm.tiling import plan_tiles, predict_tiled

Progress = Callable[[str, float], None]
Finder = Literal["model", "lungmask"]
LUNG_MARGIN_MM = 3.0


@dataclass(frozen=True)
class Segmentation:
    """Result of one scan.

    Attributes:
        labels: uint8, 0 background, 1 ground-glass, 2 consolidation, 3 mixed, on the CT's grid.
        lobes: uint8, the lobes that were given or found, on the CT's grid.
        report: severity, lesions and provenance.
    """

    labels: Volume
    lobes: Volume
    report: SeverityReport


class LesionSegmenter:
    """A loaded model on a device, ready for any number of scans."""

    def __init__(self, model: Model, *, device: torch.device, memory_gb: float, lobes_by: Finder = "model") -> None:
        """Put a model on a device; `from_directory` is the usual way in.

        Args:
            model: what `load_model` returned.
            device: where the network runs.
            memory_gb: what the activations of one tile may take.
            lobes_by: who finds the lobes of scans that come without: the model's lobe network, or lungmask.
        """
        self.model = model
        self.device = device
        self.memory_gb = memory_gb
        self.network = model.network.to(device).eval()
        self.lobes_by = lobes_by

    @classmethod
    def from_directory(
        cls, directory: Path, *, device: str = "auto", memory_gb: float = 3.0, lobes_by: Finder = "model"
    ) -> LesionSegmenter:
        """Load a model directory.

        Args:
            directory: what `python -m training export` wrote.
            device: ``auto``, ``cpu`` or ``cuda``; auto takes a GPU where there is one.
            memory_gb: what the activations of one tile may take.
            lobes_by: who finds the lobes of scans that come without: the model's lobe network, or lungmask.

        Raises:
            InputError: the model or the device cannot be used.
        """
        model = load_model(directory)
        return cls(model, device=choose_device(device), memory_gb=memory_gb, lobes_by=lobes_by)

    def find_lobes(self, ct: Volume) -> FoundLobes:
        """Find the lobes of a scan that comes without.

        Raises:
            InputError: there are no lungs, or the model or lungmask cannot be used.
        """
        if self.lobes_by == "lungmask":
            return lungmask_lobes(ct)
        return LobeSegmenter(self.model, self.device).segment(ct)

    def segment(self, ct: Volume, lobes: Volume | None = None, *, progress: Progress | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            ct: HU, (z, y, x), any orientation.
            lobes: labels of `LOBES` on the same grid; None finds them.
            progress: told the name of the step and its finished fraction.

        Raises:
            InputError: the lobes do not fit the CT, or there are none to be found.
        """
        report = progress or (lambda step, fraction: None)
        started = time.perf_counter()
        report("lobes", 0.0)
        found = self.find_lobes(ct) if lobes is None else given_lobes(lobes, ct)
        with_lobes = time.perf_counter()
        report("preprocess", 0.0)
        whole_ct, whole_lobes = to_canonical(ct), to_canonical(found.labels)
        box = bounding_box(whole_lobes.array, margin_voxels(whole_ct.geometry, LUNG_MARGIN_MM))
        lung_ct, lung_lobes = crop(whole_ct, box), crop(whole_lobes, box)
        image, inside = self._network_input(lung_ct, lung_lobes)
        preprocessed = time.perf_counter()

        margin = lesion_margin(
            self.network,
            image,
            inside,
            width=self.model.description.architecture.width,
            memory_bytes=self.memory_gb * 1e9,
            device=self.device,
            progress=lambda fraction: report("network", fraction),
        )
        predicted = time.perf_counter()

        report("postprocess", 0.0)
        lesions = (resample(margin, lung_ct.geometry, "linear").array > 0) & (lung_lobes.array > 0)
        components = find_components(lesions, lung_ct.array, voxel_ml=ct.geometry.voxel_ml)
        subtypes = vote(components, self.model.reference, self.model.description.subtype_vote)
        labels = paint(components, subtypes)
        finished = time.perf_counter()
        timings = Timings(
            lobes_s=with_lobes - started,
            preprocess_s=preprocessed - with_lobes,
            network_s=predicted - preprocessed,
            postprocess_s=finished - predicted,
        )
        return Segmentation(
            labels=_to_input_grid(labels, box, whole_ct, ct),
            lobes=found.labels,
            report=self._report(labels, lung_lobes, found, components, subtypes, timings),
        )

    def _network_input(self, ct: Volume, lobes: Volume) -> tuple[Volume, NDArray[np.bool_]]:
        """Windowed intensity inside the lobes on the network's grid, and which of its voxels lie in a lobe."""
        preprocessing = self.model.description.preprocessing
        grid = covering_grid(ct.geometry, spacing_mm=preprocessing.spacing_mm)
        image = masked_intensity(ct, lobes.array > 0, grid, preprocessing.window_hu)
        return image, resample(lobes, grid, "nearest").array > 0

    def _report(
        self,
        labels: NDArray[np.uint8],
        lobes: Volume,
        found: FoundLobes,
        components: Components,
        subtypes: NDArray[np.uint8],
        timings: Timings,
    ) -> SeverityReport:
        involvement = lobe_involvement(labels, lobes.array, voxel_ml=lobes.geometry.voxel_ml)
        description = self.model.description
        absent = [entry.lobe.name for entry in involvement if entry.percent is None]
        return SeverityReport(
            algorithm_version=__version__,
            model=description.identity,
            device=str(self.device),
            lobes_source=found.source,
            lobes=[
                LobeEntry(
                    name=entry.lobe.name,
                    label=entry.lobe.label,
                    volume_ml=entry.volume_ml,
                    lesion_ml=entry.lesion_ml,
                    percent=entry.percent,
                    score=entry.score,
                    confidence=found.confidence.get(entry.lobe.label),
                )
                for entry in involvement
            ],
            total_score=total_score(involvement),
            lesion_ml=sum(entry.lesion_ml for entry in involvement),
            subtype_ml={
                name: float(components.volume_ml[subtypes == subtype].sum()) for subtype, name in SUBTYPES.items()
            },
            components=_component_entries(components, subtypes, lobes),
            warnings=found.warnings
            + ([f"{', '.join(absent)} absent from the lobe mask: no total score"] if absent else []),
            timings=timings,
        )


@torch.inference_mode()
def lesion_margin(
    network: nn.Module,
    image: Volume,
    inside: NDArray[np.bool_],
    *,
    width: int,
    memory_bytes: float,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
) -> Volume:
    """By how much lesion is likelier than the likeliest other class.

    Args:
        network: three classes, valid padding, in evaluation mode on ``device``.
        image: windowed intensity on the network's grid, zero outside the lobes.
        inside: bool (z, y, x), the lobes; places without them are not computed.
        width: the network's width.
        memory_bytes: what the activations of one tile may take.
        device: where to compute.
        progress: told the finished fraction.

    Returns:
        float32 in [-1, 1], positive where lesion wins.
    """
    plan = plan_tiles(image.geometry.size_zyx, width=width, memory_bytes=memory_bytes)

    def predict(tile: Tensor) -> Tensor:
        probability: Tensor = network(tile).softmax(dim=1)[0]  # (3, D, H, W)
        return probability[LESION] - probability[:LESION].amax(dim=0)

    return image.with_array(predict_tiled(predict, image.array, inside, plan, device=device, progress=progress))


def _component_entries(components: Components, subtypes: NDArray[np.uint8], lobes: Volume) -> list[ComponentEntry]:
    return [
        ComponentEntry(
            subtype=SUBTYPES[int(subtypes[k])],
            volume_ml=float(components.volume_ml[k]),
            mean_hu=float(components.mean_hu[k]),
            centre_xyz_mm=moved(lobes.geometry, components.centre_zyx[k].tolist()).origin_xyz_mm,
        )
        for k in np.argsort(-components.volume_ml, kind="stable")
    ]


def _to_input_grid(labels: NDArray[np.uint8], box: Box, whole: Volume, ct: Volume) -> Volume:
    """From the lung box back to the grid of the CT as it was given."""
    return from_canonical(whole.with_array(uncrop(labels, box, whole.geometry.size_zyx)), ct.geometry)


def choose_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        InputError: not ``auto``, ``cpu`` or ``cuda``, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: got {name!r}, expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
