"""Token shards (a RUN folder): the text that stands in each committed sample's KEY.json, bound to that very sample.

Only KEY.json is read, one range a sample; canvases stay where they are. What is not committed does not exist.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from ov2_core.data.importers.conversation import converse
from ov2_core.data.importers.item import ImportedItem, refused
from ov2_core.data.importers.media import modality_of
from ov2_core.data.importers.rows import RawRow
from ov2_core.data.manifest import absolute_uri
from ov2_core.data.row_files import condensed
from ov2_core.errors import BadItemError
from ov2_core.storage.commit import committed_shards, iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import FEATURES_RECIPE, RUN_JSON, tar_rel
from schemas.records import MediaRef, RecordOrigin, TrainingRecord
from schemas.run import RunRecord
from schemas.shard import CommittedSample
from schemas.tokens import SampleRecord


def import_token_shards(path: str, *, source: str = "token-shards") -> Iterator[ImportedItem]:
    """Records of a run's samples; the row is the sample's place in its tar. A sample without text is quarantined.

    Raises:
        ValueError: no run stands there.
    """
    root = absolute_uri(path)
    store = Store(root)
    if store.exists(RUN_JSON):
        run = RunRecord.model_validate_json(store.read_bytes(RUN_JSON))
        if run.recipe == FEATURES_RECIPE:
            raise ValueError(f"{path}: a feature run has no canvases; give the token run that it was made of")
    elif not committed_shards(store):
        raise ValueError(f"{path}: neither {RUN_JSON} nor a commit stands there; give the folder of a token run")
    for commit in iter_commits(store):
        if commit.tar_name is None:
            continue
        tar = tar_rel(commit.shard)
        for number, sample in enumerate(commit.samples, start=1):
            yield _import_sample(store, tar, number, sample, root=root, source=source)


def _import_sample(
    store: Store, tar: str, number: int, sample: CommittedSample, *, root: str, source: str
) -> ImportedItem:
    row = RawRow(file=store.url(tar), row=number, value={"id": sample.id})
    try:
        record = _read_sample(store, tar, sample)
        if not record.messages:
            raise BadItemError("invalid_text", "the sample has no text; tokenize rows that have it", stage="import")
        messages, repairs = converse([(turn.role, turn.content) for turn in record.messages], [record.media])
        provenance = record.provenance
        medium = MediaRef(
            kind=record.media,
            key=sample.key,
            id=provenance.id,
            run=root,
            start_seconds=provenance.start_seconds,
            end_seconds=provenance.end_seconds,
        )
        made = TrainingRecord(
            id=provenance.id,
            source=source,
            modality=modality_of([record.media]),
            media=[medium],
            messages=messages,
            tags=[*provenance.tags, *([f"source:{provenance.source}"] if provenance.source else [])],
            repairs=repairs,
            origin=RecordOrigin(file=row.file, row=number),
        )
    except BadItemError as error:
        return refused(row, error.reason, str(error))
    except ValidationError as error:
        return refused(row, "damaged_sample", condensed(error))
    return ImportedItem(file=row.file, row=number, record=made)


def _read_sample(store: Store, tar: str, sample: CommittedSample) -> SampleRecord:
    part = next((part for part in sample.parts if part.name == "json"), None)
    if part is None:
        raise BadItemError("damaged_sample", f"{sample.key} has no KEY.json", stage="import")
    start = part.content_byte_offset
    try:
        data = store.read_range(tar, start, start + part.content_byte_size)
    except (FileNotFoundError, EOFError) as error:
        raise BadItemError(
            "damaged_sample", f"{sample.key}: {error}; run `ov2 verify` on it", stage="import"
        ) from error
    record = SampleRecord.model_validate_json(data)
    if record.provenance.id != sample.id:
        raise BadItemError(
            "damaged_sample",
            f"{sample.key}: its KEY.json is of {record.provenance.id!r}, not {sample.id!r}",
            stage="import",
        )
    return record
