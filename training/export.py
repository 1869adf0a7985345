"""Stage export: the model directory that inference loads, and its tarball for the platform.

python -m training export --data DATA --run-dir RUN
"""

from __future__ import annotations

import tarfile
from functools import partial
from pathlib import Path
from typing import IO, Any

from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from algorithm.model import (
    DESCRIPTION,
    LESION_WEIGHTS,
    LOBE_WEIGHTS,
    SUBTYPE_TABLE,
    Architecture,
    ModelDescription,
    Preprocessing,
    load_model,
    sha256,
)
from training.cases import of_split, read_cases
from training.files import write_text, write_whole
from training.lobes import STAGE as LOBE_STAGE
from training.lobes import description as lobe_description
from training.lobes import trained as trained_lobes
from training.segment import lesion_border, trained_network
from training.settings import LobeSettings
from training.stages import Run, environment

INTENDED_USE = (
    "Research on COVID-19 lesions in chest CT. Not a medical device, not for diagnosis or treatment. Trained weakly, "
    "from lobe-wise severity scores alone; see training and results for the data it has seen."
)


def export(run: Run, folder: Path) -> dict[str, Any]:
    """Write the model directory ``model/`` and ``model.tar.gz``."""
    directory = folder / "model"
    directory.mkdir(exist_ok=True)
    files = {
        LESION_WEIGHTS: to_safetensors(_contiguous(trained_network(run))),
        SUBTYPE_TABLE: (run.folder("subtypes") / SUBTYPE_TABLE).read_bytes(),
    }
    lobe_record = run.record_if_current(LOBE_STAGE)
    if lobe_record is not None:
        lobe_network = trained_lobes(LobeSettings(**lobe_record["settings"]), run.folder(LOBE_STAGE))
        files[LOBE_WEIGHTS] = to_safetensors(_contiguous(lobe_network))
    for name, content in files.items():
        write_whole(directory / name, partial(_write, content))
    description = _description(run, {name: sha256(content) for name, content in files.items()}, lobe_record)
    write_text(directory / DESCRIPTION, description.model_dump_json(indent=2) + "\n")
    load_model(directory)  # what was written must load
    write_whole(folder / "model.tar.gz", partial(_pack, directory))
    return {"files": description.files}


def _contiguous(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def _description(run: Run, files: dict[str, str], lobe_record: dict[str, Any] | None) -> ModelDescription:
    cases = read_cases(run.data)
    config = run.config
    return ModelDescription(
        name=config.export.name,
        version=config.export.version,
        architecture=Architecture(width=config.segment.width),
        preprocessing=Preprocessing(spacing_mm=config.prepare.scan_spacing_mm),
        lobe_network=lobe_description(LobeSettings(**lobe_record["settings"])) if lobe_record else None,
        lesion_margin=lesion_border(run),
        subtype_vote=config.subtypes,
        training={
            "data": config.export.data,
            "supervision": "lobe-wise severity scores; subtypes from the reference lesions of the validation cases",
            "cases": {split: len(of_split(cases, split)) for split in ("train", "validation", "test")},
            "data_sha256": run.record("prepare")["data_sha256"],
            "settings": config.model_dump(mode="json"),
            "environment": environment(),
        }
        | ({"lobes": _about_lobes(lobe_record)} if lobe_record else {}),
        results=_results(run),
        intended_use=INTENDED_USE,
        licence=config.export.licence,
        files=files,
    )


def _about_lobes(record: dict[str, Any]) -> dict[str, Any]:
    """How the lobe network was trained, and how it did on its validation cases."""
    kept = {name: record[name] for name in ("seed", "data_sha256", "settings", "results", "environment")}
    return {"data": record["settings"]["data"], **kept}


def _results(run: Run) -> dict[str, Any]:
    """The measurements on the test cases, where they have been made of this very network and vote."""
    record = run.record_if_current("ablate")
    rules = run.config.subtypes.model_dump(mode="json")
    return record["results"] if record is not None and record["settings"]["subtypes"] == rules else {}


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _pack(directory: Path, file: IO[bytes]) -> None:
    """A tarball whose content lands directly in the platform's model directory."""
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, arcname=path.name)
