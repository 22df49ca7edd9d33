import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest

from ov2_core import probe_cache
from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.make_sample import ProbeOutcome, ProbeTask, make_probe
from ov2_core.probe_cache import CachedProbe
from schemas.video import ManifestRow

CONFIG = recipe("uniform-4")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URIs that were really probed."""
    found: list[str] = []

    def counted(task: ProbeTask, config: RunConfig) -> ProbeOutcome:
        found.append(task.uri)
        return make_probe(task, config)

    monkeypatch.setattr(probe_cache, "make_probe", counted)
    return found


@pytest.fixture
def clip(clip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(clip_folder / "clip_0.mp4", tmp_path / "clip.mp4"))


def task(path: Path, *, line: int = 1, **fields: object) -> ProbeTask:
    return ProbeTask(
        line=line,
        id=f"v{line}",
        key=f"v{line}",
        uri=str(path),
        row=ManifestRow.model_validate({"video": str(path), **fields}),
    )


def test_second_time_says_the_same_without_a_probe(clip: Path, tmp_path: Path, probed: list[str]) -> None:
    cached = pickle.loads(pickle.dumps(CachedProbe(str(tmp_path / "cache"), "1")))
    first = cached(task(clip), CONFIG)
    assert first == make_probe(task(clip), CONFIG)
    assert cached(task(clip), CONFIG) == first
    other = cached(task(clip, line=9, caption="Another row."), recipe("codec-8"))
    assert other == make_probe(task(clip, line=9, caption="Another row."), recipe("codec-8"))
    assert probed == [str(clip)]


def test_pixels_that_a_filter_wants_are_kept_too(clip: Path, tmp_path: Path, probed: list[str]) -> None:
    cached, looks = CachedProbe(str(tmp_path / "cache"), "1"), with_overrides(CONFIG, {"filter.measure_pixels": "true"})
    for config in (CONFIG, looks, CONFIG, looks):
        assert cached(task(clip), config) == make_probe(task(clip), config)
    assert cached(task(clip), looks).planned.pixels is not None  # type: ignore[union-attr]
    assert len(probed) == 2


def test_a_copy_with_kept_times_is_known(clip: Path, tmp_path: Path, probed: list[str]) -> None:
    cached = CachedProbe(str(tmp_path / "cache"), "1")
    cached(task(clip), CONFIG)
    copy = Path(shutil.copy2(clip, tmp_path / "copy.mp4"))
    assert cached(task(copy), CONFIG) == make_probe(task(copy), CONFIG)
    assert probed == [str(clip)]


def test_other_bytes_under_the_same_time_and_size_are_probed(clip: Path, tmp_path: Path, probed: list[str]) -> None:
    cached = CachedProbe(str(tmp_path / "cache"), "1")
    cached(task(clip), CONFIG)
    status = os.stat(clip)
    data = bytearray(clip.read_bytes())
    data[-1] ^= 1
    clip.write_bytes(data)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    cached(task(clip), CONFIG)
    assert len(probed) == 2


@pytest.mark.parametrize(
    ("version", "fields", "config"),
    [
        ("2", {}, CONFIG),
        ("1", {"start": 0.5}, CONFIG),
        ("1", {"end": 0.5}, CONFIG),
        ("1", {}, with_overrides(CONFIG, {"max_source_px": "1000"})),
    ],
)
def test_what_a_probe_depends_on_is_in_the_key(
    version: str, fields: dict[str, object], config: RunConfig, clip: Path, tmp_path: Path, probed: list[str]
) -> None:
    CachedProbe(str(tmp_path / "cache"), "1")(task(clip), CONFIG)
    outcome = CachedProbe(str(tmp_path / "cache"), version)(task(clip, **fields), config)
    assert len(probed) == 2
    assert outcome == make_probe(task(clip, **fields), config)


def test_rows_that_fall_are_not_kept_and_fall_alike(clip: Path, tmp_path: Path, probed: list[str]) -> None:
    cached = CachedProbe(str(tmp_path / "cache"), "1")
    text = tmp_path / "text.mp4"
    text.write_text("hello " * 500)
    rows = [task(text), task(tmp_path / "nowhere.mp4"), task(clip, conversations=[{"from": "human", "value": "a"}])]
    for _ in range(2):
        for row in rows:
            outcome, expected = cached(row, CONFIG), make_probe(row, CONFIG)
            assert outcome.quarantined == expected.quarantined
            assert outcome.quarantined is not None
    assert len(probed) == 6


def test_a_broken_cache_costs_a_warning_and_no_row(
    clip: Path, tmp_path: Path, probed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / probe_cache.FILE_NAME).write_bytes(b"not a database" * 100)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert CachedProbe(str(folder), "1")(task(clip), CONFIG) == make_probe(task(clip), CONFIG)
    assert "remove it to begin anew" in caplog.text
