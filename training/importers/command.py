"""Command line of the importers, one command a data set.

python -m training import mosmed --root MOSMED --out data --lobes LOBES --lobe-labels lungmask
python -m training import table --table scores.csv --out data
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from training.importers import covid_19_20, covid_ct_md, ct_seg, medseg, mosmed, ricord, table, totalsegmentator
from training.importers.dataset import write_dataset
from training.importers.lobes import LobeFiles, LobeLabels
from training.importers.masks import LesionLabels, Numbering
from training.importers.source import assign_splits, remark
from training.parallel import Workers, default_workers

IMPORTERS: dict[str, ModuleType] = {
    "covid-19-20": covid_19_20,
    "covid-ct-md": covid_ct_md,
    "ct-seg": ct_seg,
    "medseg": medseg,
    "mosmed": mosmed,
    "ricord": ricord,
    "totalsegmentator": totalsegmentator,
}
"""The public data sets by the names of their commands."""

_WORKERS = default_workers()

app = typer.Typer(help="Bring a public data set, or one's own table of scores, into the layout of training.")

Out = Annotated[Path, typer.Option(help="Directory of the new data set.")]
LobeNumbering = Annotated[
    LobeLabels, typer.Option("--lobe-labels", help="Which tool numbered the lobes in their masks.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draw of splits.")]
Validation = Annotated[int, typer.Option(min=0, help="Patients to draw for the validation split.")]
Test = Annotated[int, typer.Option(min=0, help="Patients to draw for the test split.")]
Count = Annotated[int, typer.Option("--workers", min=1, help="Scans at a time.")]
Dask = Annotated[str | None, typer.Option(help="Address of a Dask scheduler, tcp://..., for the work over scans.")]


def _command(importer: ModuleType) -> Callable[..., None]:
    def command(
        root: Annotated[Path, typer.Option(help="Folder of the unpacked data set.")],
        out: Out,
        lobes: Annotated[Path | None, typer.Option(help="Folder of lobe masks, CASE.nii.gz or CASE.mha.")] = None,
        lobe_labels: LobeNumbering = "ours",
        seed: Seed = 0,
        validation: Validation = 0,
        test: Test = 0,
        skip_unusable: Annotated[
            bool, typer.Option("--skip-unusable", help="Leave out scans that cannot be used.")
        ] = False,
        workers: Count = _WORKERS,
        dask: Dask = None,
    ) -> None:
        source = importer.SOURCE
        remark(f"{source.name}, {source.url}; licence: {source.licence}; cite: {source.citation}")
        cases = assign_splits(importer.read(root), seed=seed, validation=validation, test=test)
        masks = LobeFiles(lobes, lobe_labels) if lobes else None
        write_dataset(source, cases, out, lobes=masks, skip_unusable=skip_unusable, workers=Workers(workers, dask))

    return command


def _help(importer: ModuleType) -> str:
    """Its docstring, set by typer to the terminal's width save for the indented layout of the data set."""
    paragraphs = (inspect.getdoc(importer) or "").split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith(" ") else " ".join(text.split()) for text in paragraphs)


for _name, _importer in IMPORTERS.items():
    app.command(name=_name, help=_help(_importer))(_command(_importer))


@app.command(name="table")
def import_table(
    scores: Annotated[
        Path, typer.Option("--table", help="CSV with columns case, ct, lobes and a score for each lobe.")
    ],
    out: Out,
    root: Annotated[Path | None, typer.Option(help="Folder that paths in the table start from; else its own.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="NAME=HEADER for a column that is not recognised; may be repeated.")
    ] = None,
    percent: Annotated[
        bool, typer.Option("--percent", help="The table gives percentages, to be turned to scores.")
    ] = False,
    lobe_labels: LobeNumbering = "ours",
    lesion_labels: Annotated[
        LesionLabels,
        typer.Option(help="subtypes: 1 ground-glass, 2 consolidation, 3 mixed, 4 unknown; or 0 and 1."),
    ] = "subtypes",
    seed: Seed = 0,
    validation: Validation = 0,
    test: Test = 0,
    workers: Count = _WORKERS,
    dask: Dask = None,
) -> None:
    """One's own scans with scores from a table; the scans stay where they are.

    Optional columns: lesions, vessels, split (train, validation or test; else drawn), patient (of whom all scans come
    into one split).
    """
    columns = dict(table.parse_column(text) for text in column or ())
    numbering = Numbering(lobe_labels, lesion_labels)
    options = table.TableOptions(root=root, columns=columns, percent=percent, numbering=numbering)
    table.import_table(
        scores, out, options, seed=seed, validation=validation, test=test, workers=Workers(workers, dask)
    )
