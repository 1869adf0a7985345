import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from algorithm.report import LobeEntry, SeverityReport, severity_json_schema

PUBLISHED = Path(__file__).parents[2] / "algorithm" / "severity.schema.json"


def test_published_schema_is_the_models():
    assert json.loads(PUBLISHED.read_text()) == severity_json_schema(), (
        "write it again: python -m algorithm schema > algorithm/severity.schema.json"
    )


def test_sample_report_follows_the_contract():
    path = Path(__file__).parents[1] / "sample" / "expected" / "severity.json"
    SeverityReport.model_validate_json(path.read_bytes())


def test_score_out_of_range_is_refused():
    with pytest.raises(ValidationError, match="less than or equal to 5"):
        LobeEntry(name="left upper lobe", label=1, volume_ml=1, lesion_ml=0, percent=0, score=6)
