"""Where a medium lies in token runs: by key through each run's index, and the small part of it that a token count needs.

Enters: the folders of token runs. Leaves: places (run, tar, slice), and samples without their pictures. A sample's members stand
in the order pictures, positions, KEY.json, so positions and record are one range read; no picture is read or decoded.
"""

import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.index import INFO_JSON
from ov2_core.storage.reader import StoredSample, open_index


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One sample of a token run."""

    key: str
    run: str
    tar_name: str
    """Below the run."""
    byte_offset: int
    byte_size: int
    text_offset: int
    """Of its first member that is no picture, in the tar; from there to the end stand positions and record."""
    text_parts: tuple[tuple[str, int, int], ...]
    """(member, offset in the tar, size) of positions and record."""


class RunSet:
    """Several token runs as one: the first that has a key holds it. A context manager."""

    def __init__(self, runs: Sequence[str | os.PathLike[str]], storage_options: dict[str, Any] | None = None) -> None:
        """Raises FileNotFoundError for a run without an index."""
        self.stores = [Store(run, storage_options) for run in runs]
        self._open: list[tuple[sqlite3.Connection, Any, list[str]]] = []
        try:
            for store in self.stores:
                db, folder = open_index(store)
                tars = list(json.loads(store.read_bytes(INFO_JSON))["shard_counts"])
                self._open.append((db, folder, tars))
        except BaseException:
            self.close()
            raise

    def find(self, key: str) -> Place | None:
        """Where the sample of this key lies; None where no run has it."""
        for store, (db, _, tars) in zip(self.stores, self._open, strict=True):
            row = db.execute(
                "SELECT tar_file_id, sample_index, byte_offset, byte_size FROM samples WHERE sample_key = ?", (key,)
            ).fetchone()
            if row is None:
                continue
            tar_id, index, offset, size = row
            parts = db.execute(
                "SELECT part_name, content_byte_offset, content_byte_size FROM sample_parts "
                "WHERE tar_file_id = ? AND sample_index = ? ORDER BY content_byte_offset",
                (tar_id, index),
            ).fetchall()
            text = tuple((str(n), int(o), int(s)) for n, o, s in parts if not n.endswith(".jpg"))
            return Place(
                key=key,
                run=store.root,
                tar_name=tars[tar_id],
                byte_offset=offset,
                byte_size=size,
                text_offset=min(o for _, o, _ in text),
                text_parts=text,
            )
        return None

    def close(self) -> None:
        for db, folder, _ in self._open:
            db.close()
            if folder is not None:
                folder.cleanup()
        self._open = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_text_parts(store: Store, place: Place) -> StoredSample:
    """The sample's record and positions; its pictures are not there.

    Raises:
        FileNotFoundError, EOFError: the tar is gone or cut short.
    """
    stop = max(offset + size for _, offset, size in place.text_parts)
    data = store.read_range(place.tar_name, place.text_offset, stop)
    base = place.text_offset
    members = [(name, data[offset - base : offset - base + size]) for name, offset, size in place.text_parts]
    return StoredSample(key=place.key, tar_name=place.tar_name, members=members)


def tar_digests(store: Store) -> dict[str, tuple[str, int]]:
    """{tar name below the run: (sha256, bytes)} of its committed tars."""
    return {
        f"shards/{record.tar_name}": (record.tar_digest, record.tar_bytes)
        for record in iter_commits(store)
        if record.tar_name is not None and record.tar_digest is not None
    }
