"""The project's own benchmark, from nothing: phantoms, every stage, the comparison, real scans, and a document.

python -m training reproduce --lobe-shapes SHAPES --out OUT --config smoke
"""

from training.reproduce.benchmark import Benchmark, reproduce

__all__ = ["Benchmark", "reproduce"]
