"""Work over many scans: joblib on this machine, or a Dask cluster."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from rich.console import Console
from rich.progress import track

from algorithm.errors import InputError, one_line

Item = TypeVar("Item")
Result = TypeVar("Result")
console = Console()
MOST_WORKERS = 4  # by default
# joblib replaces a worker that has grown; no job is lost, and one that dies at its work is an error.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Attributes:
        count: scans at a time on this machine.
        dask: address of a Dask scheduler, whose workers see the same paths; None for this machine.
        patience_s: how long to wait for the scheduler, and then for its first worker.
    """

    count: int = 2
    dask: str | None = None
    patience_s: float = 20.0


def over_scans(
    title: str, function: Callable[[Item], Result], items: Sequence[Item], workers: Workers | None = None
) -> list[Result]:
    """Apply a function to every item, with a progress bar.

    Args:
        title: of the progress bar.
        function: importable by name, and its arguments picklable, for it runs in other processes.
        items: one a scan; an error names the item by its attribute ``name``, or else as Python prints it.
        workers: by default those of this machine.

    Returns:
        The results, in the order of the items.

    Raises:
        InputError: the Dask cluster cannot be reached or has no workers, or the function raised one.
        OSError: the function raised one.
        RuntimeError: the function raised anything else.
    """
    workers = workers or Workers()
    if not items:
        return []
    with _backend(workers):
        jobs = (joblib.delayed(_Named(function))(item) for item in items)
        parallel = joblib.Parallel(n_jobs=None if workers.dask else workers.count, return_as="generator")
        return list(track(parallel(jobs), title, total=len(items), console=console))


def end_workers() -> None:
    """End the processes that `over_scans` keeps on this machine for its next call, which then starts new ones."""
    get_reusable_executor(reuse=True).shutdown(wait=True)


def default_workers() -> int:
    """The cores that this process may use, at most 4: a large scan takes some 2 GB of memory, and all less than 12."""
    return min(MOST_WORKERS, int(joblib.cpu_count()))


@dataclass(frozen=True)
class _Named(Generic[Item, Result]):
    """A function whose errors say for which item they were raised."""

    function: Callable[[Item], Result]

    def __call__(self, item: Item) -> Result:
        try:
            return self.function(item)
        except InputError as error:
            raise InputError(f"{_name(item)}: {error}") from error
        except OSError as error:
            raise OSError(error.errno, f"{_name(item)}: {error.strerror or error}", error.filename) from error
        except Exception as error:
            raise RuntimeError(f"{_name(item)}: {one_line(error)}") from error


def _name(item: object) -> str:
    return str(getattr(item, "name", None) or reprlib.repr(item))


@contextmanager
def _backend(workers: Workers) -> Iterator[None]:
    if workers.dask is None:
        yield
        return
    try:
        from dask.distributed import Client
        from dask.distributed import TimeoutError as NoWorkers
    except ImportError as error:
        raise InputError("--dask needs the package distributed; pip install dask distributed") from error
    try:
        client = Client(workers.dask, timeout=workers.patience_s, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(
            f"--dask {workers.dask}: no Dask scheduler answers there ({one_line(error)}); start one with `dask "
            "scheduler` and give its address, tcp://HOST:PORT"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=workers.patience_s)
        except NoWorkers as error:
            raise InputError(
                f"--dask {workers.dask}: the scheduler has no workers; start some with `dask worker {workers.dask}`"
            ) from error
        with joblib.parallel_config(backend="dask", client=client):
            yield
