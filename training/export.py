"""Stage export: the model directory that inference loads, and its tarball for the platform.

python -m training export --data DATA --run-dir RUN
"""

from __future__ import annotations

import shutil
import tarfile
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from algorithm.errors import InputError
from algorithm.model import (
    DESCRIPTION,
    LESION_WEIGHTS,
    LOBE_WEIGHTS,
    SUBTYPE_TABLE,
    Architecture,
    LobeNetwork,
    LobeNetworks,
    ModelDescription,
    Preprocessing,
    load_model,
    sha256,
)
from training.cases import of_split, read_cases
from training.files import write_text, write_whole
from training.fissures import STAGE as FISSURE_STAGE
from training.fissures import trained as trained_fissures
from training.lobes import STAGE as LOBE_STAGE
from training.lobes import description as lobe_description
from training.lobes import trained as trained_lobes
from training.segment import lesion_border, trained_network
from training.settings import FissureSettings, LobeSettings
from training.stages import Run, commits_behind
from training.subtypes import vote_rules

INTENDED_USE = (
    "Research on COVID-19 lesions in chest CT. Not a medical device, not for diagnosis or treatment. Trained weakly, "
    "from lobe-wise severity scores alone; see training and results for the data it has seen."
)
# settings that are paths of this machine
PLACES = {"lobes": {"start_from"}, "fissures": {"start_from"}, "export": {"lobes_from"}}


class LobePart(NamedTuple):
    """Lobe networks, what they are, and how they were trained and did on their validation cases."""

    weights: bytes
    network: LobeNetwork
    about: dict[str, Any]


def export(run: Run, folder: Path) -> dict[str, Any]:
    """Write the model directory ``model/`` and ``model.tar.gz``.

    Raises:
        InputError: the model whose lobe network is to be taken over cannot be used, or has none.
    """
    directory = folder / "model"
    shutil.rmtree(directory, ignore_errors=True)  # an earlier model may have had a lobe network
    directory.mkdir()
    files = {
        LESION_WEIGHTS: to_safetensors(_contiguous(trained_network(run))),
        SUBTYPE_TABLE: (run.folder("subtypes") / SUBTYPE_TABLE).read_bytes(),
    }
    lobes = _lobes_of_run(run) or lobes_of_model(run.config.export.lobes_from)
    if lobes is not None:
        files[LOBE_WEIGHTS] = lobes.weights
    for name, content in files.items():
        write_whole(directory / name, partial(_write, content))
    description = _description(run, {name: sha256(content) for name, content in files.items()}, lobes)
    write_text(directory / DESCRIPTION, description.model_dump_json(indent=2) + "\n")
    load_model(directory)  # what was written must load
    write_whole(folder / "model.tar.gz", partial(_pack, directory))
    return {"files": description.files}


def _contiguous(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def _lobes_of_run(run: Run) -> LobePart | None:
    """What the stages lobes and fissures learnt, where the former was run."""
    record = run.record_if_current(LOBE_STAGE)
    if record is None:
        return None
    settings = LobeSettings(**record["settings"]["lobes"])
    networks = LobeNetworks(trained_lobes(settings, run.folder(LOBE_STAGE)), None)
    about = {LOBE_STAGE: _about(run, LOBE_STAGE, record, settings)}
    width, refined = None, run.record_if_current(FISSURE_STAGE)
    if refined is not None:
        of_fissures = FissureSettings(**refined["settings"]["fissures"])
        networks.fissures = trained_fissures(of_fissures, run.folder(FISSURE_STAGE))
        width, about[FISSURE_STAGE] = of_fissures.width, _about(run, FISSURE_STAGE, refined, of_fissures)
    return LobePart(to_safetensors(_contiguous(networks)), lobe_description(settings, fissure_width=width), about)


def _about(run: Run, stage: str, record: dict[str, Any], settings: LobeSettings | FissureSettings) -> dict[str, Any]:
    """What a model says of how a stage trained a network for lobes; no path of this machine."""
    recorded = {name: record[name] for name in ("seed", "data_sha256", "results", "environment")}
    trained = settings.model_dump(mode="json", exclude=PLACES[stage])
    return {"data": run.config.export.lobe_data, **recorded, "settings": trained}


def lobes_of_model(directory: Path | None) -> LobePart | None:
    """What another model holds, where one is named.

    Raises:
        InputError: it cannot be used, or has no lobe network.
    """
    if directory is None:
        return None
    description = load_model(directory).description
    if description.lobe_network is None:
        raise InputError(f"export.lobes_from: {directory} has no lobe network; name a model that has one")
    trained = description.training
    about = {stage: trained[stage] for stage in (LOBE_STAGE, FISSURE_STAGE) if stage in trained}
    return LobePart((directory / LOBE_WEIGHTS).read_bytes(), description.lobe_network, about)


def _description(run: Run, files: dict[str, str], lobes: LobePart | None) -> ModelDescription:
    cases = read_cases(run.data)
    config = run.config
    return ModelDescription(
        name=config.export.name,
        version=config.export.version,
        architecture=Architecture(width=config.segment.width),
        preprocessing=Preprocessing(spacing_mm=config.prepare.scan_spacing_mm),
        lobe_network=lobes.network if lobes else None,
        lesion_margin=lesion_border(run),
        subtype_vote=vote_rules(run),
        training={
            "data": config.export.data,
            "supervision": "lobe-wise severity scores; subtypes from the reference lesions of the validation cases",
            "cases": {split: len(of_split(cases, split)) for split in ("train", "validation", "test")},
            "data_sha256": run.record("prepare")["data_sha256"],
            "settings": config.model_dump(mode="json", exclude=PLACES),
            "environment": run.record("segment")["environment"],
            "commits": commits_behind(run.directory, "segment", "subtypes"),
        }
        | (lobes.about if lobes else {}),
        results=_results(run),
        intended_use=INTENDED_USE,
        licence=config.export.licence,
        files=files,
    )


def _results(run: Run) -> dict[str, Any]:
    """The measurements on the test cases, where they have been made of this very network and vote."""
    record = run.record_if_current("ablate")
    return record["results"] if record is not None else {}


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _pack(directory: Path, file: IO[bytes]) -> None:
    """A tarball whose content lands directly in the platform's model directory."""
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, arcname=path.name)
