import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ov2_core import make_sample as module
from ov2_core.config import RunConfig, recipe
from ov2_core.make_sample import ProbeTask, TransientItemError, make_probe, make_sample
from ov2_core.storage.writer import decode_sample
from schemas.shard import PlannedRow
from schemas.video import ManifestRow, SourceIdentity

CONFIG = recipe("uniform-4")


def task(path: Path, **fields: Any) -> ProbeTask:
    return ProbeTask(line=7, id="x", key="x", uri=str(path), row=ManifestRow(video=str(path), **fields))


def plan(path: Path, config: RunConfig = CONFIG, **fields: Any) -> PlannedRow:
    outcome = make_probe(task(path, **fields), config)
    assert outcome.planned is not None, outcome
    return outcome.planned


@pytest.fixture
def clip(make_clip: Callable[..., Path], tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", num_frames=20)


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_sample_holds_what_was_planned_and_its_cost(clip: Path) -> None:
    planned = plan(clip, caption="A square.", source="test", tags=["a"])
    outcome = make_sample(planned, CONFIG)
    assert outcome.members is not None
    record, images, _ = decode_sample(outcome.members)
    assert (len(images), outcome.num_images, outcome.num_tokens) == (4, 4, record.num_tokens)
    assert planned.predicted_tokens == record.num_tokens
    assert record.messages[-1].content == "A square."
    assert (record.provenance.source, record.provenance.tags, record.provenance.manifest_line) == ("test", ["a"], 7)
    assert outcome.cpu_seconds > 0
    assert outcome.peak_rss_bytes > 10 << 20


def test_range_of_a_clip_starts_at_zero(clip: Path) -> None:
    outcome = make_sample(plan(clip, start=1.0, end=1.5), CONFIG)
    assert outcome.members is not None
    record, _, positions = decode_sample(outcome.members)
    assert record.provenance.first_shown_seconds == pytest.approx(1.0, abs=0.05)
    assert min(int(p[:, 0].min()) for p in positions) == 0
    assert record.provenance.num_frames == 5


def test_members_do_not_depend_on_the_call(clip: Path) -> None:
    planned = plan(clip)
    assert make_sample(planned, CONFIG).members == make_sample(planned, CONFIG).members


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: path.unlink(), "source_missing"),
        (lambda path: path.write_bytes(b""), "source_empty"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "source_changed"),
    ],
)
def test_source_that_broke_since_the_plan_is_quarantined(
    clip: Path, break_it: Callable[[Path], Any], reason: str
) -> None:
    planned = plan(clip)
    break_it(clip)
    outcome = make_sample(planned, CONFIG)
    assert outcome.quarantined is not None
    assert outcome.quarantined.reason == reason
    assert outcome.quarantined.line == 7
    assert str(clip) in outcome.quarantined.message
    assert outcome.quarantined.row is not None
    assert outcome.quarantined.row.id == "x"


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_bytes(path.read_bytes() + b"x"), lambda path: os.utime(path, ns=(1, 1))],
    ids=["grown", "written anew"],
)
def test_source_that_changes_while_it_is_read_is_quarantined(
    clip: Path, change: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(clip)
    tokenize = module.tokenize_video

    def slowly(*given: Any, **named: Any) -> Any:
        change(clip)
        return tokenize(*given, **named)

    monkeypatch.setattr(module, "tokenize_video", slowly)
    outcome = make_sample(planned, CONFIG)
    assert outcome.quarantined is not None
    assert outcome.quarantined.reason == "source_changed"


def test_object_that_changes_before_it_is_opened_is_quarantined(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its identity and the opening of its newest version."""
    planned = plan(clip)
    planned = planned.model_copy(update={"identity": SourceIdentity(size_bytes=7, stamp="old")})
    monkeypatch.setattr(module, "source_identity", lambda uri: planned.identity)

    class Stream(io.BytesIO):
        details: dict[str, Any]

    for details, reason in (({"size": 7, "ETag": '"new"'}, "source_changed"), ({"size": 7, "ETag": '"old"'}, None)):
        stream = Stream(clip.read_bytes())
        stream.details = details
        monkeypatch.setattr(module, "open_source", lambda uri, stream=stream: stream)
        quarantined = make_sample(planned, CONFIG).quarantined
        assert (quarantined.reason if quarantined else None) == reason


def test_bug_becomes_internal_error_with_its_traceback(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(clip)

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("our \ud800 own fault")

    monkeypatch.setattr(module, "tokenize_video", broken)
    outcome = make_sample(planned, CONFIG)
    assert outcome.quarantined is not None
    assert outcome.quarantined.reason == "internal_error"
    assert "in broken" in outcome.quarantined.message


def test_transient_error_escapes_after_retries(clip: Path, monkeypatch: pytest.MonkeyPatch, no_sleep: None) -> None:
    planned = plan(clip)
    calls = []

    def unreachable(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise OSError(errno.ETIMEDOUT, "no answer")

    monkeypatch.setattr(module, "tokenize_video", unreachable)
    with pytest.raises(TransientItemError, match="no answer"):
        make_sample(planned, CONFIG)
    assert len(calls) > 1


def test_transient_error_that_passes_leaves_no_trace(
    clip: Path, monkeypatch: pytest.MonkeyPatch, no_sleep: None
) -> None:
    planned = plan(clip)
    expected = make_sample(planned, CONFIG).members
    real, calls = module.tokenize_video, []

    def once(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionResetError("reset")
        return real(*args, **options)

    monkeypatch.setattr(module, "tokenize_video", once)
    assert make_sample(planned, CONFIG).members == expected


def test_memory_error_is_left_to_the_caller(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(clip)

    def huge(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "tokenize_video", huge)
    with pytest.raises(MemoryError):
        make_sample(planned, CONFIG)


def test_stills_recipe_filters_a_video(clip: Path) -> None:
    outcome = make_sample(plan(clip), recipe("stills"))
    assert outcome.filtered is not None
    assert outcome.filtered.rule == "stills_only"
    assert outcome.quarantined is None


def test_still_is_made_under_any_recipe(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "still.png"
    Image.new("RGB", (120, 90), (200, 10, 10)).save(path)
    row = ManifestRow(image=str(path), caption="Red.")
    outcome = make_probe(ProbeTask(line=1, id="s", key="s", uri=str(path), row=row), CONFIG)
    assert outcome.planned is not None
    sample = make_sample(outcome.planned, CONFIG)
    assert sample.members is not None
    record, images, _ = decode_sample(sample.members)
    assert (record.media, record.fps, len(images)) == ("image", None, 1)
    assert record.messages[0].content.startswith("<image>\n")
    assert outcome.planned.predicted_tokens == record.num_tokens


def test_unreadable_text_falls_at_the_probe(clip: Path) -> None:
    outcome = make_probe(task(clip, conversations=[{"from": "bot", "value": "x"}]), CONFIG)
    assert outcome.quarantined is not None
    assert outcome.quarantined.reason == "invalid_text"
