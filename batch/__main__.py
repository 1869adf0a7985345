"""Command line: `python -m batch run | status | fetch`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from batch.cases import pair_cases
from batch.connection import connect
from batch.errors import InputError
from batch.jobs import Batch
from batch.manifest import Manifest

app = typer.Typer(
    help="Run the uploaded algorithm over many scans.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its listing of variables could show the token
)

OutOption = Annotated[Path, typer.Option(help="Holds manifest.json and one folder of outputs a case.")]


@app.callback()
def _log_to_stdout() -> None:
    """Run the uploaded algorithm over many scans on grand-challenge.org."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s", force=True)
    logging.getLogger("batch").setLevel(logging.INFO)


@app.command()
def run(
    algorithm: Annotated[str, typer.Option(help="Slug of the algorithm, as in its web address.")],
    scans: Annotated[Path, typer.Option(help="Folder with <case>.mha CT scans.")],
    lobes: Annotated[Path, typer.Option(help="Folder with <case>.mha lobe masks.")],
    out: OutOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; upload nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Start failed jobs anew.")] = False,
) -> None:
    """Run every scan that is not finished, wait, and fetch the outputs. Can be stopped and run again."""
    with _one_line_errors():
        cases = pair_cases(scans=scans, lobes=lobes)
        manifest = Manifest.load_or_new(out, algorithm=algorithm)
        manifest.plan(cases, retry_failed=retry_failed)
        if dry_run:
            Console().print(_table(manifest))
            return
        connection = connect()
        out.mkdir(parents=True, exist_ok=True)
        manifest.save(out)
        Batch(connection, manifest, out).run(cases)
        _finish(manifest, complete=True)


@app.command()
def status(out: OutOption) -> None:
    """Show what the manifest knows of each case; asks the platform nothing."""
    with _one_line_errors():
        Console().print(_table(Manifest.load(out)))


@app.command()
def fetch(out: OutOption) -> None:
    """Ask once for the status of the jobs and fetch the outputs that are ready; start and await nothing."""
    with _one_line_errors():
        manifest = Manifest.load(out)
        manifest.forget_fetch_errors()
        Batch(connect(), manifest, out).refresh()
        _finish(manifest, complete=False)


def _finish(manifest: Manifest, *, complete: bool) -> None:
    """Show all cases; then fail if one failed or, where all should be complete, is not finished."""
    Console().print(_table(manifest))
    failed = sum(record.error is not None for record in manifest.cases.values())
    unfinished = sum(not record.is_finished for record in manifest.cases.values())
    if failed or (complete and unfinished):
        raise InputError(f"{failed} of {len(manifest.cases)} cases failed, {unfinished} are without outputs; see above")


def _table(manifest: Manifest) -> Table:
    """Finished cases first, failed ones last, where a terminal still shows them."""
    table = Table("case", "status", "job", "outputs", "error", title=manifest.algorithm)
    for name, record in sorted(manifest.cases.items(), key=lambda item: (item[1].error is not None, item[0])):
        outputs = "" if record.outputs is None else str(len(record.outputs))
        table.add_row(name, record.status, record.job or "", outputs, record.error or "")
    return table


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an error that the user can mend into one line on stderr and exit code 1."""
    try:
        yield
    except (InputError, OSError) as error:
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(code=1) from error


if __name__ == "__main__":
    app(prog_name="python -m batch")
