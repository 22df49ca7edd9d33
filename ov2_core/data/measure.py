"""Records to samples with places and lengths, a chunk at a time: what a worker of the stage builder does.

Enters: records of one source, and the bytes of the stills that lie in their rows. Leaves: for each record a `StageSample` whose
media are slices of tars, or the reason why it is left out. Media that stand in token runs are only looked up; stills that stand
in none are made here, into one tar a chunk (`Stills`). No picture of a token run is read.
"""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from ov2_core import config as configs
from ov2_core.config import RunConfig
from ov2_core.data.lengths import LengthCounter
from ov2_core.data.records import check_binding
from ov2_core.data.runs import Place, RunSet, read_text_parts
from ov2_core.data.stage_config import Slot, StageConfig
from ov2_core.errors import BadItemError
from ov2_core.make_sample import GENERATOR, TransientItemError
from ov2_core.model.chatml import VisionRuns
from ov2_core.model.visual import show_sample
from ov2_core.storage.fetch import FetchLimits, fetch
from ov2_core.storage.files import Store
from ov2_core.storage.local_file import LocalFile, ReadFailedError
from ov2_core.storage.reader import StoredSample
from ov2_core.storage.source import local_path, open_source
from ov2_core.storage.writer import EncodedSample, encode_sample
from ov2_core.tokenize_video import tokenize_image
from schemas.records import MediaRef, TrainingRecord
from schemas.tokens import Provenance
from schemas.video import Message

_PART_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetching:
    """Whether media that rows name by URL may be fetched. Off by default: nothing leaves the machine."""

    allowed: bool = False
    limits: FetchLimits = field(default_factory=FetchLimits)
    """max_bytes holds for local files too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundMedium:
    """A medium with a place: in a token run, or in the tar of stills that is made of this chunk."""

    ref: MediaRef
    place: Place | None
    """None: a still of this chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredSample:
    """A record that fits the stage."""

    record: TrainingRecord
    messages: list[Message]
    media: list[FoundMedium]
    num_tokens: int
    num_visual_tokens: int
    num_supervised_tokens: int
    num_rounds_cut: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A record that does not, and why."""

    record: TrainingRecord
    reason: str
    message: str


class _NotWantedError(Exception):
    """A good medium that the recipe does not take."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SampleMeasurer:
    """Measures the records of one source."""

    def __init__(
        self,
        runs: RunSet,
        counter: LengthCounter,
        *,
        slot: Slot,
        config: StageConfig,
        still_config: RunConfig,
        fetching: Fetching | None = None,
    ) -> None:
        self._runs, self._counter = runs, counter
        self._slot, self._config, self._still_config = slot, config, still_config
        self._fetching = fetching or Fetching()
        self._other_runs: dict[str, RunSet] = {}

    def measure(
        self, record: TrainingRecord, payloads: Mapping[str, bytes], stills: "Stills"
    ) -> MeasuredSample | LeftOut:
        """One record. Stills that it needs and that lie in no run are added to `stills`."""
        try:
            found = [self._find(ref, payloads, stills, record) for ref in record.media]
            runs = [vision for _, vision in found]
            length = self._counter.measure(
                record.messages, runs, limit=self._config.sequence_length, may_cut=self._config.cut_rounds
            )
        except BadItemError as error:
            if error.reason == "transient_error":
                raise TransientItemError(str(error)) from error
            return LeftOut(record=record, reason=error.reason, message=str(error))
        except _NotWantedError as error:
            return LeftOut(record=record, reason=error.reason, message=str(error))
        except ValueError as error:
            return LeftOut(record=record, reason="invalid_text", message=str(error))
        if length is None:
            needed = sum(sum(run.num_tokens_R) for run in runs)
            return LeftOut(
                record=record,
                reason="too_long",
                message=f"{needed} visual tokens and text do not fit {self._config.sequence_length}, even without trailing rounds",
            )
        if not length.num_supervised_tokens:
            return LeftOut(record=record, reason="invalid_text", message="no answer to learn from")
        return MeasuredSample(
            record=record,
            messages=length.messages,
            media=[medium for medium, _ in found],
            num_tokens=length.num_tokens,
            num_visual_tokens=length.num_visual_tokens,
            num_supervised_tokens=length.num_supervised_tokens,
            num_rounds_cut=length.num_rounds_cut,
        )

    def close(self) -> None:
        """Closes the runs that records named themselves."""
        for runs in self._other_runs.values():
            runs.close()

    def _find(
        self, ref: MediaRef, payloads: Mapping[str, bytes], stills: "Stills", record: TrainingRecord
    ) -> tuple[FoundMedium, VisionRuns]:
        runs = self._runs
        if ref.run is not None:
            runs = self._other_runs.get(ref.run) or self._other_runs.setdefault(ref.run, RunSet([ref.run]))
        place = runs.find(ref.key)
        if place is not None:
            sample = read_text_parts(Store(place.run), place)
            self._check(sample, ref)
            return FoundMedium(ref=ref, place=place), show_sample(sample).runs()
        if ref.run is not None:
            raise BadItemError("unbound_media", f"{ref.key} is not in the token run {ref.run}", stage="import")
        if ref.kind == "image":
            return FoundMedium(ref=ref, place=None), self._still(ref, payloads, stills, record)
        raise BadItemError(
            "unbound_media",
            f"{ref.key} is in none of the source's token runs; tokenize it with --recipe {self._slot.tokenize_recipe} from the "
            "manifest in missing/ and name the run under `shards`",
            stage="import",
        )

    def _check(self, sample: StoredSample, ref: MediaRef) -> None:
        try:
            record = sample.record
        except ValueError as error:
            raise BadItemError("damaged_sample", f"{ref.key}: {error}; run `ov2 verify` on its run") from error
        slot = self._slot
        check_binding(ref, sample.key, record)
        if record.media == "image":
            return
        if record.mode not in slot.video_modes or len(record.image_keys) > slot.max_images:
            raise _NotWantedError(
                "wrong_input_mode",
                f"{ref.key} is {record.mode} of {len(record.image_keys)} images; slot {slot.name!r} takes "
                f"{' or '.join(slot.video_modes)} of at most {slot.max_images}: tokenize with --recipe {slot.tokenize_recipe}",
            )

    def _still(
        self, ref: MediaRef, payloads: Mapping[str, bytes], stills: "Stills", record: TrainingRecord
    ) -> VisionRuns:
        if ref.key not in stills.samples:
            data = payloads.get(ref.key)
            if data is None:
                assert ref.uri is not None, ref
                data = read_media(ref.uri, self._fetching)
            stills.samples[ref.key] = self._encode_still(ref, data, record)
        return show_encoded(stills.samples[ref.key])

    def _encode_still(self, ref: MediaRef, data: bytes, record: TrainingRecord) -> EncodedSample:
        config = self._still_config
        try:
            tokenized = tokenize_image(io.BytesIO(data), config.tokenizer)
        except BadItemError as error:
            where = ref.uri or (ref.embedded.uri if ref.embedded else ref.id)
            raise BadItemError(error.reason, f"{where}: {error}", stage="import") from error
        provenance = Provenance(
            id=ref.id,
            uri=ref.uri or (ref.embedded.uri if ref.embedded else ref.id),
            start_seconds=None,
            end_seconds=None,
            first_shown_seconds=0.0,
            source=record.source,
            tags=[],
            manifest_line=record.origin.row,
            size_bytes=len(data),
            codec=tokenized.codec,
            width_px=tokenized.source_width_px,
            height_px=tokenized.source_height_px,
            num_frames=1,
            duration_seconds=0.0,
            generator=GENERATOR,
            config_digest=configs.digest(config),
        )
        return encode_sample(tokenized, key=ref.key, provenance=provenance, messages=[], config=config.tokenizer)


@dataclass(slots=True)
class Stills:
    """Stills made of one chunk, in the order in which they were needed; each once."""

    samples: dict[str, EncodedSample] = field(default_factory=dict)


def show_encoded(sample: EncodedSample) -> VisionRuns:
    """The runs of a sample that is not in a tar yet."""
    return show_sample(StoredSample(key=sample.key, tar_name="", members=sample.members)).runs()


def read_media(uri: str, fetching: Fetching) -> bytes:
    """The whole file.

    Raises:
        BadItemError: source_missing, too_large; refused_uri for what is no regular file, or would have to be fetched where that is
            not allowed; of URLs, what storage/fetch.py says.
    """
    if local_path(uri) is None and not fetching.allowed:
        raise BadItemError("refused_uri", f"{uri} would have to be fetched; allow it with --fetch", stage="import")
    if uri.startswith(("http://", "https://")):
        return fetch(uri, fetching.limits)
    source = open_source(uri)
    max_bytes = fetching.limits.max_bytes
    if isinstance(source, str):
        try:
            source = LocalFile(source)
        except ReadFailedError:
            raise
        except OSError as error:
            raise BadItemError("source_missing", f"{uri}: not readable: {error}", stage="import") from error
    with source as file:
        data = _read_parts(file, uri, fetching.limits)
    if len(data) > max_bytes:
        raise BadItemError("too_large", f"{uri} has more than {max_bytes} bytes", stage="import")
    return data


def _read_parts(file: BinaryIO, uri: str, limits: FetchLimits) -> bytes:
    """At most one byte more than is allowed. The time is looked at between parts: an object store's client has timeouts of its
    own, and its address does not come from a row."""
    deadline = time.monotonic() + limits.timeout_seconds
    data = bytearray()
    while len(data) <= limits.max_bytes and (part := file.read(min(_PART_BYTES, limits.max_bytes + 1 - len(data)))):
        data += part
        if time.monotonic() > deadline:
            raise BadItemError("deadline_exceeded", f"{uri}: not read in {limits.timeout_seconds:g} s", stage="import")
    return bytes(data)
