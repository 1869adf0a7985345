"""One TOML file of settings, by itself or on top of a preset, or a preset by its name."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from algorithm.errors import InputError
from training.settings import TrainingConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of the presets that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(source: str | Path) -> TrainingConfig:
    """Read settings from a TOML file, or a preset by its name.

    A file may begin with ``preset = "NAME"``: what it does not set is then as in that preset. What neither sets has
    its default, key by key also within a table.

    Raises:
        InputError: the file is missing or no TOML, a preset or key is unknown (the nearest known one is named), or a
            value is of another type or out of range.
    """
    values = _merged(TrainingConfig().model_dump(mode="json"), _read(source))
    try:
        # JSON, because only from JSON does pydantic's strict mode take lists for tuples.
        return TrainingConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise InputError(f"settings {source}: " + "; ".join(_explained(e) for e in error.errors())) from error


def _read(source: str | Path) -> dict[str, Any]:
    """The values of a file, over those of the preset that it names."""
    path = PRESETS / f"{source}.toml" if str(source) in preset_names() else Path(source)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"settings {source}: no such file; expected a TOML file or one of {preset_names()}") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"settings {source}: got {error}, expected TOML") from error
    preset = values.pop("preset", None)
    if preset is None:
        return values
    if preset not in preset_names():
        raise InputError(f"settings {source}: preset: unknown {preset!r}, {_suggested(str(preset), preset_names())}")
    return _merged(_read(preset), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Two trees of settings in one; where both have a leaf, the second's."""
    merged = dict(base)
    for key, value in values.items():
        both_are_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both_are_tables else value
    return merged


def _explained(problem: Any) -> str:
    keys = [str(key) for key in problem["loc"]]
    where = ".".join(keys)
    if problem["type"] == "model_type":
        return f"{where}: got {problem['input']!r}, expected a table [{where}]"
    if problem["type"] != "extra_forbidden":
        message = f"{where}: ".removeprefix(": ") + problem["msg"].removeprefix("Value error, ")
        of_a_table = isinstance(problem["input"], dict)  # whose message names the values
        return message if of_a_table else f"{message}, got {problem['input']!r}"
    section: Any = TrainingConfig
    for key in keys[:-1]:
        section = section.model_fields[key].annotation
    return f"{where}: unknown key, {_suggested(keys[-1], list(section.model_fields))}"


def _suggested(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
