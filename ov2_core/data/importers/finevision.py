"""FineVision (Parquet, images inside): `images [{bytes, path}]`, `texts [{user, assistant}]`, `source`, ratings by name.

The texts carry no placeholders: all images open the first turn (repair `placeholder_added`). Of each rating the least over the
rounds is kept, `<name>_min` where given, else the least of `<name>_ratings`.
"""

from collections.abc import Iterator
from typing import Any

from ov2_core.data.importers.conversation import Turns, converse
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import image_refs, make_record
from ov2_core.data.importers.rows import list_files, read_parquet
from ov2_core.errors import BadItemError
from schemas.records import RecordOrigin

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")


def import_finevision(
    path: str, *, source: str = "finevision", media_root: str | None = None
) -> Iterator[ImportedItem]:
    """Records of Parquet rows."""

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        media, payloads = image_refs(row.get("images"), "images", source=source, origin=origin, root=media_root)
        messages, repairs = converse(_turns(row.get("texts")), [ref.kind for ref in media])
        subset = row.get("source")
        record = make_record(
            source=source,
            origin=origin,
            media=media,
            messages=messages,
            repairs=repairs,
            given_id=subset,
            tags=[f"source:{subset}"] if subset else [],
            ratings=_ratings(row),
        )
        return Made(record=record, payloads=payloads)

    for file in list_files(path, (".parquet",)):
        yield from import_rows(read_parquet(file), make)


def _turns(texts: Any) -> Turns:
    if not isinstance(texts, list) or not texts:
        raise BadItemError("malformed_row", f"texts: expected a list of rounds, got {texts!r:.80}", stage="import")
    turns: Turns = []
    for number, item in enumerate(texts):
        if not isinstance(item, dict) or not all(isinstance(item.get(k), str) for k in ("user", "assistant")):
            raise BadItemError("malformed_row", f"texts[{number}]: expected user and assistant texts", stage="import")
        turns += [("user", item["user"]), ("assistant", item["assistant"])]
    return turns


def _ratings(row: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in RATINGS:
        least, each = row.get(f"{name}_min"), row.get(f"{name}_ratings")
        values = [least] if least is not None else [value for value in each or [] if value is not None]
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
            raise BadItemError("malformed_row", f"{name}: expected numbers, got {values!r:.80}", stage="import")
        if values:
            found[name] = float(min(values))
    return found
