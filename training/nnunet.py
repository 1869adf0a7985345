"""Export to nnU-Net v2's raw format, to train nnU-Net on the same cases as this project's networks.

python -m training nnunet --data DATA --run-dir RUN --out nnUNet_raw --dataset 501 --name CovidLesions

and then, with nnU-Net installed and its three folders set in the environment:

nnUNetv2_plan_and_preprocess -d 501 --verify_dataset_integrity
nnUNetv2_train 501 3d_fullres 0
nnUNetv2_predict -i nnUNet_raw/Dataset501_CovidLesions/imagesTs -o predictions -d 501 -c 3d_fullres -f 0
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct
from algorithm.model import LESION, sha256
from algorithm.orientation import from_canonical
from training.ablate.measures import reference_labels
from training.ablate.predictions import margin_of_mask, on_ct_grid
from training.ablate.stage import claim
from training.cases import TABLE, Case, of_split, read_cases, read_scan
from training.files import load_array, remove_stale, write_image, write_json, write_text
from training.parallel import console, over_scans
from training.prepare import PreparedCase, prepared
from training.run import PSEUDO
from training.segment import Labels
from training.stages import Run, current_record, sha256_of_results

FILE_ENDING = ".nii.gz"
SPLITS = "splits_final.json"
NAME = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True)
class _Job:
    """One case to export.

    Attributes:
        case: the case.
        image: where its CT goes.
        labels: where its lesion mask goes; None without one.
        pseudo: file of its pseudo labels, and the caches they belong to; None for reference lesions.
    """

    case: Case
    image: Path
    labels: Path | None
    pseudo: tuple[Path, PreparedCase] | None

    @property
    def name(self) -> str:
        return self.case.name


def export_nnunet(run: Run, out: Path, *, dataset_id: int, name: str, labels: Labels) -> Path:
    """Write a data set that nnU-Net v2 can plan, preprocess and train on; files that are there are kept.

    Training and validation cases that have labels go into imagesTr and labelsTr (the others are named), test cases into
    imagesTs and, where they have reference lesions, labelsTs. CTs are in HU on their own grids. Labels are 0 background
    and 1 lesion, in the lobes only, as in this project's comparison. Where both training and validation cases have
    labels, splits_final.json holds this division as fold 0: copied into the data set's folder in nnUNet_preprocessed
    after planning, it makes nnU-Net validate on the same cases.

    Args:
        run: the run; its finished stages ``prepare`` and ``pseudo`` are read for pseudo labels.
        out: nnU-Net's raw folder, its nnUNet_raw.
        dataset_id: nnU-Net's number of the data set, 1 to 999.
        name: nnU-Net's name of the data set, letters and digits.
        labels: what nnU-Net is to learn from.

    Returns:
        The folder of the data set.

    Raises:
        InputError: number or name are not as nnU-Net wants them, no case has such labels, stage pseudo is not done with
            the run's data and settings, or the folder was begun from other labels or data.
    """
    if not 1 <= dataset_id <= 999:
        raise InputError(
            f"data set number: got {dataset_id}, expected 1 to 999; choose one that nnU-Net has not got yet"
        )
    if not NAME.fullmatch(name):
        raise InputError(f"data set name: got {name!r}, expected letters and digits; for example CovidLesions")
    cases = read_cases(run.data)
    folder = out / f"Dataset{dataset_id:03d}_{name}"
    claimed = _basis(run, labels)
    learnt = [case for case in cases if case.split != "test"]
    unusable = [case.name for case in learnt if labels == "reference" and case.lesions is None]
    training = [_training_job(run, case, folder, labels) for case in learnt if case.name not in unusable]
    if not training:
        raise InputError(f"{run.data}: got no training or validation case with {labels} labels, expected at least one")
    if unusable:
        left_out = f"left out, as they have no reference lesions: {', '.join(unusable)}"
        console.print(left_out, soft_wrap=True, highlight=False, markup=False)
    claim(folder, claimed)
    remove_stale(folder)
    jobs = training + [_test_job(case, folder) for case in of_split(cases, "test")]
    over_scans("nnU-Net", _export_case, jobs, run.workers)
    _describe(folder, training, name=name, labels=labels)
    console.print(_next_steps(folder, dataset_id), soft_wrap=True, highlight=False)
    return folder


def _training_job(run: Run, case: Case, folder: Path, labels: Labels) -> _Job:
    image = folder / "imagesTr" / f"{case.name}_0000{FILE_ENDING}"
    target = folder / "labelsTr" / f"{case.name}{FILE_ENDING}"
    if labels == "reference":
        return _Job(case, image, target, None)
    return _Job(case, image, target, (run.folder("pseudo") / f"{case.name}_labels.npy", prepared(run, case)))


def _test_job(case: Case, folder: Path) -> _Job:
    target = folder / "labelsTs" / f"{case.name}{FILE_ENDING}"
    image = folder / "imagesTs" / f"{case.name}_0000{FILE_ENDING}"
    return _Job(case, image, target if case.lesions is not None else None, None)


def _export_case(job: _Job) -> None:
    todo = [path for path in (job.image, job.labels) if path is not None and not path.is_file()]
    if not todo:
        return
    ct = read_ct(job.case.ct)
    for path in todo:
        path.parent.mkdir(exist_ok=True)
    if job.image in todo:
        write_image(job.image, ct)
    if job.labels in todo and job.labels is not None:
        write_image(job.labels, _lesions(job, ct))


def _lesions(job: _Job, ct: Volume) -> Volume:
    """The lesion mask to learn from, with the geometry of the CT as it is stored."""
    scan = read_scan(job.case)
    mask: NDArray[np.bool_]
    if job.pseudo is None:
        mask = reference_labels(job.case, scan) > 0
    else:
        path, cache = job.pseudo
        mask = on_ct_grid(margin_of_mask(load_array(path) == LESION, cache), scan)
    return from_canonical(scan.ct.with_array(mask), ct.geometry)


def _basis(run: Run, labels: Labels) -> dict[str, Any]:
    """What the data set is made of; pseudo labels must be of the run's table, seed and settings."""
    source = sha256_of_results(current_record(run, PSEUDO)) if labels == "pseudo" else None
    return {"labels": labels, "data_sha256": sha256((run.data / TABLE).read_bytes()), "pseudo_sha256": source}


def _describe(folder: Path, training: Sequence[_Job], *, name: str, labels: Labels) -> None:
    """Write dataset.json, by which nnU-Net knows the data set, last: it stands for a complete export."""
    train, validation = (
        [job.case.name for job in training if job.case.split == split] for split in ("train", "validation")
    )
    if train and validation:
        splits = json.dumps([{"train": train, "val": validation}], indent=2)
        write_text(folder / SPLITS, splits + "\n")
    write_json(
        folder / "dataset.json",
        {
            "name": name,
            "description": f"COVID-19 lesions in the lobes, from {labels} labels",
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": len(training),
            "file_ending": FILE_ENDING,
        },
    )


def _next_steps(folder: Path, dataset_id: int) -> str:
    """The commands that train nnU-Net on the data set and apply it to the test cases."""
    copy = f"cp {folder / SPLITS} $nnUNet_preprocessed/{folder.name}/\n" if (folder / SPLITS).is_file() else ""
    return (
        f"{folder} is complete. With nnU-Net v2 installed and nnUNet_raw={folder.parent}:\n"
        f"nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity\n"
        f"{copy}"
        f"nnUNetv2_train {dataset_id} 3d_fullres {0 if copy else 'all'}\n"
        f"nnUNetv2_predict -i {folder / 'imagesTs'} -o predictions -d {dataset_id} -c 3d_fullres "
        f"-f {0 if copy else 'all'}"
    )
