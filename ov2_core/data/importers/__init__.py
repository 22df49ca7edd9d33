"""Importers: one small file a dataset, from its rows to TrainingRecords.

    for item in open_importer("finevision", "s3://bucket/finevision", source="finevision"):
        item.record or item.quarantined

Rows stream: nothing is read ahead of the item that is asked for. Each row becomes exactly one item; an id that the source gave
before is quarantined as duplicate_id. Media are recorded, never fetched (docs/curriculum.md).
"""

import inspect
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, get_args, get_type_hints

from ov2_core.data.importers.captions import import_captions
from ov2_core.data.importers.finevision import import_finevision
from ov2_core.data.importers.item import ImportedItem, refused
from ov2_core.data.importers.llava_instruct import import_llava_instruct
from ov2_core.data.importers.llava_video import import_llava_video
from ov2_core.data.importers.manifest_rows import import_manifest
from ov2_core.data.importers.molmo2_point import import_molmo2_point
from ov2_core.data.importers.molmo2_track import import_molmo2_track
from ov2_core.data.importers.record_lines import import_records
from ov2_core.data.importers.rows import RawRow
from ov2_core.data.importers.spatial_qa import import_spatial_qa
from ov2_core.data.importers.token_shards import import_token_shards
from ov2_core.data.importers.videochat_flash import import_videochat_flash
from ov2_core.data.keys import IdLedger

__all__ = ["ImportedItem", "importer_names", "open_importer"]

_IMPORTERS: dict[str, Callable[..., Iterator[ImportedItem]]] = {
    "manifest": import_manifest,
    "llava-instruct": import_llava_instruct,
    "finevision": import_finevision,
    "captions": import_captions,
    "llava-video": import_llava_video,
    "videochat-flash": import_videochat_flash,
    "molmo2-track": import_molmo2_track,
    "molmo2-point": import_molmo2_point,
    "token-shards": import_token_shards,
    "spatial-qa": import_spatial_qa,
    "records": import_records,
}


def importer_names() -> list[str]:
    """All importers."""
    return list(_IMPORTERS)


def open_importer(name: str, path: str, **options: Any) -> Iterator[ImportedItem]:
    """The items of a source, one a row, in order.

    Args:
        path: file, folder or glob, local or any fsspec URL; for token-shards the run's folder.
        options: the importer's own keyword arguments, e.g. source, media_root, mapping.

    Raises:
        ValueError: at once, for an unknown importer or option; while reading, for a file that is not what the importer reads.
    """
    if name not in _IMPORTERS:
        raise ValueError(f"unknown importer {name!r}; expected one of {', '.join(_IMPORTERS)}")
    importer = _IMPORTERS[name]
    known = [name for name in inspect.signature(importer).parameters if name != "path"]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"importer {name!r} has no option {', '.join(unknown)}; its options: {', '.join(known) or 'none'}"
        )
    for option, kind in get_type_hints(importer).items():
        if option in options and not _fits(options[option], kind):
            raise ValueError(f"importer {name!r}: {option} must be {_kind_text(kind)}, got {options[option]!r:.80}")
    return _unique(importer(path, **options))


def _fits(value: Any, kind: Any) -> bool:
    """Whether an option's value, often read from YAML, is of the annotated type; whole numbers are floats too."""
    kinds = get_args(kind) or (kind,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _kind_text(kind: Any) -> str:
    words = {str: "text", bool: "true or false", float: "a number", int: "a whole number"}
    return " or ".join(words.get(each, each.__name__) for each in get_args(kind) or (kind,) if each is not NoneType)


def _unique(items: Iterator[ImportedItem]) -> Iterator[ImportedItem]:
    """The items, a repeated (source, id) as duplicate_id. The ids lie in a temporary database, not in memory."""
    with IdLedger() as ledger:
        for item in items:
            if item.record is not None:
                _, problem = ledger.claim(f"{item.record.source}\n{item.record.id}", item.row)
                if problem is not None:
                    row = RawRow(file=item.file, row=item.row, value={"id": item.record.id})
                    item = refused(row, "duplicate_id", f"record {item.record.id!r} of this source was read before")
            yield item
