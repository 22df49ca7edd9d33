"""One manifest row to one row of the plan: all that a worker does of planning.

Enters: a row as it was read. Leaves: text for the plan's file and the few numbers that the driver adds up, or a quarantine
row. Whether its id is new, and which shard it goes to, the driver says: both follow from the rows before it. What travels is
plain text and numbers, some thirty microseconds of the driver a row.
"""

from ov2_core.data.keys import derived_id, key_of
from ov2_core.data.manifest import ManifestItem, RawRow, parse_row, resolve_uri
from ov2_core.errors import BadItemError
from ov2_core.make_sample import ProbeTask, quarantine_row
from ov2_core.plan import PlannedText
from schemas.shard import PlannedRow, QuarantineRow


def name_row(raw: RawRow | ManifestItem, manifest_uri: str) -> ProbeTask | QuarantineRow:
    """The row with its id, key and absolute URI; or why it falls before it is probed."""
    item = parse_row(raw) if isinstance(raw, RawRow) else raw
    if item.row is None:
        return quarantine_row(
            line=item.line,
            id=None,
            uri=None,
            reason="malformed_row",
            stage="manifest",
            message=item.error or "",
            raw=item.raw,
        )
    row = item.row
    uri = row.video or row.image or ""
    id = row.id or derived_id(row)
    try:
        return ProbeTask(line=item.line, id=id, key=key_of(id), uri=resolve_uri(uri, manifest_uri), row=row)
    except BadItemError as error:
        return quarantine_row(
            line=item.line, id=id, uri=uri, row=row, reason=error.reason, stage=error.stage, message=str(error)
        )


def duplicate(found: PlannedText | QuarantineRow, refusal: str) -> QuarantineRow:
    """What becomes of a row whose id an earlier row has taken. A URI that was refused stays the reason."""
    if isinstance(found, QuarantineRow) and found.stage == "manifest":
        return found
    row = found.row if isinstance(found, QuarantineRow) else PlannedRow.model_validate_json(found.text).row
    return quarantine_row(
        line=found.line, id=found.id, uri=found.uri, row=row, reason="duplicate_id", stage="manifest", message=refusal
    )
