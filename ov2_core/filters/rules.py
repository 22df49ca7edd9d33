"""The rules: a row's scores and the thresholds in, the first rule that leaves it out (or none) out. Pure, so that other
thresholds can be tried on scores that were measured once.

Enters: a planned row, with what its probe and, where it was asked, a look at its pixels measured. Near-duplicates are not
among these rules, for they depend on other rows (duplicates.py).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from ov2_core.filters.config import FilterConfig
from schemas.shard import FilteredRow, PlannedRow
from schemas.video import ManifestRow, PixelScores, ProbeRecord

_SHOWN_CHARACTERS = 80
Finding = tuple[str, float | None, float | None, str]
"""(rule, value, threshold, what it says)."""


def judge(planned: PlannedRow, config: FilterConfig) -> FilteredRow | None:
    """The first rule, in the order of FilterConfig, that leaves the row out; None: it stays.

    Raises:
        ValueError: a rule on pixels is set, and the row's were not looked at.
    """
    found = next(_findings(planned, config), None)
    if found is None:
        return None
    rule, value, threshold, message = found
    return filtered_row(planned, rule=rule, value=value, threshold=threshold, message=message)


def filtered_row(
    planned: PlannedRow, *, rule: str, message: str, value: float | None = None, threshold: float | None = None
) -> FilteredRow:
    """The ledger's row of a planned row that a rule leaves out."""
    return FilteredRow(
        line=planned.line,
        id=planned.id,
        uri=planned.uri,
        rule=rule,
        message=message,
        value=None if value is None else round(value, 6),
        threshold=threshold,
    )


def text_of(row: ManifestRow) -> str:
    """What a trainer would learn to say: the caption, or the assistant's turns."""
    if row.caption is not None:
        return row.caption.strip()
    if row.messages is not None:
        said = [turn.content for turn in row.messages if turn.role == "assistant"]
    else:
        turns = row.conversations or []
        said = [str(turn.get("value", "")) for turn in turns if turn.get("from") in ("gpt", "assistant")]
    return "\n".join(text.strip() for text in said)


def script_share(text: str, script: str) -> float | None:
    """Share of a text's letters that are of a script; None for a text without letters.

    script: Unicode's names of scripts, joined by "+". A letter's script is the first word of its name after compatibility
    decomposition (NFKC), so Latin letters of full width are Latin. A script is not a language: English and French are one.
    """
    letters = Counter(_script(c) for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    total = letters.total()
    return sum(letters[name] for name in script.split("+")) / total if total else None


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _findings(planned: PlannedRow, config: FilterConfig) -> Iterator[Finding]:
    yield from _of_probe(planned.probe, config)
    yield from _of_text(text_of(planned.row), config)
    if config.max_static_share is not None or config.max_black_share is not None:
        if planned.pixels is None:
            raise ValueError(
                f"line {planned.line}, {planned.id}: its pixels were not looked at, and filter.max_static_share or "
                "filter.max_black_share asks for them; plan anew with it, or with filter.measure_pixels=true"
            )
        yield from _of_pixels(planned.pixels, config)


def _of_probe(probe: ProbeRecord, config: FilterConfig) -> Iterator[Finding]:
    short_side = float(min(probe.width_px, probe.height_px))
    yield from _at_least("min_short_side_px", short_side, config.min_short_side_px, "px on the short side")
    if probe.media == "image":
        return
    seconds = probe.duration_seconds
    yield from _at_least("min_duration_seconds", seconds, config.min_duration_seconds, "s long")
    yield from _at_most("max_duration_seconds", seconds, config.max_duration_seconds, "s long")
    if seconds > 0:
        fps = probe.num_frames / seconds
        yield from _at_least("min_fps", fps, config.min_fps, "frames a second")
        yield from _at_most("max_fps", fps, config.max_fps, "frames a second")
    bits = 8 * probe.video_bytes / (probe.num_frames * probe.width_px * probe.height_px)
    yield from _at_least("min_bits_per_px", bits, config.min_bits_per_px, "bits a pixel")


def _of_text(text: str, config: FilterConfig) -> Iterator[Finding]:
    yield from _at_least("min_text_characters", float(len(text)), config.min_text_characters, "characters of text")
    yield from _at_most("max_text_characters", float(len(text)), config.max_text_characters, "characters of text")
    denied = None if config.deny_text is None else re.search(config.deny_text, text, re.IGNORECASE)
    if denied is not None:
        yield "deny_text", None, None, f"the text says {denied[0][:_SHOWN_CHARACTERS]!r}"
    share = None if config.script is None else script_share(text, config.script)
    if share is not None and config.script is not None:
        yield from _at_least("min_script_share", share, config.min_script_share, f"of the letters are {config.script}")


def _of_pixels(pixels: PixelScores, config: FilterConfig) -> Iterator[Finding]:
    if pixels.change_levels:
        still = sum(level <= config.static_levels for level in pixels.change_levels)
        share = still / len(pixels.change_levels)
        yield from _at_most("max_static_share", share, config.max_static_share, "of the steps show no change")
    if pixels.dark_share:
        black = sum(dark >= config.black_dark_share for dark in pixels.dark_share)
        share = black / len(pixels.dark_share)
        yield from _at_most("max_black_share", share, config.max_black_share, "of the frames are black")


def _at_least(rule: str, value: float, threshold: float | None, what: str) -> Iterator[Finding]:
    if threshold is not None and value < threshold:
        yield rule, value, float(threshold), f"{value:.6g} {what}, at least {threshold:g} are asked"


def _at_most(rule: str, value: float, threshold: float | None, what: str) -> Iterator[Finding]:
    if threshold is not None and value > threshold:
        yield rule, value, float(threshold), f"{value:.6g} {what}, at most {threshold:g} are allowed"
