"""Near-duplicates by perceptual hash: of rows that look alike the first stays, and the others name it.

Enters: rows in manifest order with the hashes of their frames. Leaves: for each the earlier row that it repeats, or none.

Two rows are compared frame by frame: the mean number of differing bits over the places where both have a hash, which must be at
least half of the places. Rows that could be alike are found by bands (locality-sensitive hashing; A. Rajaraman and J. Ullman,
"Mining of Massive Datasets", ch. 3): the four 16-bit bands of each frame's hash. Rows at a mean distance below 4 bits have a frame
with at most 3 differing bits, and so a band in common, for sure. The tables live in a private temporary database, so memory is
bounded; only rows that stay are entered, so a clip that is repeated a million times fills no bucket.
"""

import sqlite3
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.video import PixelScores

NUM_BANDS = 4
MAX_PER_BAND = 256
"""Rows of one band that are compared, the first ones: titles and frames that many clips share would make it quadratic."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The earlier row that a row repeats."""

    line: int
    id: str
    bits: float
    """Differing bits a frame, on average."""


class DuplicateIndex:
    """Rows that stay, by the bands of their hashes. Not thread-safe; close it or use it as a context manager."""

    def __init__(self, max_bits: float) -> None:
        self.max_bits = max_bits
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA cache_size=-65536")
        self._database.execute("CREATE TABLE kept (line INTEGER PRIMARY KEY, id TEXT, hashes BLOB)")
        self._database.execute(
            "CREATE TABLE bands (band INTEGER, line INTEGER, PRIMARY KEY (band, line)) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def find(self, pixels: PixelScores) -> Duplicate | None:
        """The row that this one repeats: of several the one on the first line."""
        hashes, known = _hashes(pixels)
        lines: set[int] = set()
        for band in _bands(hashes, known):
            found = self._database.execute(
                "SELECT line FROM bands WHERE band = ? ORDER BY line LIMIT ?", (band, MAX_PER_BAND)
            )
            lines.update(line for (line,) in found)
        for line in sorted(lines):
            id, blob = self._database.execute("SELECT id, hashes FROM kept WHERE line = ?", (line,)).fetchone()
            other = np.frombuffer(blob, np.uint64)
            if len(other) != 2 * len(hashes):
                continue
            bits = mean_bits(hashes, known, other[: len(hashes)], other[len(hashes) :] > 0)
            if bits is not None and bits <= self.max_bits:
                return Duplicate(line, id, bits)
        return None

    def add(self, line: int, id: str, pixels: PixelScores) -> None:
        """Enters a row that stays."""
        hashes, known = _hashes(pixels)
        if not known.any():
            return
        blob = np.concatenate([hashes, known.astype(np.uint64)]).tobytes()
        self._database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (line, id, blob))
        self._database.executemany(
            "INSERT OR IGNORE INTO bands VALUES (?, ?)", ((band, line) for band in _bands(hashes, known))
        )

    def close(self) -> None:
        """Drops the database."""
        self._database.close()

    def __enter__(self) -> "DuplicateIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mean_bits(
    hashes_a: npt.NDArray[np.uint64],
    known_a: npt.NDArray[np.bool_],
    hashes_b: npt.NDArray[np.uint64],
    known_b: npt.NDArray[np.bool_],
) -> float | None:
    """Mean differing bits a frame where both have a hash; None where fewer than half of the frames do."""
    both = known_a & known_b
    if not both.any() or 2 * both.sum() < len(both):
        return None
    return float(np.bitwise_count(hashes_a[both] ^ hashes_b[both]).mean())


def _hashes(pixels: PixelScores) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    known = np.array([text is not None for text in pixels.hashes], bool)
    return np.array([int(text or "0", 16) for text in pixels.hashes], np.uint64), known


def _bands(hashes: npt.NDArray[np.uint64], known: npt.NDArray[np.bool_]) -> list[int]:
    """One number a frame and band: place, band and its 16 bits."""
    width = 64 // NUM_BANDS
    return [
        (place * NUM_BANDS + band) << width | (int(value) >> (band * width)) & ((1 << width) - 1)
        for place, value in enumerate(hashes.tolist())
        if known[place]
        for band in range(NUM_BANDS)
    ]
