"""One manifest row of a long video to rows of its clips: what a worker of `ov2 split-shots` does.

Enters: a row. Leaves: rows with `start` and `end`, one a clip, with ids made of the row's id and the range: the same video gives
the same ids. Source and tags stay; text does not, for it was said of the whole, unless the whole is one clip: then the row
stays as it is. So do stills, folders of frames, and what cannot be read: the plan of the new manifest names the reason.
"""

from dataclasses import dataclass

from ov2_core.make_sample import blame, opened
from ov2_core.media.container import MAX_SOURCE_PX
from ov2_core.media.probe import probe_video
from ov2_core.shots import clip_bounds, find_shots
from ov2_core.storage.files import retry_transient
from schemas.video import ManifestRow


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """Lengths of clips."""

    min_seconds: float = 1.0
    """Shorter ones are left out."""
    max_seconds: float = 60.0
    """Longer shots are cut into equal parts."""

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.min_seconds <= self.max_seconds:
            raise ValueError(
                "--min-seconds must be >= 0 and at most half of --max-seconds (parts of a long shot must be long enough), "
                f"got {self.min_seconds:g} and {self.max_seconds:g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitTask:
    """A row to be split. Its id is given, and its medium absolute."""

    line: int
    row: ManifestRow


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitOutcome:
    """Rows that take the place of one. problem: why it stayed as it is, where it could not be read."""

    line: int
    rows: list[ManifestRow]
    num_shots: int = 0
    video_seconds: float = 0.0
    problem: str | None = None


def split_row(task: SplitTask, config: SplitConfig) -> SplitOutcome:
    """Finds the shots of a row's range.

    Raises:
        TransientItemError, MemoryError.
    """
    row = task.row
    if row.video is None or row.frames_fps is not None:
        return SplitOutcome(line=task.line, rows=[row])
    try:
        return retry_transient(lambda: _split(task, config))
    except Exception as error:
        reason, message, _ = blame(error, "probe")
        return SplitOutcome(line=task.line, rows=[row], problem=f"{reason}: {message}")


def _split(task: SplitTask, config: SplitConfig) -> SplitOutcome:
    row = task.row
    assert row.video is not None
    with opened(row.video) as source:
        probe = probe_video(source, start_seconds=row.start, end_seconds=row.end, max_source_px=MAX_SOURCE_PX)
        starts = find_shots(source, probe)
    bounds = clip_bounds(starts, probe, min_seconds=config.min_seconds, max_seconds=config.max_seconds)
    whole = len(starts) == len(bounds) == 1
    return SplitOutcome(
        line=task.line,
        rows=[row] if whole else [clip_row(row, start, end) for start, end in bounds],
        num_shots=len(starts),
        video_seconds=probe.duration_seconds,
    )


def clip_row(row: ManifestRow, start_seconds: float, end_seconds: float) -> ManifestRow:
    """The row of a clip of a row that has an id."""
    return ManifestRow(
        video=row.video,
        id=f"{row.id}_{round(start_seconds * 1000)}-{round(end_seconds * 1000)}",
        start=round(start_seconds, 6),
        end=round(end_seconds, 6),
        source=row.source,
        tags=row.tags,
    )
