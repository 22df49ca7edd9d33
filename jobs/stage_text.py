"""What the commands say of a stage."""

from typing import TYPE_CHECKING

from jobs.summary import line_text, size_text
from ov2_core.storage.files import Store
from schemas.stage import StageRecord, StageSource

if TYPE_CHECKING:
    from ov2_core.data.verify_stage import StageCheck


def stage_text(record: StageRecord, store: Store) -> str:
    """Mixture as asked against as built, packing, what was left out."""
    packing = record.packing
    total = max(packing.num_samples, 1)
    lines = [
        ("stage", f"{record.recipe} version {record.recipe_version}, seed {record.seed}, {record.form}"),
        (
            "packs",
            f"{packing.num_packs:,} of {packing.sequence_length:,} tokens, fill {packing.fill:.2%}, "
            f"{packing.num_samples / max(packing.num_packs, 1):.1f} samples a pack (most {packing.max_samples})",
        ),
        ("tokens", f"{packing.num_tokens:,} in {packing.num_samples:,} samples"),
        *((source.name, source_text(source, total)) for source in record.sources),
    ]
    if record.missing_slots:
        lines.append(("not filled", ", ".join(record.missing_slots)))
    if any(source.dropped or source.num_quarantined for source in record.sources):
        lines.append(("left out", store.url("dropped.jsonl")))
    manifests = sorted(store.list("missing"))
    if manifests:
        names = ", ".join(store.url(f"missing/{name}") for name in manifests)
        lines.append(("to tokenize", f"{names}: videos that lie in no token run; a new stage can have them too"))
    lines.append(("written", store.root))
    width = max(17, *(len(name) for name, _ in lines))
    return "\n".join(line_text(name, value, width=width) for name, value in lines)


def check_lines(check: "StageCheck") -> list[str]:
    """What `ov2 stage verify` found."""
    lines = [
        line_text("packs", f"{check.num_packs:,} packs, {check.num_samples:,} samples, {check.num_tokens:,} tokens"),
        *([line_text("decoded", f"{check.num_images:,} images")] if check.num_images else []),
        *(f"  {error}" for error in check.errors),
    ]
    return [*lines, "OK: the stage holds what it says" if check.ok else f"INVALID: {len(check.errors)} findings"]


def source_text(source: StageSource, total: int) -> str:
    """One source: asked, built, left out."""
    asked = f"count {source.count:,}" if source.count is not None else f"weight {source.weight:,.10g}"
    text = (
        f"{asked} -> {source.num_samples:,} samples ({source.num_samples / total:.2%}), {source.num_tokens:,} tokens, "
        f"{size_text(source.num_bytes)}"
    )
    if source.num_rounds_cut:
        text += f"; {source.num_rounds_cut:,} rounds cut"
    left_out = dict(source.dropped)
    if source.num_quarantined:
        left_out["bad rows"] = source.num_quarantined
    if left_out:
        text += "; left out: " + ", ".join(f"{reason} {num:,}" for reason, num in left_out.items())
    return text
