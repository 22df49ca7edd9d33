"""Results as text for a terminal: aligned `name value` lines, plain enough to be searched."""

import heapq
from collections.abc import Mapping

from ov2_core.features.layout import predict_bytes
from ov2_core.plan import iter_plan_quarantine, iter_plan_rows
from ov2_core.plan_errors import Ratio
from ov2_core.storage.files import Store
from ov2_core.storage.layout import QUARANTINE_DIR, SHARDS_DIR
from pipelines.progress import duration_text
from pipelines.tokenize_videos import TokenizeSummary
from schemas.run import VerifyReport
from schemas.shard import PlanRecord

_SHOWN_ERRORS = 20
_SHOWN_ROWS = 5


def plan_text(record: PlanRecord, store: Store, *, where: str | None) -> str:
    """What a plan predicts; the most expensive sources; what fell."""
    costly = heapq.nlargest(_SHOWN_ROWS, iter_plan_rows(store), key=lambda row: row.predicted_cpu_seconds)
    lines = [
        line_text("plan", store.url("plan") if where else "not written (dry run)"),
        line_text("manifest rows", f"{record.manifest_rows}"),
        line_text("planned", f"{record.num_planned} in {record.num_shards} shards"),
        line_text("filtered", counts_text(record.filtered_by_rule)),
        line_text("video", duration_text(record.predicted_video_seconds)),
        line_text("predicted tokens", f"{record.predicted_tokens:,}"),
        line_text("predicted bytes", size_text(record.predicted_bytes)),
        line_text("feature bytes", _feature_bytes(record.predicted_tokens)),
        line_text("predicted CPU", duration_text(record.predicted_cpu_seconds)),
        line_text("quarantined", f"{record.num_quarantined}"),
    ]
    for index, fallen in enumerate(iter_plan_quarantine(store)):
        if index == _SHOWN_ROWS:
            lines.append("    ...")
            break
        lines.append(f"    line {fallen.line}: {fallen.reason}: {fallen.message.splitlines()[0][:160]}")
    if costly:
        lines.append("most expensive:")
        lines += [
            f"    {row.key}: {duration_text(row.predicted_cpu_seconds)} CPU, {row.probe.codec} "
            f"{row.probe.width_px}x{row.probe.height_px}, {row.probe.num_frames} frames"
            for row in costly
        ]
    return "\n".join(lines)


def estimate_lines(
    record: PlanRecord, ratios: Mapping[str, Ratio], *, num_workers: int | None, price: float | None
) -> list[str]:
    """CPU hours, wall time, tokens and bytes of a run of the plan; corrected and with a range where ratios were learnt.

    num_workers: None where the cluster's size is not known. price: of a CPU hour.
    """
    predicted = {
        "cpu_seconds": record.predicted_cpu_seconds,
        "tokens": record.predicted_tokens,
        "bytes": record.predicted_bytes,
    }

    def line(name: str, quantity: str, factor: float, unit: str, places: int) -> str:
        value, ratio = predicted[quantity] * factor, ratios.get(quantity)
        if ratio is None:
            return line_text(name, f"{value:,.{places}f} {unit}")
        low, high = value * ratio.low, value * ratio.high
        middle = value * ratio.overall
        return line_text(name, f"{middle:,.{places}f} {unit} ({low:,.{places}f} to {high:,.{places}f})")

    lines = ["estimate:"]
    lines.append(line("CPU", "cpu_seconds", 1 / 3600, "CPU hours", 3))
    if num_workers:
        lines.append(line("wall", "cpu_seconds", 1 / 3600 / num_workers, f"hours on {num_workers} workers", 3))
    lines.append(line("size", "bytes", 1e-9, "GB", 3))
    lines.append(line("tokens", "tokens", 1, "tokens", 0))
    if price is not None:
        lines.append(line("price", "cpu_seconds", price / 3600, f"at {price:g} a CPU hour", 2))
    if ratios:
        num_shards = next(iter(ratios.values())).num_shards
        lines.append(f"    corrected by {num_shards} shards of earlier runs; ranges are their 10th to 90th percentile")
    else:
        lines.append(
            "    constants of `ov2 bench cost`; --learn-from RUN corrects them by an earlier run and gives ranges"
        )
    return lines


def tokenize_text(summary: TokenizeSummary, found: VerifyReport, store: Store, report_path: str) -> str:
    """What an invocation did, what the run holds, and where it stands."""
    wall = max(summary.wall_seconds, 1e-9)
    lines = [
        line_text("committed", f"{found.committed} samples in {found.shards} shards, {size_text(found.tar_bytes)}"),
        line_text("images", f"{found.num_images:,} canvases or frames, {found.num_tokens:,} tokens"),
        line_text("filtered", counts_text(found.filtered_by_rule)),
        line_text("quarantined", counts_text(found.quarantined_by_reason)),
        line_text(
            "this run",
            f"{summary.num_made} samples in {duration_text(wall)}"
            f" ({summary.num_made / wall:.2f} videos/s, {summary.video_seconds / wall:.1f} video-hours/h,"
            f" {duration_text(summary.cpu_seconds)} CPU)",
        ),
    ]
    if summary.num_shards_before:
        lines.append(line_text("resumed", f"{summary.num_shards_before} of {summary.num_shards} shards stood already"))
    if summary.num_worker_deaths:
        lines.append(line_text("worker deaths", f"{summary.num_worker_deaths}"))
    lines += [
        line_text("shards", store.url(f"{SHARDS_DIR}/")),
        line_text("report", report_path),
    ]
    if found.quarantined:
        lines.append(
            line_text("ledger", f"{store.url(QUARANTINE_DIR)}/*.jsonl (each is a manifest: give it to replay its rows)")
        )
    lines.append(_verdict(found))
    return "\n".join([*lines, *_errors(found)])


def verify_text(found: VerifyReport) -> str:
    """The sum, and what is wrong."""
    lines = [
        line_text("manifest rows", f"{found.manifest_rows}"),
        line_text("committed", f"{found.committed} samples in {found.shards} shards, {size_text(found.tar_bytes)}"),
        line_text("filtered", counts_text(found.filtered_by_rule)),
        line_text("quarantined", counts_text(found.quarantined_by_reason)),
        _verdict(found),
    ]
    return "\n".join([*lines, *_errors(found)])


def verdict_lines(found: VerifyReport) -> list[str]:
    """Quarantined rows by reason, the sum, and what is wrong."""
    return [line_text("quarantined", counts_text(found.quarantined_by_reason)), _verdict(found), *_errors(found)]


def size_text(num_bytes: int) -> str:
    """Bytes with a binary unit, e.g. 1.5 GiB."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _feature_bytes(num_tokens: int) -> str:
    """What merged features of these tokens would take, by the width of a released model's tokens."""
    sizes = [
        f"{size_text(predict_bytes(num_tokens, width=width, dtype='bf16'))} ({name})"
        for name, width in (("4B", 2560), ("8B", 4096))
    ]
    return f"{', '.join(sizes)} in bf16, about half in int8, if `ov2 encode` follows"


def _verdict(found: VerifyReport) -> str:
    total = f"{found.committed} committed + {found.filtered} filtered + {found.quarantined} quarantined"
    return line_text("verify", f"{'ok' if found.ok else 'FAILED'}: {found.manifest_rows} rows = {total}")


def _errors(found: VerifyReport) -> list[str]:
    shown = [f"    {error}" for error in found.errors[:_SHOWN_ERRORS]]
    more = len(found.errors) - len(shown)
    return shown + ([f"    and {more} more (ov2 verify --json)"] if more > 0 else [])


def counts_text(counts: Mapping[str, int]) -> str:
    """A total and what it is made of."""
    total = sum(counts.values())
    return f"{total} ({', '.join(f'{name} {n}' for name, n in sorted(counts.items()))})" if total else "0"


def line_text(name: str, value: str, *, width: int = 17) -> str:
    """One aligned line."""
    return f"{name:<{width}} {value}"
