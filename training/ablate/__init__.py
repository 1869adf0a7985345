"""Stage ablate: the rows of the paper's Table II on the test cases, with their statistics, as tables and figures.

python -m training ablate --data DATA --run-dir RUN
"""

from training.ablate.stage import ablate

__all__ = ["ablate"]
