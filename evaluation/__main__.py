"""Command line: `python -m evaluation challenge` in the container, `python -m evaluation compare` for people."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from evaluation.challenge import run_challenge
from evaluation.errors import InputError, SubmissionError
from evaluation.streams import log_to_stdout

app = typer.Typer(
    help="Judge lesion segmentations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its listing of variables could show the reference
)
log = logging.getLogger("evaluation")


@app.callback()
def _log_to_stdout() -> None:
    """Judge lesion segmentations. The log goes to stdout; stderr has one line, and only on failure."""
    log_to_stdout()


@app.command()
def challenge(
    input_dir: Annotated[Path, typer.Option(help="Holds predictions.json and the jobs' outputs.")] = Path("/input"),
    ground_truth_dir: Annotated[Path, typer.Option(help="Holds reference.csv and its masks.")] = Path(
        "/opt/ml/input/data/ground_truth"
    ),
    output_dir: Annotated[Path, typer.Option(help="Gets metrics.json.")] = Path("/output"),
) -> None:
    """Judge a submission as Grand Challenge hands it over."""
    try:
        run_challenge(input_directory=input_dir, ground_truth_directory=ground_truth_dir, output_directory=output_dir)
    except SubmissionError as error:
        log.info("the submission was refused", exc_info=True)
        _fail(str(error))
    except Exception:
        log.exception("the evaluation failed")
        _fail("The evaluation itself failed; its organisers find the reason in the log.")


class Resampling(str, Enum):
    """How a mask may be brought onto the reference's grid."""

    NEAREST = "nearest"


@app.command()
def compare(
    reference: Annotated[Path, typer.Option(help="Folder with reference.csv and its masks.")],
    method: Annotated[list[str], typer.Option(help="NAME=DIR; DIR holds <case>.mha or <case>/lesions.mha.")],
    out: Annotated[Path, typer.Option(help="Gets report.html, tables.md, tables.tex, scans.csv and metrics.json.")],
    against: Annotated[str | None, typer.Option(help="Test only pairs with this method (else every pair).")] = None,
    resample: Annotated[
        Resampling | None, typer.Option(help="Bring masks from another grid onto the reference's (else an error).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Start of the bootstrap's random numbers.")] = 0,
) -> None:
    """Judge several methods on one reference and test the differences between them."""
    # Here, since the container has no use for the drawing library and its cache
    from evaluation.compare import compare_methods, parse_methods
    from evaluation.report.tables import paper_table

    try:
        comparison = compare_methods(
            reference_directory=reference,
            methods=parse_methods(method),
            out=out,
            against=against,
            resample=resample is not None,
            seed=seed,
        )
    except (InputError, OSError) as error:
        _fail(str(error))
    typer.echo(paper_table(comparison).markdown())
    typer.echo(f"report: {out / 'report.html'}")


@app.command()
def benchmark() -> None:
    """Judge a made scan of 512 x 512 x 400 voxels on one core: seconds, memory, and the ratio to reading its files."""
    from evaluation.benchmark import benchmark as measure

    for name, value in measure().items():
        typer.echo(f"{name:14} {value:.2f}")


def _fail(message: str) -> NoReturn:
    """Leave with one line on stderr."""
    typer.echo(" ".join(message.split()), err=True)
    raise typer.Exit(code=1)


if __name__ == "__main__":
    app(prog_name="python -m evaluation")
