"""The whole job on arrays: a CT and its lobes in, lesions by subtype and their severity out.

segmenter = LesionSegmenter.from_directory(find_model())
segmentation = segmenter.segment(read_ct(ct_path), read_labels(lobes_path))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from algorithm import __version__
from algorithm.engine import Engine, Precision, choose_device, make_network
from algorithm.images import Geometry, Volume
from algorithm.job import MEMORY_GB
from algorithm.lobe_segmenter import FoundLobes, LobeSegmenter, given_lobes
from algorithm.lungmask_lobes import Lungmask
from algorithm.margin import lesion_margin
from algorithm.model import Model, load_model
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


@dataclass(frozen=True)
class Prepared:
    """A scan on its way to the network.

    Attributes:
        ct: grid of the CT as it was given.
        whole: the same grid in canonical orientation.
        box: the part of it around the lungs.
        lung_ct: HU in the box.
        lung_lobes: lobe labels in the box.
        image: what the network sees.
        inside: bool, which of its voxels lie in a lobe.
        found: the lobes that were given or found, on the CT's grid.
        lobes_seconds: spent on finding them.
        seconds: spent on the rest.
    """

    ct: Geometry
    whole: Geometry
    box: Box
    lung_ct: Volume
    lung_lobes: Volume
    image: Volume
    inside: NDArray[np.bool_]
    found: FoundLobes
    lobes_seconds: float
    seconds: float


@dataclass(frozen=True)
class Predicted:
    """What the network says of a scan.

    Attributes:
        margin: by how much lesion is likelier than any other class, on the network's grid.
        warnings: for the report.
        seconds: spent.
    """

    margin: Volume
    warnings: list[str]
    seconds: float


class LesionSegmenter:
    """A loaded model on a device, ready for any number of scans."""

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        memory_gb: float,
        precision: Precision = "fp32",
        engine: Engine = "torch",
        lobes_by: Finder = "model",
    ) -> None:
        """Put a model on a device; `from_directory` is the usual way in.

        Args:
            model: what `load_model` returned.
            device: where the network runs.
            memory_gb: what the activations of one tile may take.
            precision: see `make_network`, as for the engine.
            engine: what computes the network.
            lobes_by: who finds the lobes of scans that come without: the model's lobe network, or lungmask.

        Raises:
            InputError: precision or engine cannot be used here.
        """
        self.model = model
        self.device = device
        self.memory_gb = memory_gb
        self.precision = precision
        self.network = make_network(model.network, device=device, precision=precision, engine=engine)
        self.lobes_by = lobes_by

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        *,
        device: str = "auto",
        memory_gb: float = MEMORY_GB,
        precision: Precision = "fp32",
        engine: Engine = "auto",
        lobes_by: Finder = "model",
    ) -> LesionSegmenter:
        """Load a model directory.

        Args:
            directory: what `python -m training export` wrote.
            device: ``auto``, ``cpu`` or ``cuda``; auto takes a GPU where there is one.
            memory_gb: what the activations of one tile may take.
            precision: ``fp32`` or ``bf16``, see `make_network`.
            engine: ``auto``, ``torch`` or ``openvino``.
            lobes_by: who finds the lobes of scans that come without: the model's lobe network, or lungmask.

        Raises:
            InputError: the model, the device, the precision or the engine cannot be used.
        """
        model, chosen = load_model(directory), choose_device(device)
        return cls(model, device=chosen, memory_gb=memory_gb, precision=precision, engine=engine, lobes_by=lobes_by)

    def warm_up(self) -> None:
        """Segment a small made-up scan, so that the first real one does not wait for what is made once."""
        axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        geometry = Geometry((48, 48, 48), (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), axes)
        noise = np.random.default_rng(0).integers(-900, 100, geometry.size_zyx, dtype=np.int16)
        self.segment(Volume(noise, geometry), Volume(np.ones(geometry.size_zyx, dtype=np.uint8), geometry))

    def find_lobes(self, ct: Volume) -> FoundLobes:
        """Find the lobes of a scan that comes without.

        Raises:
            InputError: there are no lungs, or the model or lungmask cannot be used.
        """
        return self._finder.segment(ct)

    @cached_property
    def _finder(self) -> LobeSegmenter | Lungmask:
        return Lungmask(self.device) if self.lobes_by == "lungmask" else LobeSegmenter(self.model, self.device)

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
        report("lobes and preprocess", 0.0)
        prepared = self.prepare(ct, lobes)
        predicted = self.predict(prepared, progress=lambda fraction: report("network", fraction))
        report("postprocess", 0.0)
        return self.finish(prepared, predicted)

    def prepare(self, ct: Volume, lobes: Volume | None = None) -> Prepared:
        """The first step of `segment`; the three may overlap between scans."""
        started = time.perf_counter()
        found = self.find_lobes(ct) if lobes is None else given_lobes(lobes, ct)
        with_lobes = time.perf_counter()
        whole_ct, whole_lobes = to_canonical(ct), to_canonical(found.labels)
        box = bounding_box(whole_lobes.array, margin_voxels(whole_ct.geometry, LUNG_MARGIN_MM))
        lung_ct, lung_lobes = crop(whole_ct, box), crop(whole_lobes, box)
        image, inside = self._network_input(lung_ct, lung_lobes)
        return Prepared(
            ct=ct.geometry,
            whole=whole_ct.geometry,
            box=box,
            lung_ct=lung_ct,
            lung_lobes=lung_lobes,
            image=image,
            inside=inside,
            found=found,
            lobes_seconds=with_lobes - started,
            seconds=time.perf_counter() - with_lobes,
        )

    def predict(self, prepared: Prepared, *, progress: Callable[[float], None] | None = None) -> Predicted:
        """The second step: the network."""
        started = time.perf_counter()
        warnings: list[str] = []
        margin = lesion_margin(
            self.network,
            prepared.image,
            prepared.inside,
            memory_bytes=self.memory_gb * 1e9,
            progress=progress,
            warn=warnings.append,
        )
        return Predicted(margin=margin, warnings=warnings, seconds=time.perf_counter() - started)

    def finish(self, prepared: Prepared, predicted: Predicted) -> Segmentation:
        """The last step: back to the scan's grid, lesions by subtype, and the report."""
        started = time.perf_counter()
        lung_ct, lung_lobes = prepared.lung_ct, prepared.lung_lobes
        margin = resample(predicted.margin, lung_ct.geometry, "linear").array
        lesions = margin > self.model.description.lesion_margin
        lesions &= lung_lobes.array > 0
        components = find_components(lesions, lung_ct.array, voxel_ml=prepared.ct.voxel_ml)
        subtypes = vote(components, self.model.reference, self.model.description.subtype_vote)
        labels = paint(components, subtypes)
        on_input_grid = _to_input_grid(labels, prepared)
        timings = Timings(
            lobes_s=prepared.lobes_seconds,
            preprocess_s=prepared.seconds,
            network_s=predicted.seconds,
            postprocess_s=time.perf_counter() - started,
        )
        return Segmentation(
            labels=on_input_grid,
            lobes=prepared.found.labels,
            report=self._report(labels, prepared, components, subtypes, timings, predicted.warnings),
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
        prepared: Prepared,
        components: Components,
        subtypes: NDArray[np.uint8],
        timings: Timings,
        warnings: list[str],
    ) -> SeverityReport:
        found, lobes = prepared.found, prepared.lung_lobes
        involvement = lobe_involvement(labels, lobes.array, voxel_ml=lobes.geometry.voxel_ml)
        description = self.model.description
        absent = [entry.lobe.name for entry in involvement if entry.percent is None]
        return SeverityReport(
            algorithm_version=__version__,
            model=description.identity,
            device=str(self.device),
            precision=self.precision,
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
            + ([f"{', '.join(absent)} absent from the lobe mask: no total score"] if absent else [])
            + warnings,
            timings=timings,
        )


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


def _to_input_grid(labels: NDArray[np.uint8], prepared: Prepared) -> Volume:
    """From the lung box back to the grid of the CT as it was given."""
    whole = uncrop(labels, prepared.box, prepared.whole.size_zyx)
    return from_canonical(Volume(whole, prepared.whole), prepared.ct)
