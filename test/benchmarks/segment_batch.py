"""How much faster `segment-batch` is than one `segment` a case; checks that both give the same results.

    python -m training phantom --cases 40 --coarseness 3 --out DATA
    python test/benchmarks/segment_batch.py DATA/cases.csv

Options after the table go to both commands, such as `--device cpu`.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def _seconds(*arguments: object) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "algorithm", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _results(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The lesion mask, and the report without what differs from run to run."""
    report = json.loads((folder / "severity.json").read_text(encoding="utf-8"))
    return (folder / "lesions.mha").read_bytes(), {key: value for key, value in report.items() if key != "timings"}


def main(table: Path, *options: str) -> None:
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with tempfile.TemporaryDirectory() as temporary:
        batch, single = Path(temporary, "batch"), Path(temporary, "single")
        batch_s = _seconds("segment-batch", table, "--out", batch, *options)
        single_s = 0.0
        for row in rows:
            out = single / row["case"]
            lobes = ("--lobes", table.parent / row["lobes"]) if row.get("lobes") else ()
            single_s += _seconds("segment", table.parent / row["ct"], *lobes, "--output", out, *options)
            if _results(out) != _results(batch / row["case"]):
                sys.exit(f"{row['case']}: the results differ")
    for name, seconds in (("segment-batch", batch_s), ("segment, one by one", single_s)):
        print(f"{name}: {len(rows)} cases in {seconds:.1f} s, {60 * len(rows) / seconds:.1f} a minute")
    print(f"ratio: {single_s / batch_s:.2f}; same results")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
