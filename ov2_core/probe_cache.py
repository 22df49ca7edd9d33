"""Probes that are remembered over plans: a corpus planned again by another recipe, or grown, is not demuxed again.

Enters: a row to probe, a folder on this machine's own disk. Leaves: what `make_probe` leaves. The key is what the content is
known by, not where it lies: of an object its size, ETag and URI; of a local file its size, modification time and a digest of its
first and last 64 KiB, so that a copy with kept times is known, and other bytes under an old time are not. With it go the row's
range, the limit on pixels, whether a filter wants pixels looked at, and the version of the code that probes. Only probes that
succeeded are kept; folders of frames are not. One SQLite file, written by all workers of a machine: keep it off network file
systems, whose locks it cannot trust. A cache that fails costs its use and a warning, never a row.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import sqlite3
from dataclasses import dataclass

from ov2_core.config import RunConfig
from ov2_core.data.messages import to_messages
from ov2_core.errors import BadItemError
from ov2_core.make_sample import ProbeOutcome, ProbeTask, make_probe, planned_row
from ov2_core.storage.source import local_path, open_source, source_identity
from schemas.shard import PlannedRow
from schemas.video import PixelScores, ProbeRecord, SourceIdentity

log = logging.getLogger(__name__)
FILE_NAME = "probes.sqlite"
END_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class CachedProbe:
    """`make_probe`, remembered in a folder. Picklable; each process opens the file once."""

    folder: str
    version: str
    """Of the code and libraries that probe."""

    def __call__(self, task: ProbeTask, config: RunConfig) -> ProbeOutcome:
        """As make_probe; a row that would fall there falls there."""
        known: tuple[SourceIdentity, bytes] | None = None
        if task.row.frames_fps is None:
            with contextlib.suppress(BadItemError, OSError):  # make_probe says what is wrong
                to_messages(task.row, config.text)
                known = (identity := source_identity(task.uri)), self._key(task, identity, config)
        if known is None:
            return make_probe(task, config)
        identity, key = known
        found = self._get(key)
        if found is not None:
            return ProbeOutcome(line=task.line, planned=planned_row(task, identity, *found, config))
        outcome = make_probe(task, config)
        if outcome.planned is not None and outcome.planned.identity == identity:
            self._put(key, outcome.planned)
        return outcome

    def _key(self, task: ProbeTask, identity: SourceIdentity, config: RunConfig) -> bytes:
        row = task.row
        path = local_path(task.uri)
        content = [task.uri] if path is None else [_ends(task.uri, identity.size_bytes)]
        known_by = [identity.size_bytes, identity.stamp, *content]
        asked = [
            row.image is None,
            row.start,
            row.end,
            config.tokenizer.max_source_px,
            config.filter.needs_pixels,
            self.version,
        ]
        return hashlib.sha256(json.dumps([known_by, asked]).encode()).digest()

    def _get(self, key: bytes) -> tuple[ProbeRecord, PixelScores | None] | None:
        try:
            row = _database(self.folder).execute("SELECT probe, pixels FROM probes WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            pixels = None if row[1] is None else PixelScores.model_validate_json(row[1])
            return ProbeRecord.model_validate_json(row[0]), pixels
        except (sqlite3.Error, ValueError) as error:
            _complain(self.folder, str(error))
            return None

    def _put(self, key: bytes, planned: PlannedRow) -> None:
        pixels = None if planned.pixels is None else planned.pixels.model_dump_json()
        values = (key, planned.probe.model_dump_json(), pixels)
        try:
            _database(self.folder).execute("INSERT OR REPLACE INTO probes VALUES (?, ?, ?)", values)
        except sqlite3.Error as error:
            _complain(self.folder, str(error))


def _ends(uri: str, size_bytes: int) -> str:
    path = open_source(uri)
    assert isinstance(path, str)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(END_BYTES))
        file.seek(max(END_BYTES, size_bytes - END_BYTES))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()


@functools.cache
def _database(folder: str) -> sqlite3.Connection:
    os.makedirs(folder, exist_ok=True)
    database = sqlite3.connect(os.path.join(folder, FILE_NAME), isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE IF NOT EXISTS probes (key BLOB PRIMARY KEY, probe TEXT, pixels TEXT) WITHOUT ROWID")
    return database


@functools.cache
def _complain(folder: str, message: str) -> None:
    log.warning("the probe cache in %s is not used: %s; remove it to begin anew", folder, message)
