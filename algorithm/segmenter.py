"""The whole job on arrays: a CT and its lobes in, lesions by subtype and their severity out.

segmenter = LesionSegmenter.from_directory(find_model())
segmentation = segmenter.segment(read_ct(ct_path), read_labels(lobes_path))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from algorithm import __version__
from algorithm.engine import Engine, Precision, choose_device, make_network
from algorithm.images import Geometry, Volume
from algorithm.lobes import check_lobes
from algorithm.margin import lesion_margin
from algorithm.model import LESION_WEIGHTS, Model, load_model
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
from algorithm.report import ComponentEntry, LobeEntry, ModelIdentity, SeverityReport, Timings
from algorithm.severity import lobe_involvement, total_score
from algorithm.subtypes import SUBTYPES, Components, find_components, paint, vote

Progress = Callable[[str, float], None]
LUNG_MARGIN_MM = 3.0


@dataclass(frozen=True)
class Segmentation:
    """Result of one scan.

    Attributes:
        labels: uint8, 0 background, 1 ground-glass, 2 consolidation, 3 mixed, on the CT's grid.
        report: severity, lesions and provenance.
    """

    labels: Volume
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
        seconds: spent.
    """

    ct: Geometry
    whole: Geometry
    box: Box
    lung_ct: Volume
    lung_lobes: Volume
    image: Volume
    inside: NDArray[np.bool_]
    seconds: float


@dataclass(frozen=True)
class Predicted:
    """What the network says of a scan.

    Attributes:
        margin: positive where lesion wins, on the network's grid.
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
    ) -> None:
        """Put a model on a device; `from_directory` is the usual way in.

        Args:
            model: what `load_model` returned.
            device: where the network runs.
            memory_gb: what the activations of one tile may take.
            precision: see `make_network`, as for the engine.
            engine: what computes the network.

        Raises:
            InputError: precision or engine cannot be used here.
        """
        self.model = model
        self.device = device
        self.memory_gb = memory_gb
        self.network = make_network(model.network, device=device, precision=precision, engine=engine)

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        *,
        device: str = "auto",
        memory_gb: float = 3.0,
        precision: Precision = "auto",
        engine: Engine = "auto",
    ) -> LesionSegmenter:
        """Load a model directory.

        Args:
            directory: what `python -m training export` wrote.
            device: ``auto``, ``cpu`` or ``cuda``; auto takes a GPU where there is one.
            memory_gb: what the activations of one tile may take.
            precision: ``auto``, ``fp32`` or ``bf16``; auto takes bf16 where the device computes it by itself.
            engine: ``auto``, ``torch`` or ``openvino``.

        Raises:
            InputError: the model, the device, the precision or the engine cannot be used.
        """
        chosen = choose_device(device)
        return cls(load_model(directory), device=chosen, memory_gb=memory_gb, precision=precision, engine=engine)

    def warm_up(self) -> None:
        """Segment a small made-up scan, so that the first real one does not wait for what is made once."""
        axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        geometry = Geometry((48, 48, 48), (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), axes)
        noise = np.random.default_rng(0).integers(-900, 100, geometry.size_zyx, dtype=np.int16)
        self.segment(Volume(noise, geometry), Volume(np.ones(geometry.size_zyx, dtype=np.uint8), geometry))

    def segment(self, ct: Volume, lobes: Volume, *, progress: Progress | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            ct: HU, (z, y, x), any orientation.
            lobes: labels of `LOBES` on the same grid.
            progress: told the name of the step and its finished fraction.

        Raises:
            InputError: the lobes do not fit the CT.
        """
        report = progress or (lambda step, fraction: None)
        report("preprocess", 0.0)
        prepared = self.prepare(ct, lobes)
        predicted = self.predict(prepared, progress=lambda fraction: report("network", fraction))
        report("postprocess", 0.0)
        return self.finish(prepared, predicted)

    def prepare(self, ct: Volume, lobes: Volume) -> Prepared:
        """The first step of `segment`; the three may overlap between scans."""
        started = time.perf_counter()
        lobes = check_lobes(lobes, ct)
        whole_ct, whole_lobes = to_canonical(ct), to_canonical(lobes)
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
            seconds=time.perf_counter() - started,
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
        lesions = resample(predicted.margin, lung_ct.geometry, "linear").array > 0
        lesions &= lung_lobes.array > 0
        components = find_components(lesions, lung_ct.array, voxel_ml=prepared.ct.voxel_ml)
        subtypes = vote(components, self.model.reference, self.model.description.subtype_vote)
        labels = paint(components, subtypes)
        on_input_grid = _to_input_grid(labels, prepared)
        timings = Timings(
            preprocess_s=prepared.seconds,
            network_s=predicted.seconds,
            postprocess_s=time.perf_counter() - started,
        )
        return Segmentation(
            labels=on_input_grid,
            report=self._report(labels, lung_lobes, components, subtypes, timings, predicted.warnings),
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
        components: Components,
        subtypes: NDArray[np.uint8],
        timings: Timings,
        warnings: list[str],
    ) -> SeverityReport:
        involvement = lobe_involvement(labels, lobes.array, voxel_ml=lobes.geometry.voxel_ml)
        description = self.model.description
        absent = [entry.lobe.name for entry in involvement if entry.percent is None]
        return SeverityReport(
            algorithm_version=__version__,
            model=ModelIdentity(
                name=description.name, version=description.version, weights_sha256=description.files[LESION_WEIGHTS]
            ),
            device=str(self.device),
            lobes=[
                LobeEntry(
                    name=entry.lobe.name,
                    label=entry.lobe.label,
                    volume_ml=entry.volume_ml,
                    lesion_ml=entry.lesion_ml,
                    percent=entry.percent,
                    score=entry.score,
                )
                for entry in involvement
            ],
            total_score=total_score(involvement),
            lesion_ml=sum(entry.lesion_ml for entry in involvement),
            subtype_ml={
                name: float(components.volume_ml[subtypes == subtype].sum()) for subtype, name in SUBTYPES.items()
            },
            components=_component_entries(components, subtypes, lobes),
            warnings=([f"{', '.join(absent)} absent from the lobe mask: no total score"] if absent else []) + warnings,
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
