"""Records refuse what they do not know, and survive a round trip through JSON."""

import pytest
from pydantic import ValidationError

from schemas.shard import QuarantineRow
from schemas.video import ManifestRow


def test_manifest_row_refuses_unknown_fields():
    with pytest.raises(ValidationError, match="bogus"):
        ManifestRow.model_validate({"video": "a.mp4", "bogus": 1})


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "exactly one"),
        ({"video": "a", "image": "b"}, "exactly one"),
        ({"video": ""}, "at least 1"),
        ({"video": "a", "start": 5, "end": 5}, "greater than start"),
        ({"video": "a", "start": -1}, "greater than or equal"),
        ({"video": "a", "end": float("nan")}, "finite"),
        ({"image": "a", "start": 1}, "belong to a video"),
        ({"video": "a", "caption": "x", "messages": []}, "at most one"),
        ({"video": "a", "messages": [{"role": "robot", "content": "x"}]}, "role"),
    ],
)
def test_manifest_row_says_what_is_wrong(row, why):
    with pytest.raises(ValidationError, match=why):
        ManifestRow.model_validate(row)


def test_quarantine_row_round_trips_and_can_be_replayed():
    row = ManifestRow(video="a.mp4", id="x", start=1.5, caption="Zwölf Boxkämpfer\u2028", tags=["t"])
    fallen = QuarantineRow(line=3, id="x", uri="a.mp4", reason="not_media", stage="probe", message="no", row=row)
    back = QuarantineRow.model_validate_json(fallen.model_dump_json())
    assert back == fallen
    assert back.row == row


def test_quarantine_reasons_are_typed():
    with pytest.raises(ValidationError, match="reason"):
        QuarantineRow.model_validate(
            {"line": 1, "id": None, "uri": None, "reason": "bad luck", "stage": "probe", "message": ""}
        )
