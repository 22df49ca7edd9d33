"""LLaVA-Video-178K (JSON arrays, hundreds of MB): `id, data_source, video, conversations [{from, value}]`.

The first turn says "<image>" for the video (repair `placeholder_renamed`). Videos lie at `media_template` below `media_root`.
"""

from collections.abc import Iterator
from typing import Any

from ov2_core.data.importers.conversation import converse, text_of
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import file_ref, fill_template, make_record
from ov2_core.data.importers.rows import list_files, read_json
from schemas.records import RecordOrigin


def import_llava_video(
    path: str,
    *,
    source: str = "llava-video-178k",
    media_root: str | None = None,
    media_template: str = "{video}",
) -> Iterator[ImportedItem]:
    """Records of array items; use media_template="{data_source}/{video}" where each subset was unpacked into its own folder."""

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        video = fill_template(media_template, row)
        medium = file_ref("video", video, source=source, origin=origin, root=media_root)
        messages, repairs = converse(text_of(row), [medium.kind])
        data_source = row.get("data_source")
        record = make_record(
            source=source,
            origin=origin,
            media=[medium],
            messages=messages,
            repairs=repairs,
            given_id=row.get("id"),
            tags=[f"source:{data_source}"] if data_source else [],
        )
        return Made(record=record)

    for file in list_files(path, (".json", ".jsonl", ".json.gz", ".jsonl.gz")):
        yield from import_rows(read_json(file), make)
