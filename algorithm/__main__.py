"""The command line: for people (`segment`), for the platform (`exec`, `serve`), and the report's schema (`schema`)."""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from algorithm import __version__
from algorithm.errors import InputError, one_line
from algorithm.images import Volume, write_labels
from algorithm.job import (
    INPUT_DIR,
    MEMORY_GB,
    OUTPUT_DIR,
    Segmenter,
    read_case,
    require_apart,
    run_case,
    staged_outputs,
)
from algorithm.report import LobesReport, SeverityReport, or_dash, severity_json_schema

if TYPE_CHECKING:
    from algorithm.segmenter import LesionSegmenter, Segmentation

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

LUNGMASK = Path("lungmask")  # in place of a lobe mask
SEGMENT_FILES = ("lesions.mha", "severity.json", "overview.png", "lobes.mha", "lesions.nii.gz")
LOBES_FILES = ("lobes.mha", "lobes.json", "lobes.png")
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Engine = Literal["auto", "torch", "openvino"]
ModelOption = Annotated[Path | None, typer.Option("--model", help="Model directory; default: the built-in one.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a GPU where there is one.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="bf16 may be faster; it moves single voxels and may turn a lesion's subtype."),
]
EngineOption = Annotated[
    Engine, typer.Option("--engine", help="auto takes torch; openvino, if installed, is an alternative on the CPU.")
]
MemoryOption = Annotated[float, typer.Option("--memory-gb", min=0.1, help="Memory for the activations of one tile.")]
InputOption = Annotated[Path, typer.Option("--input-dir", envvar="ALGORITHM_INPUT_DIR", hidden=True)]
OutputOption = Annotated[Path, typer.Option("--output-dir", envvar="ALGORITHM_OUTPUT_DIR", hidden=True)]
HostOption = Annotated[str, typer.Option("--host", hidden=True)]
PortOption = Annotated[int, typer.Option("--port", hidden=True)]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _setup(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Segment COVID-19 lesions on chest CT and score the involvement of each lobe; for research, not for diagnosis."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)


@app.command()
def segment(
    ct: Annotated[Path, typer.Argument(help="CT: .mha, .mhd, .nii, .nii.gz, .nrrd, or a folder of one DICOM series.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    lobes: Annotated[
        Path | None,
        typer.Option(
            "--lobes",
            help="Lobe mask on the CT's grid, labels 1 to 5; or the word lungmask, to find them with that package. "
            "Default: the model finds them.",
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = MEMORY_GB,
    precision: PrecisionOption = "fp32",
    engine: EngineOption = "auto",
    nifti: Annotated[bool, typer.Option("--nifti", help="Write lesions.nii.gz too.")] = False,
) -> None:
    """Segment one scan: lesions.mha, severity.json and overview.png, and lobes.mha where none are given."""
    _stop_orderly_on_sigterm()
    with _reported_errors():
        given = _given_lobes(lobes)
        require_apart((ct, given), (output / name for name in SEGMENT_FILES))
        with staged_outputs(output, optional=("lobes.mha", "lesions.nii.gz")) as staging:
            volume, lobe_mask = read_case(ct, given)
            with _shown_progress() as progress:
                segmenter = _load(model, device, memory_gb, precision, engine, lobes)
                segmentation = segmenter.segment(volume, lobe_mask, progress=progress)
            with ThreadPoolExecutor(1, "draw") as beside:
                drawing = beside.submit(_draw, volume, segmentation, staging / "overview.png")
                write_labels(segmentation.labels, staging / "lesions.mha")
                if nifti:
                    write_labels(segmentation.labels, staging / "lesions.nii.gz")
                if lobe_mask is None:
                    write_labels(segmentation.lobes, staging / "lobes.mha")
                (staging / "severity.json").write_text(segmentation.report.model_dump_json(indent=2), encoding="utf-8")
                drawing.result()
        _print_report(segmentation.report)


@app.command("segment-batch")
def segment_batch(
    scans: Annotated[Path, typer.Argument(help="Folder with <case>.mha, .nii.gz, ...; or a table case,ct,lobes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, a folder for each case.")],
    lobes: Annotated[
        Path | None,
        typer.Option("--lobes", help="Folder with a lobe mask of each case's name; or the word lungmask."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = MEMORY_GB,
    precision: PrecisionOption = "fp32",
    engine: EngineOption = "auto",
) -> None:
    """Segment many scans, leaving out those that are done, and collect severity.csv."""
    from algorithm.batch_cases import find_cases, require_elsewhere
    from algorithm.segment_batch import segment_cases

    _stop_orderly_on_sigterm()
    with _reported_errors():
        require_elsewhere(out, scans)
        cases = find_cases(scans, _given_lobes(lobes))
        failures = segment_cases(_load(model, device, memory_gb, precision, engine, lobes), cases, out, draw=_draw)
        for name, reason in failures.items():
            print(f"failed: {name}: {reason}")
        if failures:
            raise InputError(f"{len(failures)} of {len(cases)} cases failed; see above")


@app.command("lobes")
def find_lobes(
    ct: Annotated[Path, typer.Argument(help="CT, as for `segment`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    lobes: Annotated[
        Path | None, typer.Option("--lobes", help="The word lungmask, to find them with that package.")
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find the lobes of one scan: lobes.mha, lobes.json and lobes.png."""
    from algorithm.lobe_job import write_lobes

    _stop_orderly_on_sigterm()
    with _reported_errors():
        if lobes not in (None, LUNGMASK):
            raise InputError(f"--lobes: got {lobes}, expected the word lungmask, or leave it out")
        require_apart((ct,), (output / name for name in LOBES_FILES))
        with staged_outputs(output) as staging:
            volume, _ = read_case(ct, None)
            report = write_lobes(_load(model, device, 1.0, "fp32", "auto", lobes), volume, staging)
        _print_lobes(report)


@app.command("exec")
def execute(
    model: ModelOption = None,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = MEMORY_GB,
    precision: PrecisionOption = "fp32",
    engine: EngineOption = "auto",
    input_dir: InputOption = INPUT_DIR,
    output_dir: OutputOption = OUTPUT_DIR,
) -> None:
    """Process the case in /input into /output, once."""
    _stop_orderly_on_sigterm()
    with _reported_errors():
        run_case(_LoadedWhenNeeded(lambda: _load(model, device, memory_gb, precision, engine)), input_dir, output_dir)


@app.command()
def serve(
    model: ModelOption = None,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = MEMORY_GB,
    precision: PrecisionOption = "fp32",
    engine: EngineOption = "auto",
    input_dir: InputOption = INPUT_DIR,
    output_dir: OutputOption = OUTPUT_DIR,
    host: HostOption = "0.0.0.0",
    port: PortOption = 4743,
) -> None:
    """Load the model and warm up, then process the case in /input at each POST to /invoke."""
    from algorithm import server

    with _reported_errors():
        segmenter = _load(model, device, memory_gb, precision, engine)
        segmenter.warm_up()
        served = server.create_app(segmenter, input_dir, output_dir)
        server.serve(served, host=host, port=port)


@app.command()
def schema() -> None:
    """Print the JSON schema of severity.json."""
    print(json.dumps(severity_json_schema(), indent=2))


class _LoadedWhenNeeded:
    """A segmenter that is loaded when a scan has passed its checks, so that bad input is told at once."""

    def __init__(self, load: Callable[[], Segmenter]) -> None:
        self._load = load

    def segment(
        self, ct: Volume, lobes: Volume | None = None, *, progress: Callable[[str, float], None] | None = None
    ) -> Segmentation:
        return self._load().segment(ct, lobes, progress=progress)


def _given_lobes(lobes: Path | None) -> Path | None:
    """The mask, or folder of masks, that the option names; None where it names the package or nothing."""
    if lobes == LUNGMASK and LUNGMASK.exists():
        raise InputError(
            "--lobes: got lungmask, which is a package, and here a file or folder too; give the absolute path for the "
            "latter, or rename it"
        )
    return None if lobes == LUNGMASK else lobes


def _load(
    model: Path | None,
    device: Device,
    memory_gb: float,
    precision: Precision,
    engine: Engine,
    lobes: Path | None = None,
) -> LesionSegmenter:
    from algorithm.model import find_model  # these import torch, which takes seconds
    from algorithm.segmenter import LesionSegmenter

    finder: Literal["model", "lungmask"] = "lungmask" if lobes == LUNGMASK else "model"
    return LesionSegmenter.from_directory(
        find_model(model), device=device, memory_gb=memory_gb, precision=precision, engine=engine, lobes_by=finder
    )


def _draw(ct: Volume, segmentation: Segmentation, path: Path) -> None:
    from algorithm.overview import draw_overview

    draw_overview(ct, segmentation, path)


def _stop_orderly_on_sigterm() -> None:
    """Leave no partial output when told to stop, and stop even as a container's first process."""

    def stop(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def _reported_errors() -> Iterator[None]:
    """Turn an error into one line on stderr, the last, and the exit code: 2 for bad input, 1 for anything else."""
    try:
        yield
    except Exception as error:
        expected = isinstance(error, InputError)
        if not expected:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        print(one_line(error), file=sys.stderr, flush=True)
        raise typer.Exit(2 if expected else 1) from error


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("load model", total=1.0)
        yield lambda step, fraction: bar.update(task, description=step, completed=fraction)


def _print_report(report: SeverityReport) -> None:
    table = Table("lobe")
    for name in ("volume (ml)", "lesion (ml)", "lesion (%)", "score"):
        table.add_column(name, justify="right")
    for lobe in report.lobes:
        percent, score = or_dash(lobe.percent, ".1f"), or_dash(lobe.score, "d")
        table.add_row(lobe.name, f"{lobe.volume_ml:.0f}", f"{lobe.lesion_ml:.1f}", percent, score)
    table.add_section()
    table.add_row("total", "", f"{report.lesion_ml:.1f}", "", or_dash(report.total_score, "d"))
    _print_table(table, report.warnings)


def _print_lobes(report: LobesReport) -> None:
    table = Table("lobe")
    for name in ("volume (ml)", "confidence"):
        table.add_column(name, justify="right")
    for lobe in report.lobes:
        table.add_row(lobe.name, f"{lobe.volume_ml:.0f}", or_dash(lobe.confidence, ".2f"))
    table.add_section()
    table.add_row("both lungs", f"{report.lungs_ml:.0f}", "")
    _print_table(table, report.warnings)


def _print_table(table: Table, warnings: list[str]) -> None:
    console = Console()
    console.print(table)
    for warning in warnings:
        console.print(f"Warning: {warning}")


if __name__ == "__main__":
    app(prog_name="python -m algorithm")
