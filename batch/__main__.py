"""Command line: `python -m batch run | status | fetch | retry | collect`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from batch.cases import find_cases, require_elsewhere, shortened
from batch.cohort import PICTURE_FILE, TABLE_FILE, collect
from batch.errors import InputError, PlatformError, TokenRefusedError, without_queries
from batch.manifest import FILE_NAME, HERE, Manifest, only_process
from batch.results import SEVERITY_FILE, require_no_folder
from batch.scans import convert

if TYPE_CHECKING:
    from batch.connection import Connection

_WIDE = 1000  # characters
PLATFORM = "https://grand-challenge.org/api/v1/"

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
    for filterer in (*logging.getLogger().handlers, logging.getLogger("httpx._client")):
        filterer.addFilter(_hide_signatures)  # httpx has a handler of its own where HTTPX_LOG_LEVEL is set


@app.command()
def run(
    algorithm: Annotated[str, typer.Option(help="Slug of the algorithm, as in its web address.")],
    out: OutOption,
    scans: Annotated[
        Path | None, typer.Option(help="Folder with <case>.mha, .nii.gz or DICOM folders; or a table case,ct,lobes.")
    ] = None,
    lobes: Annotated[Path | None, typer.Option(help="Folder with a lobe mask <case>.mha or .nii.gz a scan.")] = None,
    archive: Annotated[str | None, typer.Option(help="Slug of an archive on the platform, in place of scans.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the scans and show what would be sent.")] = False,
    platform: Annotated[str, typer.Option(help="Address of the platform's API.")] = PLATFORM,
) -> None:
    """Run every scan that is not finished, wait, and fetch the outputs. Can be stopped and run again."""
    with _one_line_errors():
        if (scans is None) == (archive is None):
            raise InputError("got both or none of --scans and --archive, expected one of them")
        if archive and lobes:
            raise InputError(
                "got --lobes with --archive, whose lobes are on the platform; expected --scans, or no --lobes"
            )
        if scans:
            require_elsewhere(out, scans)
        manifest = Manifest.load_or_new(out, platform=platform, algorithm=algorithm)
        if dry_run:
            if scans is None:
                raise InputError("got --dry-run with --archive, of which nothing would be sent; expected --scans")
            wanted = manifest.plan(find_cases(scans, lobes), out)
            table, unusable = _sendings(manifest, out, wanted)
            _show(table)
            if unusable:
                raise InputError(f"{unusable} of {len(wanted)} cases cannot be sent; see above")
            return
        cases = find_cases(scans, lobes) if scans else []
        with _connect(platform) as connection, only_process(out):
            manifest = Manifest.load_or_new(out, platform=platform, algorithm=algorithm)
            wanted = manifest.plan(connection.archive(archive) if archive else cases, out)
            _complete(manifest, out, connection, wanted=wanted)


@app.command()
def retry(
    out: OutOption,
    cases: Annotated[list[str] | None, typer.Argument(help="Cases that failed; default: all that did.")] = None,
) -> None:
    """Start jobs that failed or were cancelled anew, which costs credits again; wait, and fetch the outputs."""
    with _one_line_errors(), _connect(Manifest.load(out).platform) as connection, only_process(out):
        manifest = Manifest.load(out)
        wanted = manifest.retry(cases or [])
        if not wanted:
            raise InputError(f"{out}: got no case whose job failed or was cancelled, expected at least one")
        manifest.forget_errors(out)
        _complete(manifest, out, connection, wanted=wanted)


@app.command()
def status(out: OutOption) -> None:
    """Show what the manifest knows of each case; asks the platform nothing."""
    with _one_line_errors():
        _show(_table(Manifest.load(out)))


@app.command()
def fetch(out: OutOption) -> None:
    """Ask once for the status of the jobs and fetch the outputs that are ready; start and await nothing."""
    with _one_line_errors(), _connect(Manifest.load(out).platform) as connection, only_process(out):
        from batch.jobs import Batch

        manifest = Manifest.load(out)
        manifest.forget_errors(out)
        Batch(connection, manifest, out, wanted=()).refresh()
        _show(_table(manifest))
        _finish(manifest, out, complete=False)


@app.command("collect")
def collect_results(out: OutOption) -> None:
    """Write severity.csv and cohort.png anew from all cases in the folder; asks the platform nothing."""
    with _one_line_errors():
        cases = collect(out, without=_unfinished(Manifest.load(out)) if (out / FILE_NAME).exists() else ())
        if not cases:
            raise InputError(f"{out}: got no case with severity.json, expected the output folder of earlier runs")
        print(f"{len(cases)} cases in {out / TABLE_FILE} and {out / PICTURE_FILE}")


def _connect(url: str) -> Connection:
    try:
        from batch.connection import Connection
    except ImportError as error:
        raise InputError(f"{error.name}: not installed; pip install -r batch/requirements.txt") from error
    return Connection(url)


def _complete(manifest: Manifest, out: Path, connection: Connection, *, wanted: Collection[str]) -> None:
    from batch.jobs import Batch

    try:
        Batch(connection, manifest, out, wanted=wanted).run()
    except BaseException:
        _show(_table(manifest))
        with suppress(InputError):
            collect(out, without=_unfinished(manifest))
        raise
    _show(_table(manifest))
    _finish(manifest, out, complete=True)


def _unfinished(manifest: Manifest) -> list[str]:
    """Cases of which a folder, if there is one, holds something else than their results."""
    return [name for name, record in manifest.cases.items() if not record.is_finished]


def _finish(manifest: Manifest, out: Path, *, complete: bool) -> None:
    """Collect the results; then fail if a case failed or, where all should be complete, is not finished."""
    reported = collect(out, without=_unfinished(manifest))
    records = manifest.cases.values()
    unreported = [name for name, record in manifest.cases.items() if record.is_finished and name not in reported]
    if unreported:
        print(f"Warning: no {SEVERITY_FILE} and so no row in {TABLE_FILE}: {shortened(unreported)}")
    images = {record.algorithm_image for record in records if record.algorithm_image}
    if len(images) > 1:
        print(f"Warning: {len(images)} versions of the algorithm made these results; see manifest.json for which")
    failed = sum(record.error is not None for record in records)
    unfinished = len(_unfinished(manifest))
    if failed or (complete and unfinished):
        raise InputError(f"{failed} of {len(records)} cases failed, {unfinished} are without outputs; see above")


def _table(manifest: Manifest) -> Table:
    """Finished cases first, failed ones last, where a terminal still shows them."""
    table = _columns("case", "status", "job", "outputs", "error", title=manifest.algorithm)
    for name, record in sorted(manifest.cases.items(), key=lambda item: (item[1].error is not None, item[0])):
        outputs = "" if record.outputs is None else str(len(record.outputs))
        table.add_row(name, record.status, record.job or "", outputs, record.error or "")
    return table


def _columns(*headers: str, title: str) -> Table:
    """A table that cuts nothing off."""
    table = Table(title=title)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _show(table: Table) -> None:
    """Print a table, its texts as they are: names and messages may hold what rich would take for markup.

    In a file or pipe each row is one line.
    """
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table)


def _sendings(manifest: Manifest, out: Path, wanted: Collection[str]) -> tuple[Table, int]:
    """What would be sent: each file after conversion, with its size, or why it cannot be; and how many cannot be."""
    unusable = 0
    title = f"{manifest.algorithm}: nothing is sent"
    table = _columns("case", "status", "socket", "file sent", "MB", "error", title=title)
    for name, record in sorted(manifest.cases.items()):
        if name not in wanted or not record.is_to_start:
            table.add_row(name, record.status, "", "", "", "")
            continue
        try:
            require_no_folder(out / name)
            with TemporaryDirectory() as temporary:
                for slug, path in convert(record.files, Path(temporary)).items():
                    megabytes = f"{path.stat().st_size / 1e6:.1f}"
                    table.add_row(name, record.status, slug, f"{name}_*_{slug}.mha", megabytes, "")
        except (InputError, OSError) as error:
            table.add_row(name, record.status, "", "", "", str(error))
            unusable += 1
    here = sum(record.status == HERE for record in manifest.cases.values())
    table.caption = f"{here} cases computed here" if here else None
    return table, unusable


def _hide_signatures(record: logging.LogRecord) -> bool:
    """Keep signatures out of the log: the client tells the whole address of an upload that it tries again."""
    record.msg, record.args = without_queries(record.getMessage()), ()
    return True


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an error that the user can mend into one line on stderr and exit code 1."""
    try:
        yield
    except (InputError, PlatformError, TokenRefusedError, OSError) as error:
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(code=1) from error


if __name__ == "__main__":
    app(prog_name="python -m batch")
