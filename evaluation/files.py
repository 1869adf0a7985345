"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_text(content: Mapping[str, Any]) -> str:
    """Strict JSON.

    Raises:
        ValueError: the content holds a number that is not finite.
    """
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_files(directory: Path, texts: Mapping[str, str]) -> None:
    """Write UTF-8 files under other names, and rename them when all are written.

    Args:
        directory: where they go; made if need be.
        texts: content by name. Files of these names are replaced.

    Raises:
        OSError: one cannot be written; none is replaced then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    partials = {name: directory / f".{name}.partial" for name in texts}
    try:
        for name, partial in partials.items():
            partial.write_text(texts[name], encoding="utf-8")
        for name, partial in partials.items():
            partial.replace(directory / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
