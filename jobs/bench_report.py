"""The tokenizer benchmark's report as tables: on the terminal, and as a marked section of a Markdown file.

Enters: the report of jobs/bench_tokenizer.py (plain JSON types). Leaves: text. Design: one list of tables serves both, so that
what is printed and what is written cannot differ.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- bench tokenizer: begin -->", "<!-- bench tokenizer: end -->"
QUALITY_BEGIN, QUALITY_END = "<!-- bench tokenizer quality: begin -->", "<!-- bench tokenizer quality: end -->"
EQUAL_TOKENS = 0.02
"""Largest relative difference in tokens at which two selections are compared in the summary."""
POLICIES = ("uniform", "saliency", "evidence", "saliency fast", "evidence fast", "peer", "peer as delivered")
COST_KINDS = POLICIES[:-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A table of strings."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(report: dict[str, Any]) -> list[TextTable]:
    """All tables of a report; of one without costs: the summary of its quality."""
    budgets = report["settings"]["budgets"]
    if not report["settings"].get("costs", True):
        return [_summary(report)]
    tables = [_summary(report), _cost_summary(report)]
    shared = _with_peer(report)
    if 0 < len(shared) < len(report["clips"]):
        narrowed = {**report, "clips": shared}
        tables = [table for make in (_summary, _cost_summary) for table in (make(report), _narrowed(make(narrowed)))]
    tables += [_quality(report, budget) for budget in budgets]
    tables += [_cost(report, max(budgets)), _jpeg(report)]
    failures = _failures(report)
    return [*tables, failures] if failures.rows else tables


def print_tables(report: dict[str, Any]) -> None:
    """To the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(_provenance(report))
    for text in tables_of(report):
        table = Table(title=text.title, caption=text.note, caption_justify="left")
        for i, name in enumerate(text.header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in text.rows:
            table.add_row(*row)
        console.print(table)


def write_markdown(report: dict[str, Any], path: Path) -> None:
    """Replaces what stands between the markers, or appends both to the file.

    Raises:
        ValueError: one marker without the other.
    """
    parts = [_provenance(report), ""]
    for table in tables_of(report):
        parts += [f"### {table.title}", "", table.note, ""]
        parts += [_line(table.header), _line(["---"] + ["---:"] * (len(table.header) - 1))]
        parts += [_line(row) for row in table.rows]
        parts.append("")
    body = "\n".join(parts)
    costs = report["settings"].get("costs", True)
    begin, end = (BEGIN, END) if costs else (QUALITY_BEGIN, QUALITY_END)
    old = path.read_text() if path.exists() else ""
    if (begin in old) != (end in old):
        raise ValueError(f"{path} holds only one of {begin} and {end}; put the other back")
    if begin in old:
        head, rest = old.split(begin, 1)
        tail = rest.split(end, 1)[1]
    else:
        head, tail = (old.rstrip() + "\n\n" if old.strip() else ""), "\n"
    path.write_text(f"{head}{begin}\n\n{body}\n{end}{tail}")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _provenance(report: dict[str, Any]) -> str:
    machine, versions, settings = report["machine"], report["versions"], report["settings"]
    load = report["load_average_before"], report["load_average_after"]
    busy = max(load[0][0], load[1][0]) > 1.5
    costs = f"{settings['repeats']} fresh processes a measurement" if settings["repeats"] else "Quality alone, no costs"
    known = ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    return (
        f"Measured {machine['date']} on {machine['cpu']}, {machine['usable_cpus']} usable CPUs ({machine['system']}); load "
        f"average {load[0][0]} before and {load[1][0]} after, so the machine was "
        f"{'shared with other work' if busy else 'otherwise quiet'}{': costs are noisy' if busy and settings['repeats'] else ''}. "
        f"{costs}. {known}. Peer: {report['peer']['note']}."
    )


def _cases(report: dict[str, Any], budget: int, policy: str) -> dict[str, dict[str, Any]]:
    return {
        clip["name"]: case
        for clip in report["clips"]
        for case in clip["cases"]
        if case["budget"] == budget and case["policy"] == policy
    }


def _with_peer(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Clips that the peer could do at every budget with as many tokens as uniform frames."""
    shared = []
    for clip in report["clips"]:
        cases = {(c["budget"], c["policy"]): c for c in clip["cases"]}
        both = [(cases.get((b, "peer")), cases.get((b, "uniform"))) for b in report["settings"]["budgets"]]
        if all(peer is not None and _comparable(peer, uniform) for peer, uniform in both):
            shared.append(clip)
    return shared


def _narrowed(table: TextTable) -> TextTable:
    return replace(table, title=f"{table.title}: only clips that the peer could do", note="As above.")


def _summary(report: dict[str, Any]) -> TextTable:
    rows = []
    for budget in report["settings"]["budgets"]:
        uniform = _cases(report, budget, "uniform")
        for policy in POLICIES:
            cases = {n: c for n, c in _cases(report, budget, policy).items() if _comparable(c, uniform.get(n))}
            if not cases:
                continue
            gains = [c["psnr_db"] - uniform[n]["psnr_db"] for n, c in cases.items() if _finite(c, uniform[n])]
            wins = sum(_decibels(c) > _decibels(uniform[n]) for n, c in cases.items())
            similar = [c["ssim"] - uniform[n]["ssim"] for n, c in cases.items()]
            events = [c for c in cases.values() if c["num_events"]]
            rows.append(
                (
                    policy,
                    str(budget),
                    str(len(cases)),
                    _signed(_mean(gains), 2),
                    f"{_signed(min(gains, default=None), 1)} .. {_signed(max(gains, default=None), 1)}",
                    _signed(_mean(similar), 3),
                    _signed(min(similar), 3),
                    str(wins) if policy != "uniform" else "-",
                    _fixed(_mean([c["event_recall"] for c in events]), 2),
                    _fixed(_mean([c["strict_recall"] for c in events]), 2),
                )
            )
    return TextTable(
        title="Evidence and events against uniform frames at the same number of tokens",
        note=(
            "Held evidence against all source frames; gains are over uniform frames, averaged over the clips where both have "
            "the same number of tokens (within 2 %); a clip rebuilt exactly counts as a win and in no mean of PSNR. Policy "
            "evidence optimises nearly this PSNR, so read SSIM and events beside it. Events: generated clips alone. "
            '"peer" is its selection with the same source pixels as ours; "as delivered" has its own scaling and JPEG.'
        ),
        header=(
            "selection",
            "images",
            "clips",
            "PSNR gain dB",
            "range",
            "SSIM gain",
            "least",
            "wins",
            "event recall",
            "strict",
        ),
        rows=tuple(rows),
    )


def _comparable(case: dict[str, Any], uniform: dict[str, Any] | None) -> bool:
    """Equal numbers of tokens, within 2 %."""
    return uniform is not None and abs(case["tokens"] / uniform["tokens"] - 1) <= EQUAL_TOKENS


def _decibels(case: dict[str, Any]) -> float:
    return float("inf") if case["psnr_db"] is None else float(case["psnr_db"])


def _finite(case: dict[str, Any], other: dict[str, Any]) -> bool:
    return case["psnr_db"] is not None and other["psnr_db"] is not None


def _costs(report: dict[str, Any]) -> list[tuple[dict[str, Any], dict[tuple[int | None, str], dict[str, Any]]]]:
    return [(clip, {(c["budget"], c["kind"]): c for c in clip["cost"]}) for clip in report["clips"]]


def _cost_summary(report: dict[str, Any]) -> TextTable:
    rows = []
    for budget in report["settings"]["budgets"]:
        for kind in COST_KINDS:
            pairs = []
            for clip, costs in _costs(report):
                mine, decode = costs.get((budget, kind)), costs.get((None, "decode"))
                if mine and decode and "error" not in mine and "cpu_seconds" in mine and "cpu_seconds" in decode:
                    pairs.append((mine, decode, clip))
            if not pairs:
                continue
            cpu = sum(m["cpu_seconds"]["median"] for m, _, _ in pairs)
            plain = sum(d["cpu_seconds"]["median"] for _, d, _ in pairs)
            rows.append(
                (
                    kind,
                    str(budget),
                    str(len(pairs)),
                    f"{cpu:.2f}",
                    f"{plain:.2f}",
                    f"{cpu / plain:.2f}",
                    f"{sum(m['wall_seconds']['median'] for m, _, _ in pairs):.2f}",
                    f"{sum(c['seconds'] for _, _, c in pairs) / cpu:.0f}",
                    f"{max(m['peak_rss_bytes']['median'] for m, _, _ in pairs) / 2**20:.0f}",
                )
            )
    return TextTable(
        title="Cost, all clips together",
        note=(
            "CPU seconds (children included) of one call, sum over clips of the median run; start-up, imports and compilation are "
            "out: the clock starts after a warm-up call. Ours and the peer's end with canvases as JPEG 95 (the peer's on disk); "
            "the peer's include the ffprobe processes that it starts. Plain decode is PyAV on one thread, frames dropped; "
            "only the clips that the row covers. Peak is that of the process."
        ),
        header=(
            "kind",
            "images",
            "clips",
            "CPU s",
            "plain decode CPU s",
            "ratio",
            "wall s",
            "video s per CPU s",
            "peak MiB",
        ),
        rows=tuple(rows),
    )


def _quality(report: dict[str, Any], budget: int) -> TextTable:
    compared = tuple(p for p in POLICIES[1:] if p != "peer as delivered" and _cases(report, budget, p))
    by_policy = {policy: _cases(report, budget, policy) for policy in ("uniform", *compared)}
    rows = []
    for name, uniform in by_policy["uniform"].items():
        cases = [c if c and _comparable(c, uniform) else None for c in (by_policy[p].get(name) for p in compared)]
        rows.append(
            (
                name,
                str(uniform["tokens"]),
                _fixed(uniform["psnr_db"], 1) if uniform["psnr_db"] is not None else "exact",
                *(_gain_db(case, uniform) for case in cases),
                *("-" if case is None else _signed(case["ssim"] - uniform["ssim"], 3) for case in cases),
                *("-" if case is None else _fixed(case["strict_recall"], 2) for case in (uniform, *cases)),
            )
        )
    return TextTable(
        title=f"Quality by clip, {budget} images",
        note=(
            "Gains over uniform frames; - where the tokens are not as many (the peer rounds a frame's size to the grid where we "
            "floor it) or nothing was measured."
        ),
        header=(
            "clip",
            "tokens",
            "uniform dB",
            *(f"{policy} dB" for policy in compared),
            *(f"{policy} SSIM" for policy in compared),
            *(f"{policy} strict" for policy in ("uniform", *compared)),
        ),
        rows=tuple(rows),
    )


def _gain_db(case: dict[str, Any] | None, uniform: dict[str, Any]) -> str:
    if case is None:
        return "-"
    if case["psnr_db"] is None:
        return "exact"
    return _signed(case["psnr_db"] - uniform["psnr_db"], 1) if uniform["psnr_db"] is not None else "-"


def _cost(report: dict[str, Any], budget: int) -> TextTable:
    kinds = [k for k in COST_KINDS if any((budget, k) in costs for _, costs in _costs(report))]
    rows = []
    for clip, costs in _costs(report):
        decode = costs.get((None, "decode"), {})
        if "cpu_seconds" not in decode:
            continue
        plain = decode["cpu_seconds"]
        measured = [
            cost if "cpu_seconds" in cost else None for cost in (costs.get((budget, kind), {}) for kind in kinds)
        ]
        rows.append(
            (
                f"{clip['name']} ({clip['codec']} {clip['width_px']}x{clip['height_px']}, {clip['num_frames']} frames)",
                f"{plain['median']:.3f} ({plain['min']:.3f} .. {plain['max']:.3f})",
                *("-" if c is None else f"{c['cpu_seconds']['median'] / plain['median']:.2f}" for c in measured),
                *("-" if c is None else f"{c['peak_rss_bytes']['median'] / 2**20:.0f}" for c in measured),
            )
        )
    return TextTable(
        title=f"Cost by clip, {budget} images",
        note="CPU seconds of a plain decode, median (least .. most); the others as multiples of it; peak memory of the process.",
        header=("clip", "decode CPU s", *(f"{k} x" for k in kinds), *(f"{k} MiB" for k in kinds)),
        rows=tuple(rows),
    )


def _jpeg(report: dict[str, Any]) -> TextTable:
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for clip in report["clips"]:
        for row in clip["jpeg"]:
            groups.setdefault((row["policy"], row["quality"], row["subsampling"]), []).append(row)
    rows = [
        (
            policy,
            f"{quality} {subsampling}",
            f"{sum(r['bytes'] for r in found) / sum(r['tokens'] for r in found):.0f}",
            _fixed(_mean([r["psnr_db"] for r in found if r["psnr_db"] is not None]), 1),
        )
        for (policy, quality, subsampling), found in sorted(groups.items(), key=lambda item: POLICIES.index(item[0][0]))
    ]
    return TextTable(
        title="Bytes a token by JPEG quality",
        note="All clips together at the largest budget; a token is 28 x 28 px. PSNR of canvases through JPEG, mean over clips.",
        header=("selection", "JPEG", "bytes a token", "PSNR dB"),
        rows=tuple(rows),
    )


def _failures(report: dict[str, Any]) -> TextTable:
    rows = [(clip["name"], "clip", clip["error"]) for clip in report["clips"] if "error" in clip]
    for clip, costs in _costs(report):
        rows += [
            (clip["name"], f"{kind} {budget or ''}".strip(), cost["error"])
            for (budget, kind), cost in costs.items()
            if "error" in cost
        ]
    return TextTable(title="What did not run", note="", header=("clip", "kind", "reason"), rows=tuple(rows))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"
