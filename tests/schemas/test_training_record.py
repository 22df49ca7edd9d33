from typing import Any

import pytest
from pydantic import ValidationError

from schemas.records import MediaRef, TrainingRecord

VIDEO = {"kind": "video", "key": "v", "id": "v", "uri": "/v.mp4"}
IMAGE = {"kind": "image", "key": "i", "id": "i", "uri": "/i.jpg"}


def record(media: list[dict[str, Any]], modality: str, *turns: str, roles: str = "ua") -> TrainingRecord:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": names[role], "content": text} for role, text in zip(roles, turns, strict=True)]
    return TrainingRecord.model_validate(
        {
            "id": "r",
            "source": "s",
            "modality": modality,
            "media": media,
            "messages": messages,
            "origin": {"file": "f", "row": 1},
        }
    )


def test_records_of_each_modality() -> None:
    assert record([], "text", "Q", "A").media == []
    assert record([IMAGE], "image", "<image>Q", "A").modality == "image"
    assert record([IMAGE, IMAGE], "images", "<image><image>", "A").modality == "images"
    made = record([IMAGE, VIDEO], "video", "S", "a <image>", "A", "b <video>", "B", roles="suaua")
    assert TrainingRecord.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("media", "modality", "turns", "roles", "match"),
    [
        ([VIDEO], "image", ["<video>", "A"], "ua", "modality must be 'video'"),
        ([IMAGE, IMAGE], "image", ["<image><image>", "A"], "ua", "modality must be 'images'"),
        ([VIDEO], "video", ["Q", "A"], "ua", "do not match media"),
        ([VIDEO], "video", ["<image>", "A"], "ua", "do not match media"),
        ([IMAGE, VIDEO], "video", ["<video><image>", "A"], "ua", "do not match media"),
        ([], "text", ["<image>", "A"], "ua", "do not match media"),
        ([IMAGE], "image", ["Q", "<image>"], "ua", "belong into user turns"),
        ([IMAGE], "image", ["<image>", "Q", "A"], "sua", "belong into user turns"),
        ([], "text", ["Q", "A", "Q"], "uau", "must alternate"),
        ([], "text", ["A", "Q"], "au", "must alternate"),
        ([], "text", ["Q", "S", "A"], "usa", "must alternate"),
        ([], "text", ["S", "S", "Q", "A"], "ssua", "must alternate"),
    ],
)
def test_text_that_does_not_fit_its_media_is_refused(
    media: list[dict[str, Any]], modality: str, turns: list[str], roles: str, match: str
) -> None:
    with pytest.raises(ValidationError, match=match):
        record(media, modality, *turns, roles=roles)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"uri": None}, "exactly one of"),
        ({"run": "/run"}, "exactly one of"),
        ({"key": "a.b"}, "pattern"),
        ({"start_seconds": 3, "end_seconds": 3}, "must be greater"),
        ({"kind": "image", "start_seconds": 1}, "belong to a video"),
        ({"start_seconds": -1}, "greater than or equal"),
        ({"fps": 3}, "Extra inputs"),
    ],
)
def test_media_refs_are_checked(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        MediaRef.model_validate({**VIDEO, **changes})
