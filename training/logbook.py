"""What a training writes down: every loss term of every step, and every validation, as CSV and for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import Self

from training.files import write_text

LOG = "log.csv"
VALIDATION = "validation.csv"


class Logbook:
    """Log of one training; only the first of several processes writes."""

    def __init__(self, folder: Path, *, done: int, is_writer: bool) -> None:
        """Go on after the steps that are done; what was logged after them is dropped, for it will come again."""
        self.folder = folder
        self.is_writer = is_writer
        if is_writer:
            for name in (LOG, VALIDATION):
                _drop_later(folder / name, done)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done)

    def __enter__(self) -> Self:
        """Nothing to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is still held back for TensorBoard."""
        if self.is_writer:
            self._board.close()

    def step(self, step: int, values: Mapping[str, float | None]) -> None:
        """Log the loss terms of a step, the same ones in every step; None where a term was not computed."""
        self._write(LOG, step, values, "train")

    def validation(self, step: int, values: Mapping[str, float | None]) -> None:
        """Log the measures of a validation."""
        self._write(VALIDATION, step, values, "validation")

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Show a picture (height, width, 3) in TensorBoard."""
        if self.is_writer:
            self._board.add_image("validation", picture, step, dataformats="HWC")

    def _write(self, name: str, step: int, values: Mapping[str, float | None], group: str) -> None:
        if not self.is_writer:
            return
        path = self.folder / name
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(["step", *values])
            writer.writerow([step, *("" if value is None else f"{value:.6g}" for value in values.values())])
        known = {key: value for key, value in values.items() if value is not None}
        for key, value in known.items():
            self._board.add_scalar(f"{group}/{key}", value, step)


def _drop_later(path: Path, done: int) -> None:
    """Drop the lines of steps that are not among the ones done, and a last line that was cut off."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if "\n" not in text:
        path.unlink(missing_ok=True)
        return
    header, *lines = text.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and int(line.split(",", 1)[0]) < done]
    write_text(path, "".join([header, *kept]))
