"""The Energon index of a run (megatron-energon 7.4.1), written from the commits alone: no tar is read again.

    .nv-meta/dataset.yaml    sample type CrudeWebdataset: a task encoder's cooker receives the decoded members as a dict
    .nv-meta/split.yaml      every tar in "train"
    .nv-meta/index.uuid      uuid5 of the tar digests: the same shards give the same id
    .nv-meta/index.sqlite    place of every sample and member
    .nv-meta/.info.json      samples a tar; written last, its presence makes the folder a dataset to Energon

The same files as `energon prepare --split-ratio 1,0,0 --sample-type CrudeWebdataset` writes for the folder of shards,
except that its uuid is random. RUN itself is the dataset (tars are named "shards/shard-000000.tar"). The offsets
beside each tar (X.tar.idx) are published with the tar (commit.py).
"""

import hashlib
import json
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing

from ov2_core.storage.commit import finish_commits, iter_commits, sidecar_bytes
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store
from ov2_core.storage.layout import INDEX_DIR, sidecar_rel, tar_rel
from schemas.shard import CommitRecord

ENERGON_VERSION = "7.4.1"
INFO_JSON = f"{INDEX_DIR}/.info.json"
INDEX_SQLITE = f"{INDEX_DIR}/index.sqlite"
INDEX_UUID = f"{INDEX_DIR}/index.uuid"
DATASET_YAML = f"{INDEX_DIR}/dataset.yaml"
SPLIT_YAML = f"{INDEX_DIR}/split.yaml"
_NAMESPACE = uuid.UUID("7f7bb0d5-5a42-5c0e-9d2e-4f6a3c1e8b90")

_TABLES = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL,
    sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL,
    byte_offset INTEGER,
    byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER,
    sample_index INTEGER,
    part_name TEXT,
    content_byte_offset INTEGER,
    content_byte_size INTEGER
);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def write_index(store: Store, commits: Mapping[int, CommitRecord] | None = None) -> int:
    """Write or replace the index over all committed shards; returns the number of samples. Repeatable, equal bytes
    each time.

    commits: as load_commits gives them, where at hand; else they are read from the store, a few at a time.

    Raises:
        ValueError: a sample key in two shards (Energon needs them unique).
    """
    failpoint("before_index")
    records = iter_commits(store) if commits is None else (commits[shard] for shard in sorted(commits))
    store.remove(INFO_JSON)  # while the index is rewritten, it is absent rather than stale
    with tempfile.TemporaryDirectory(prefix="ov2-index-") as folder:
        path = os.path.join(folder, "index.sqlite")
        counts, digests = _write_sqlite(path, records)
        store.put_file(path, INDEX_SQLITE, move=True)
    failpoint("mid_index")
    for rel, data in index_texts(counts, digests).items():
        store.write_bytes(rel, data)
    failpoint("after_index")
    return sum(counts.values())


def rebuild_index(store: Store) -> tuple[int, int]:
    """Writes the index and every tar's .idx anew from the commits, whatever stands there; no tar is read.

    Returns (samples, .idx files that were missing or wrong). Commits whose tar was not published yet are finished first.
    """
    num_mended = finish_commits(store)
    for record in iter_commits(store):
        if record.tar_name is not None:
            data, rel = sidecar_bytes(record), sidecar_rel(record.shard)
            try:
                right = store.read_bytes(rel) == data
            except FileNotFoundError:
                right = False
            if not right:
                store.write_bytes(rel, data)
                num_mended += 1
    return write_index(store), num_mended


def index_texts(counts: Mapping[str, int], digests: Iterable[str]) -> dict[str, bytes]:
    """{path below RUN: content} of all index files but the sqlite, .info.json last.

    counts: samples by tar name ("shards/shard-000000.tar") in shard order; digests: the tars' sha256 in the same order.
    """
    index_id = uuid.uuid5(_NAMESPACE, hashlib.sha256("\n".join(digests).encode()).hexdigest())
    train = "".join(f"  - {name}\n" for name in _collapse(list(counts)))
    split = f"split_parts:\n  train:{' []' if not train else ''}\n{train}  val: []\n  test: []\nexclude: []\n"
    info = {"energon_version": ENERGON_VERSION, "shard_counts": dict(counts)}
    return {
        INDEX_UUID: str(index_id).encode(),
        SPLIT_YAML: split.encode(),
        DATASET_YAML: b"__module__: megatron.energon\n__class__: CrudeWebdataset\n",
        INFO_JSON: json.dumps(info, indent=2).encode(),
    }


def _write_sqlite(path: str, records: Iterable[CommitRecord]) -> tuple[dict[str, int], list[str]]:
    counts: dict[str, int] = {}
    digests: list[str] = []
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")  # a temporary: synced when it is put into the store
        db.executescript(_TABLES)
        for record in records:
            if record.tar_name is None or record.tar_digest is None:
                continue
            tar_id = len(counts)
            counts[tar_rel(record.shard)] = len(record.samples)
            digests.append(record.tar_digest)
            try:
                db.executemany(
                    "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                    ((tar_id, s.key, i, s.byte_offset, s.byte_size) for i, s in enumerate(record.samples)),
                )
            except sqlite3.IntegrityError as error:
                raise ValueError(_name_duplicate(db, record)) from error
            db.executemany(
                "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
                (
                    (tar_id, i, part.name, part.content_byte_offset, part.content_byte_size)
                    for i, sample in enumerate(record.samples)
                    for part in sample.parts
                ),
            )
        db.executescript(_INDEXES)
        db.commit()
    return counts, digests


def _name_duplicate(db: sqlite3.Connection, record: CommitRecord) -> str:
    for sample in record.samples:
        row = db.execute("SELECT tar_file_id FROM samples WHERE sample_key = ?", (sample.key,)).fetchone()
        if row is not None:
            return (
                f"shard {record.shard}: sample key {sample.key!r} is used twice (tar {row[0]} of the index has it); "
                "keys are unique in a run: plan again into a new folder"
            )
    return f"shard {record.shard}: a sample key is used twice"


def _collapse(names: list[str]) -> list[str]:
    """Each run of consecutive shards as one brace pattern, "shards/shard-{000000..000009}.tar"."""
    patterns: list[str] = []
    start = 0
    for end in range(1, len(names) + 1):
        if end < len(names) and _follows(names[end - 1], names[end]):
            continue
        if end - start == 1:
            patterns.append(names[start])
        else:
            patterns.append(f"shards/shard-{{{_digits(names[start])}..{_digits(names[end - 1])}}}.tar")
        start = end
    return patterns


def _digits(name: str) -> str:
    return name.removeprefix("shards/shard-").removesuffix(".tar")


def _follows(left: str, right: str) -> bool:
    return len(left) == len(right) and int(_digits(right)) == int(_digits(left)) + 1
