"""LLaVA-OneVision-1.5-Instruct (Parquet, images inside): `id, image, conversations [{from, value}], data_source`.

The columns are unverified: `messages` [{role, content}] for `conversations`, JSON text for a list, `images` for `image`, and
bytes, {bytes, path} or a path for an image are all read.
"""

from collections.abc import Iterator
from typing import Any

from ov2_core.data.importers.conversation import converse, text_of
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import image_refs, make_record
from ov2_core.data.importers.rows import list_files, read_parquet
from schemas.records import RecordOrigin


def import_llava_instruct(
    path: str, *, source: str = "llava-onevision-1.5-instruct", media_root: str | None = None
) -> Iterator[ImportedItem]:
    """Records of Parquet rows; a row without an image is a text-only record."""

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        column = "image" if row.get("image") is not None else "images"
        media, payloads = image_refs(row.get(column), column, source=source, origin=origin, root=media_root)
        messages, repairs = converse(text_of(row), [ref.kind for ref in media])
        data_source = row.get("data_source")
        record = make_record(
            source=source,
            origin=origin,
            media=media,
            messages=messages,
            repairs=repairs,
            given_id=row.get("id"),
            tags=[f"source:{data_source}"] if data_source else [],
        )
        return Made(record=record, payloads=payloads)

    for file in list_files(path, (".parquet",)):
        yield from import_rows(read_parquet(file), make)
