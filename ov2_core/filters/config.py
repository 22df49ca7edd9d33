"""Thresholds of the filters: `--set filter.min_duration_seconds=2`. None (written "none"): the rule is off, and all are by default.

Thresholds are no scores: what was measured stands in the plan, and other thresholds are held against it without measuring
again (rules.py, `ov2 refilter`). Every threshold is inclusive: a row that meets it exactly stays.
"""

import math
import re
from dataclasses import dataclass, fields

_RANGES = (
    ("min_duration_seconds", "max_duration_seconds"),
    ("min_fps", "max_fps"),
    ("min_text_characters", "max_text_characters"),
)
_SHARES = ("max_static_share", "max_black_share", "black_dark_share", "min_script_share")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """What a row must have to be tokenized. Rules of the probe and of the text cost nothing; the last block looks at pixels."""

    min_duration_seconds: float | None = None
    """Of the row's range. Stills have no duration, no rate and no motion: the rules of those do not ask them."""
    max_duration_seconds: float | None = None
    min_short_side_px: int | None = None
    """Of the picture as shown."""
    min_fps: float | None = None
    """Frames shown a second, on average."""
    max_fps: float | None = None
    min_bits_per_px: float | None = None
    """Bits of the video stream for each pixel of each frame: what was squeezed too far."""

    min_text_characters: int | None = None
    """Of what the assistant says, or the caption. A row without text has 0; the other text rules do not ask it."""
    max_text_characters: int | None = None
    deny_text: str | None = None
    """Regular expression (Python's re, case ignored) that may occur nowhere in that text."""
    script: str | None = None
    """Script of the text by Unicode names, as LATIN, CYRILLIC, ARABIC, DEVANAGARI, or several: CJK+HIRAGANA+KATAKANA."""
    min_script_share: float = 0.8
    """Share of the letters that must be of `script`."""

    leave_out: str | None = None
    """File or URL of rows to leave out by id: JSON lines (schemas.shard.FilteredRow), as `ov2 near-duplicates` writes them.
    Read when rows are planned; what it said then stands in the plan."""

    max_static_share: float | None = None
    """Share of steps between the frames looked at in which nothing changes: by at most static_levels."""
    static_levels: float = 1.0
    """Mean absolute difference of luma, in levels of 0..255, on 64 x 64 cells."""
    max_black_share: float | None = None
    """Share of the frames looked at that are black: dark in at least black_dark_share of their cells."""
    black_dark_share: float = 0.98
    max_duplicate_bits: float | None = None
    """A row is a near-duplicate of an earlier one that stays if their hashes (64 bits a frame) differ by at most so many bits a
    frame on average. Other encodings of nine real clips differed by 0.3 to 6.1 bits, other clips by 22 and more."""
    measure_pixels: bool = False
    """Look at the pixels though no rule asks, so that such a rule can be set later without looking again."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ValueError(f"filter.{field.name} must be >= 0 and finite, got {value}; none switches a rule off")
        for low, high in _RANGES:
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"filter.{low} ({least}) must not exceed filter.{high} ({most}): no row could meet both"
                )
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and value > 1:
                raise ValueError(f"filter.{name} is a share and must be in [0, 1], got {value}")
        if self.max_duplicate_bits is not None and self.max_duplicate_bits > 16:
            raise ValueError(
                f"filter.max_duplicate_bits must be at most 16 (of 64; strangers differ by about 32), got {self.max_duplicate_bits}"
            )
        if self.script is not None and not re.fullmatch(r"[A-Z]+(\+[A-Z]+)*", self.script):
            raise ValueError(
                f"filter.script must be Unicode's name of a script in capitals, or several with +, e.g. LATIN or "
                f"CJK+HIRAGANA+KATAKANA, got {self.script!r}"
            )
        if self.deny_text is not None:
            try:
                re.compile(self.deny_text)
            except re.error as error:
                raise ValueError(
                    f"filter.deny_text is no regular expression: {error}; got {self.deny_text!r}"
                ) from None

    @property
    def needs_pixels(self) -> bool:
        """Whether frames are decoded for the scores."""
        rules = (self.max_static_share, self.max_black_share, self.max_duplicate_bits)
        return self.measure_pixels or any(rule is not None for rule in rules)
