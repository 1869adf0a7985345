"""Command line of training: one sub-command a stage, `run` for all of them.

python -m training phantom --cases 30 --healthy 3 --validation 3 --test 6 --out phantoms
python -m training run --data phantoms --run-dir runs/first --config smoke
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from algorithm.errors import InputError
from algorithm.model import find_model
from algorithm.segmenter import LesionSegmenter
from training.ablate.seeds import compare_seeds
from training.benchmark import benchmark as run_benchmark
from training.cases import Split
from training.config import load_config, preset_names
from training.importers.command import app as importers
from training.lobe_dice import compare_lobes
from training.nnunet import export_nnunet
from training.parallel import Workers, default_workers
from training.phantom.chest import Disease, PhantomOptions
from training.phantom.generate import write_phantoms
from training.phantom.scanner import FieldOfView
from training.reproduce import Benchmark
from training.reproduce import reproduce as run_reproduction
from training.reproduce.presence import compare_presence
from training.run import STAGES, run_all
from training.segment import Labels, stage_name
from training.stages import Run, Stage, execute

app = typer.Typer(
    help="From CT scans with lobe-wise severity scores to a lesion segmenter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Data = Annotated[Path, typer.Option(help="Directory with cases.csv.")]
RunDirectory = Annotated[Path, typer.Option("--run-dir", help="Directory of this run; each stage has a folder in it.")]
Config = Annotated[str, typer.Option(help=f"Settings: a TOML file, or one of the presets {', '.join(preset_names())}.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where networks run.")]
Count = Annotated[int, typer.Option("--workers", min=1, help="Scans worked on, or read ahead for a GPU, at a time.")]
WORKERS = default_workers()
RESULTS = Path("docs/results.md")
Dask = Annotated[str | None, typer.Option(help="Address of a Dask scheduler, tcp://..., for the work over scans.")]


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Directory of the new data set.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of cases.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    validation: Annotated[int, typer.Option(min=0, help="Cases of them for the validation split.")] = 0,
    test: Annotated[int, typer.Option(min=0, help="Cases of them for the test split.")] = 0,
    healthy: Annotated[int, typer.Option(min=0, help="Training cases without lesions, to learn vessels from.")] = 0,
    lobe_shapes: Annotated[Path | None, typer.Option(help="Directory of real lobe label maps (*.nii.gz).")] = None,
    coarseness: Annotated[float, typer.Option(min=0.5, max=6.0, help="Voxel size factor; 2 for quick trials.")] = 1.0,
    disease: Annotated[Disease, typer.Option(help="Lesions; half-lung is one lung consolidated by half.")] = "usual",
    score_noise: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Probability that a training or validation lobe near a border of two scores is misread."
        ),
    ] = 0.0,
    field_of_view: Annotated[FieldOfView, typer.Option(help="wide: with more or less of neck and belly.")] = "lungs",
    workers: Annotated[int, typer.Option(min=1, help="Cases made at a time.")] = 2,
) -> None:
    """Make digital chest phantoms: CT, lobes, lesions by subtype, vessels and scores."""
    options = PhantomOptions(
        lobe_shapes=lobe_shapes,
        coarseness=coarseness,
        validation=validation,
        test=test,
        healthy=healthy,
        disease=disease,
        score_noise=score_noise,
        field_of_view=field_of_view,
        workers=workers,
    )
    write_phantoms(cases=cases, seed=seed, out=out, options=options)


@app.command()
def run(
    data: Data,
    run_directory: RunDirectory,
    config: Config = "default",
    device: Device = "auto",
    workers: Count = WORKERS,
    dask: Dask = None,
    compare: Annotated[
        bool,
        typer.Option(help="Also train baseline, ablations and upper bound; compare on the test cases."),
    ] = False,
    lobe_data: Annotated[
        Path | None,
        typer.Option(help="Also learn lobes, from this directory's CTs and lobe masks, for scans without lobes."),
    ] = None,
) -> None:
    """Do all stages in order, leaving out what is done."""
    this = Run(data, run_directory, load_config(config), device, Workers(workers, dask))
    sys.exit(run_all(this, config, with_comparison=compare, lobe_data=lobe_data))


@app.command()
def reproduce(
    lobe_shapes: Annotated[Path, typer.Option(help="Directory of real lobe label maps (*.nii.gz).")],
    out: Annotated[Path, typer.Option(help="Directory of the data (data/) and the run (run/).")],
    document: Annotated[Path, typer.Option(help="The document to write; pictures go beside it.")] = RESULTS,
    real: Annotated[
        Path | None, typer.Option(help="Real scans: a folder each, ct.mha, lobes.mha and, if labelled, presence.csv.")
    ] = None,
    lobe_data: Annotated[
        Path | None, typer.Option(help="Also learn lobes, from this data directory, and measure them on it.")
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Training cases.")] = 150,
    healthy: Annotated[int, typer.Option(min=1, help="Training cases of them without lesions.")] = 15,
    validation: Annotated[int, typer.Option(min=1, help="Validation cases.")] = 15,
    test: Annotated[int, typer.Option(min=1, help="Test cases.")] = 40,
    coarseness: Annotated[float, typer.Option(min=0.5, max=6.0, help="Voxel size factor.")] = 1.6,
    config: Config = "default",
    device: Device = "auto",
    workers: Count = WORKERS,
) -> None:
    """Make the benchmark of phantoms, do every stage and the comparison on it, and write down the results."""
    benchmark = Benchmark(lobe_shapes, train, healthy, validation, test, coarseness=coarseness)
    this = Run(out / "data", out / "run", load_config(config), device, Workers(workers))
    sys.exit(run_reproduction(benchmark, this, config, document, real=real, lobe_data=lobe_data))


@app.command()
def segment(
    data: Data,
    run_directory: RunDirectory,
    config: Config = "default",
    device: Device = "auto",
    workers: Count = WORKERS,
    dask: Dask = None,
    labels: Annotated[Labels, typer.Option(help="reference trains the supervised upper bound.")] = "pseudo",
) -> None:
    """Train the final network on pseudo labels, or on reference labels."""
    stage = next(stage for stage in STAGES if stage.name == stage_name(labels))
    execute(Run(data, run_directory, load_config(config), device, Workers(workers, dask)), stage)


@app.command()
def nnunet(
    data: Data,
    run_directory: RunDirectory,
    out: Annotated[Path, typer.Option(help="nnU-Net's raw folder (nnUNet_raw).")],
    config: Config = "default",
    labels: Annotated[Labels, typer.Option(help="Labels to learn from.")] = "reference",
    dataset: Annotated[int, typer.Option(min=1, max=999, help="nnU-Net's number of the data set.")] = 501,
    name: Annotated[str, typer.Option(help="nnU-Net's name of the data set.")] = "CovidLesions",
) -> None:
    """Export the data in nnU-Net v2's raw format, to train nnU-Net beside this project's networks."""
    export_nnunet(Run(data, run_directory, load_config(config)), out, dataset_id=dataset, name=name, labels=labels)


@app.command()
def seeds(
    run_directories: Annotated[list[Path], typer.Option("--run-dir", help="A run with a finished ablate; repeat.")],
    out: Annotated[Path, typer.Option(help="Directory of the table.")],
) -> None:
    """Compare runs that differ in their seed: which rows and steps hold, and which are chance."""
    compare_seeds(run_directories, out)


@app.command()
def lobe_dice(
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the tables and pictures.")],
    model: Annotated[Path | None, typer.Option(help="Model directory; default: the built-in one.")] = None,
    split: Annotated[Split, typer.Option(help="Which cases.")] = "test",
    device: Device = "auto",
    lesions: Annotated[
        bool, typer.Option(help="Also segment lesions, in the found and in the given lobes, and compare percentages.")
    ] = False,
) -> None:
    """Measure the lobes that a model finds by itself against those of a data set."""
    segmenter = LesionSegmenter.from_directory(find_model(model), device=device)
    compare_lobes(segmenter, data, out, split=split, with_lesions=lesions)


@app.command()
def presence(
    real: Annotated[Path, typer.Option(help="Real scans: a folder each, ct.mha, lobes.mha and presence.csv.")],
    out: Annotated[Path, typer.Option(help="Directory of the tables and pictures.")],
    model: Annotated[Path | None, typer.Option(help="Model directory; default: the built-in one.")] = None,
    device: Device = "auto",
) -> None:
    """Compare where a model finds lesion with the slices and lobes in which readers saw disease."""
    compare_presence(LesionSegmenter.from_directory(find_model(model), device=device), real, out)


@app.command()
def benchmark(
    device: Device = "auto",
    width: Annotated[int, typer.Option(min=1, help="Filters of the first convolution.")] = 16,
    chunk_size: Annotated[int, typer.Option(min=24, help="Voxels per side; a multiple of 8.")] = 80,
    batch: Annotated[int, typer.Option(min=1, help="Chunks per step.")] = 2,
    run_directory: Annotated[
        Path | None, typer.Option("--run-dir", help="A run whose stages' peak memory to print as well.")
    ] = None,
) -> None:
    """Print what the dense CRF and the reading of data cost beside the network, and the memory that a run took."""
    run_benchmark(device=device, width=width, chunk_size=chunk_size, batch=batch, run_directory=run_directory)


def _command(stage: Stage) -> Callable[..., None]:
    def command(
        data: Data,
        run_directory: RunDirectory,
        config: Config = "default",
        device: Device = "auto",
        workers: Count = WORKERS,
        dask: Dask = None,
    ) -> None:
        execute(Run(data, run_directory, load_config(config), device, Workers(workers, dask)), stage)

    return command


app.add_typer(importers, name="import")
for _stage in STAGES:
    if _stage.name != "segment":
        app.command(name=_stage.name, help=_stage.summary)(_command(_stage))


def main() -> None:
    """Run the command line; wrong input ends in one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        sys.exit(_failed(error))


def _failed(error: InputError) -> int:
    print(f"Error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
