"""Answers that no model should give and some do: fragments of formats, cut, repeated, shuffled, and plain noise."""

import random

FRAGMENTS = [
    "[", "]", "(", ")", "{", "}", ",", ";", '"', "'", "[[", "]]", "```json", "```", "null", "NaN", "-Infinity", "1e999", "1e-5",
    "0.1.2", "--3", "٣", "½", "²", "\x00", "\ud800", "😀", "</s>", "<|im_end|>", "seconds", " s", "0.5s", "1:30", "00:01:02",
    "1:2:3:4", "9" * 40, "9" * 5000, "true", "[1,", ",2]", "\n", " ", "[" * 50, "]" * 50, "0x1f", "1_000", "-1", "+2", "1,5",
    "∞", "<tracks", "<tracks coords=", '<tracks coords="', '">target objects</tracks>', "0.0 1 520 431", "0.5 1 5", "0.1 1 2 3 4",
    "nan 1 2 3", "1 1e400 2 3", "-1 1 2 3", "0.5 1.5 3 3", "0.5 1 9999 3", "(1, 2)", "[(1, 2, 0.5)", "(nan, 1)", "[1, 2, 3, 4]",
    "to", " - ", "from", "A", "B.", "(C)", "answer: D", "The answer is", "none", "twelve", "about 3 m", "1e5", "inf",
]  # fmt: skip


def noise(rng: random.Random) -> str:
    """One malformed answer."""
    text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(0, 14)))
    if rng.random() < 0.3:
        text = "".join(chr(rng.randrange(0, 0x3000)) for _ in range(rng.randrange(0, 60)))
    return text[: rng.randrange(0, len(text) + 1)] if rng.random() < 0.3 else text
