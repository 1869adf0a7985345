"""Command line: `python -m evaluation challenge` in the container, `python -m evaluation compare` for people."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluation.challenge import run_challenge
from evaluation.compare import compare_methods, parse_methods, summary_table
from evaluation.errors import InputError, SubmissionError

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
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
    logging.captureWarnings(capture=True)


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
        _fail(str(error))
    except Exception:
        log.exception("the evaluation failed")
        _fail("The evaluation itself failed; its organisers find the reason in the log.")


@app.command()
def compare(
    reference: Annotated[Path, typer.Option(help="Folder with reference.csv and its masks.")],
    method: Annotated[list[str], typer.Option(help="NAME=DIR; DIR holds <case>.mha or <case>/lesions.mha.")],
    out: Annotated[Path, typer.Option(help="Gets scans.csv and metrics.json.")],
) -> None:
    """Judge several methods on one reference and test the differences between them."""
    try:
        metrics = compare_methods(reference_directory=reference, methods=parse_methods(method), out=out)
    except (InputError, OSError) as error:
        _fail(str(error))
    Console().print(summary_table(metrics))


def _fail(message: str) -> None:
    """Leave with one line on stderr."""
    typer.echo(" ".join(message.split()), err=True)
    raise typer.Exit(code=1)


if __name__ == "__main__":
    app(prog_name="python -m evaluation")
