"""What a question asks, whatever its phrasing: the family of phrasings that its text is of, and the names in it.

Enters: a question's type and text. Leaves: a key, equal for texts that differ in phrasing, frames, points and times alone.
Phrasings of one meaning stand together in the task types' files, as a tuple or as an entry of a dict of tuples, so families need no
list of their own. Used to count answers over a corpus (corpus.py), not to prove them: the checker reads texts by its own rules.
"""

import re
from functools import cache
from string import Formatter

from ov2_core.spatial.tasks import BY_NAME

FRAME = r"(?:the image|frame \d+|the frame at \d+\.\d+ s)"
_FIELDS = {
    "views": r"(?:these frames|the video)",
    "image": FRAME,
    "frame": FRAME,
    "f0": FRAME,
    "f1": FRAME,
    "p": r"\(\d+, \d+\)",
    "q": r"\(\d+, \d+\)",
    "point": r"\(\d+, \d+\)",
    "gap": r"\d+\.\d+",
    "unit": r".+?",
    "timing": r".*?",
}
"""Fields of phrasings that say what is shown and where, not what is asked about; the others are names and senses."""


def sense_of(kind: str, text: str) -> tuple[str, dict[str, str]] | None:
    """(family, {field: what stands there}) of a question; None where no phrasing of its type fits."""
    for family, pattern in _patterns(kind):
        found = pattern.fullmatch(text)
        if found:
            return family, {name: value for name, value in found.groupdict().items() if not name.startswith("_")}
    return None


@cache
def _patterns(kind: str) -> list[tuple[str, re.Pattern[str]]]:
    task = BY_NAME.get(kind)
    families: dict[str, tuple[str, ...]] = {}
    for name, value in sorted(vars(task).items()) if task is not None else []:
        if name.isupper():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            families |= {f"{name}.{key}": texts for key, texts in entries if _are_phrasings(texts)}
    return [(family, _pattern(text)) for family, texts in families.items() for text in texts]


def _are_phrasings(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(text, str) and "{" in text for text in value)


def _pattern(phrasing: str) -> re.Pattern[str]:
    parts, seen = [], set()
    for literal, field, _, _ in Formatter().parse(phrasing):
        parts.append(re.escape(literal))
        if field is None:
            continue
        name = f"_{field}" if field in _FIELDS else field
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{_FIELDS.get(field, '.+?')})")
        seen.add(name)
    return re.compile("".join(parts))
