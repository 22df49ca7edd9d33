"""The two core functions that workers call: one source to its probe, one planned row to the members of its sample.

Enters: a manifest row, or a planned row and the run's config. Leaves: an outcome that is exactly one of made,
filtered and quarantined. A bad source, a source that changed since it was planned and a bug of ours all become typed
quarantine rows; only two kinds of error escape: `TransientItemError` (the storage still fails after retries: try
again later) and MemoryError (the caller decides who is to blame). Nothing here knows of Ray.
"""

import contextlib
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ov2_core import config as configs
from ov2_core.config import RunConfig
from ov2_core.data.messages import to_messages
from ov2_core.errors import BadItemError
from ov2_core.filters.pixels import look_at_folder, look_at_still, look_at_video
from ov2_core.filters.rules import judge
from ov2_core.media.frame_folder import list_frames, probe_frames, require_uniform
from ov2_core.media.image import load_image, probe_image
from ov2_core.media.probe import probe_video
from ov2_core.prediction import predict
from ov2_core.redact import redacted
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import is_transient, open_source, retry_transient, source_identity
from ov2_core.storage.retry import has_no_credentials
from ov2_core.storage.source import local_path, opened_identity
from ov2_core.storage.writer import Member, encode_sample
from ov2_core.tokenize_video import tokenize_frames, tokenize_image, tokenize_video
from ov2_core.tokenized import TokenizedVideo
from schemas.shard import FilteredRow, PlannedRow, QuarantineReason, QuarantineRow, Stage
from schemas.tokens import Provenance
from schemas.video import ManifestRow, PixelScores, ProbeRecord, SourceIdentity

GENERATOR = f"ov2-pipeline {metadata.version('ov2-pipeline')}"
RULE_STILLS_ONLY = "stills_only"
_TRACEBACK_CHARACTERS = 1500


class TransientItemError(Exception):
    """A listed transient error outlived its retries; the item may well succeed later."""


class NoneReadError(Exception):
    """Each of several items met a transient error; they are to be tried alone."""


class NotHereError(Exception):
    """This machine does not see the item's source; another one of the cluster may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTask:
    """A manifest row to be probed."""

    line: int
    id: str
    key: str
    uri: str
    """Absolute path or URL."""
    row: ManifestRow


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeOutcome:
    """Exactly one of `planned` (its shard still 0) and `quarantined` is given."""

    line: int
    planned: PlannedRow | None = None
    quarantined: QuarantineRow | None = None

    def require_seen(self) -> None:
        """Raises NotHereError where the source is missing."""
        _require_seen(self.quarantined)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOutcome:
    """How one planned row ended: filtered, quarantined, or neither: then it was made and has members.

    A pipeline that keeps the members elsewhere sets them to None.
    """

    line: int
    key: str
    members: list[Member] | None = None
    filtered: FilteredRow | None = None
    quarantined: QuarantineRow | None = None
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    num_images: int = 0
    num_tokens: int = 0
    duration_seconds: float = 0.0
    timings_seconds: dict[str, float] = field(default_factory=dict)

    def require_seen(self) -> None:
        """Raises NotHereError where the source is missing."""
        _require_seen(self.quarantined)


def make_probe(task: ProbeTask, config: RunConfig) -> ProbeOutcome:
    """Probes a source, checks the row's text, judges it by the rules of the filter and predicts its cost.

    Raises:
        TransientItemError, MemoryError.
    """
    try:
        identity, probe, pixels = retry_transient(lambda: _probe(task, config))
        planned = planned_row(task, identity, probe, pixels, config)
    except Exception as error:
        reason, message, stage = blame(error, "probe")
        row = quarantine_row(
            line=task.line, id=task.id, uri=task.uri, row=task.row, reason=reason, stage=stage, message=message
        )
        return ProbeOutcome(line=task.line, quarantined=row)
    return ProbeOutcome(line=task.line, planned=planned)


def _require_seen(quarantined: QuarantineRow | None) -> None:
    if quarantined is not None and quarantined.reason == "source_missing":
        raise NotHereError(quarantined.message)


def without_cost(planned: PlannedRow, filtered: FilteredRow) -> PlannedRow:
    """The row as one that a rule leaves out: it will take no token, byte or second."""
    nothing = {"predicted_tokens": 0, "predicted_bytes": 0, "predicted_cpu_seconds": 0.0}
    return planned.model_copy(update={"filtered": filtered, **nothing})


def planned_row(
    task: ProbeTask, identity: SourceIdentity, probe: ProbeRecord, pixels: PixelScores | None, config: RunConfig
) -> PlannedRow:
    """The task's row of the plan, judged by the rules of the filter; its shard is not known yet (0)."""
    prediction = predict(probe, config.tokenizer)
    planned = PlannedRow(
        line=task.line,
        key=task.key,
        id=task.id,
        uri=task.uri,
        shard=0,
        row=task.row,
        probe=probe,
        identity=identity,
        predicted_tokens=prediction.tokens,
        predicted_bytes=prediction.bytes,
        predicted_cpu_seconds=prediction.cpu_seconds,
        pixels=pixels,
    )
    filtered = judge(planned, config.filter)
    return planned if filtered is None else without_cost(planned, filtered)


def make_sample(planned: PlannedRow, config: RunConfig) -> SampleOutcome:
    """Tokenizes a planned row and encodes its members.

    `cpu_seconds` is the CPU time of this process, all its threads; `peak_rss_bytes` its largest resident memory
    meanwhile.

    Raises:
        TransientItemError, MemoryError.
    """
    if config.tokenizer.mode == "still" and planned.row.video is not None:
        message = "recipe stills makes no samples of videos; use codec-N, evidence-N or uniform-N"
        filtered = FilteredRow(
            line=planned.line, id=planned.id, uri=planned.uri, rule=RULE_STILLS_ONLY, message=message
        )
        return SampleOutcome(line=planned.line, key=planned.key, filtered=filtered)
    began = time.process_time()
    _reset_peak_rss()
    try:
        made = retry_transient(lambda: _tokenize(planned, config))
    except Exception as error:
        reason, message, stage = blame(error, "tokenize")
        return SampleOutcome(
            line=planned.line,
            key=planned.key,
            quarantined=quarantine_planned(planned, reason=reason, message=message, stage=stage),
            cpu_seconds=round(time.process_time() - began, 4),
            peak_rss_bytes=peak_rss_bytes(),
        )
    tokenized, members = made
    return SampleOutcome(
        line=planned.line,
        key=planned.key,
        members=members,
        cpu_seconds=round(time.process_time() - began, 4),
        peak_rss_bytes=peak_rss_bytes(),
        num_images=tokenized.num_images,
        num_tokens=tokenized.num_tokens,
        duration_seconds=tokenized.duration_seconds,
        timings_seconds=dict(tokenized.timings_seconds),
    )


def quarantine_planned(
    planned: PlannedRow, *, reason: QuarantineReason, message: str, stage: Stage = "tokenize", attempts: int = 1
) -> QuarantineRow:
    """The ledger row of a planned row that fell; replayable alone."""
    return quarantine_row(
        line=planned.line,
        id=planned.id,
        uri=planned.uri,
        row=planned.row,
        reason=reason,
        stage=stage,
        message=message,
        attempts=attempts,
    )


def quarantine_row(
    *,
    line: int,
    id: str | None,
    uri: str | None,
    reason: QuarantineReason,
    stage: Stage,
    message: str,
    row: ManifestRow | None = None,
    raw: str | None = None,
    attempts: int = 1,
) -> QuarantineRow:
    """A ledger row whose text is valid Unicode, of bounded length and without credentials. `row` can be replayed from any folder:
    it names its id, and its medium absolutely."""
    uri = None if uri is None else redacted(uri)
    if row is not None and uri is not None:
        row = row.model_copy(update={"id": id, "video" if row.video is not None else "image": uri})
    return QuarantineRow(
        line=line,
        id=id,
        uri=uri,
        reason=reason,
        stage=stage,
        message=redacted(message.encode("utf-8", "replace").decode())[:4000],
        attempts=attempts,
        row=row,
        raw=None if raw is None else redacted(raw),
    )


def peak_rss_bytes() -> int:
    """Largest resident memory of this process since `make_sample` began (since its start where Linux is not there)."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _probe(task: ProbeTask, config: RunConfig) -> tuple[SourceIdentity, ProbeRecord, PixelScores | None]:
    to_messages(task.row, config.text)
    limit, looks = config.tokenizer.max_source_px, config.filter.needs_pixels
    if task.row.frames_fps is not None:
        if config.tokenizer.mode == "codec":
            require_uniform(config.tokenizer.mode)
        folder = list_frames(task.uri, task.row.frames_fps)
        found = probe_frames(folder, max_source_px=limit, start_seconds=task.row.start, end_seconds=task.row.end)
        pixels = look_at_folder(folder, found, max_source_px=limit) if looks else None
        return folder.identity, found.record(), pixels
    identity = source_identity(task.uri)
    with opened(task.uri) as source:
        failpoint("mid_probe")
        if task.row.image is not None:
            record = probe_image(source, max_source_px=limit, size_bytes=identity.size_bytes)
            return identity, record, look_at_still(load_image(source, max_source_px=limit)) if looks else None
        probe = probe_video(source, start_seconds=task.row.start, end_seconds=task.row.end, max_source_px=limit)
        return identity, probe.record(), look_at_video(source, probe) if looks else None


def _tokenize(planned: PlannedRow, config: RunConfig) -> tuple[TokenizedVideo, list[Member]]:
    row, tokenizer = planned.row, config.tokenizer
    messages = to_messages(row, config.text)
    folder = None if row.frames_fps is None else list_frames(planned.uri, row.frames_fps)
    _require_planned(source_identity(planned.uri) if folder is None else folder.identity, planned)
    if folder is not None:
        tokenized = tokenize_frames(folder, tokenizer, start_seconds=row.start, end_seconds=row.end, as_jpeg=True)
    else:
        with opened(planned.uri) as source:
            _require_planned(opened_identity(source) or planned.identity, planned)
            if row.image is not None:
                tokenized = tokenize_image(source, tokenizer)
            else:
                tokenized = tokenize_video(
                    source, tokenizer, start_seconds=row.start, end_seconds=row.end, as_jpeg=True
                )
        if local_path(planned.uri) is not None:  # an object that is overwritten cannot be read any further
            _require_planned(source_identity(planned.uri), planned)
    provenance = Provenance(
        id=planned.id,
        uri=planned.uri,
        start_seconds=row.start,
        end_seconds=row.end,
        first_shown_seconds=tokenized.first_shown_seconds,
        source=row.source,
        tags=list(row.tags),
        manifest_line=planned.line,
        size_bytes=planned.identity.size_bytes,
        codec=tokenized.codec,
        width_px=tokenized.source_width_px,
        height_px=tokenized.source_height_px,
        num_frames=tokenized.num_source_frames,
        duration_seconds=tokenized.duration_seconds,
        generator=GENERATOR,
        config_digest=configs.digest(config),
    )
    encoded = encode_sample(
        tokenized, key=planned.key, provenance=provenance, messages=messages, config=config.tokenizer
    )
    return tokenized, encoded.members


@contextlib.contextmanager
def opened(uri: str) -> Iterator[Any]:
    """A source to read from, closed with the context."""
    source = open_source(uri)
    try:
        yield source
    finally:
        if not isinstance(source, str):
            source.close()


def blame(error: Exception, stage: Stage) -> tuple[QuarantineReason, str, Stage]:
    """Reason, message and stage; raises what is not the item's fault."""
    if isinstance(error, MemoryError):
        raise error
    if (
        is_transient(error)
        or has_no_credentials(error)
        or (isinstance(error, BadItemError) and error.reason == "transient_error")
    ):
        raise TransientItemError(str(error)) from error
    if isinstance(error, BadItemError):
        return error.reason, str(error), error.stage
    if isinstance(error, FileNotFoundError):
        return "source_missing", f"gone while it was read: {error}", stage
    tail = traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
    return "internal_error", f"{type(error).__name__}: {error}\n{tail}", stage


def _require_planned(identity: SourceIdentity, planned: PlannedRow) -> None:
    """Raises BadItemError (source_changed)."""
    if identity != planned.identity:
        raise BadItemError(
            "source_changed",
            f"{planned.uri}: {_describe(identity)} now, but {_describe(planned.identity)} when it was planned; "
            "plan again into a new RUN",
        )


def _describe(identity: SourceIdentity) -> str:
    return f"{identity.size_bytes} bytes, stamp {identity.stamp or '(none)'}"


def _reset_peak_rss() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
