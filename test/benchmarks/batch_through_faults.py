"""Runs a table of cases through the stand-in for the platform while a tenth of all requests go wrong.

    python -m training phantom --cases 40 --coarseness 6 --out DATA
    python test/benchmarks/batch_through_faults.py DATA/cases.csv

Runs `python -m batch run` as a user would, again while it fails, and tells how often, what was uploaded and started.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOST_RUNS = 5
TOKEN = "token-of-the-benchmark"


def _standin() -> Any:
    folder = ROOT / "test" / "batch" / "standin"
    spec = importlib.util.spec_from_file_location(
        "standin", folder / "server.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(table: Path, seed: int) -> None:
    standin = _standin()
    with table.open(newline="", encoding="utf-8") as file:
        names = sorted(row["case"] for row in csv.DictReader(file))
    with tempfile.TemporaryDirectory() as temporary:
        certificate, key = standin.make_certificate(Path(temporary))
        environment = os.environ | {"SSL_CERT_FILE": str(certificate), "GRAND_CHALLENGE_AUTHORIZATION": TOKEN}
        with standin.Platform(certificate, key).serving() as platform:
            account = platform.account(TOKEN)
            account.faults = faults = standin.RandomFaults(seed)
            out = Path(temporary, "out")
            given = {"algorithm": standin.SLUG, "platform": platform.url, "scans": table, "out": out}
            command = [sys.executable, "-m", "batch", "run", *(f"--{name}={value}" for name, value in given.items())]
            runs = 1
            while subprocess.run(command, cwd=ROOT, env=environment).returncode and runs < MOST_RUNS:
                runs += 1
        home = sorted(path.parent.name for path in out.glob("*/severity.json"))
        uploaded = account.uploaded_cases()
        print(f"{len(home)} of {len(names)} cases home after {runs} runs; {len(uploaded)} scans uploaded, ", end="")
        print(f"{len(account.jobs)} jobs started, at most {account.peak} at a time")
        print(f"{sum(faults.made.values())} faults in {faults.asked} requests: {dict(faults.made)}")
        if not home == sorted(uploaded) == names or len(account.jobs) != len(names) or account.breaches:
            sys.exit(f"expected each case once; breaches: {account.breaches}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
