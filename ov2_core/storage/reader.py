"""Reading a run back: by key through the index (one range read a sample), or as a stream over the committed tars.

Only what is committed is read. Images are decoded when asked for, since a long video's sample decodes to hundreds of
MB.
"""

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import fsspec
import numpy as np
import numpy.typing as npt

from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.index import INDEX_SQLITE, INFO_JSON
from ov2_core.storage.layout import tar_rel
from ov2_core.storage.source import local_path
from ov2_core.storage.writer import Member, decode_jpeg, decode_npy, decode_record, iter_tar_members
from schemas.tokens import SampleRecord


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One sample as it lies in its tar."""

    key: str
    tar_name: str
    """"shards/shard-000000.tar", or the path that was iterated."""
    members: list[Member] = field(repr=False)

    @cached_property
    def record(self) -> SampleRecord:
        return decode_record(dict(self.members))

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Image `index`, RGB [H, W, 3]."""
        name = self.record.image_keys[index]
        return decode_jpeg(self.member(name), name=f"{self.key}.{name}")

    @property
    def images_NHW3(self) -> npt.NDArray[np.uint8]:
        """All images, decoded anew at each use."""
        return np.stack([self.image(i) for i in range(len(self.record.image_keys))])

    @property
    def positions_NP3(self) -> npt.NDArray[np.int32]:
        """(t, h, w) of every patch."""
        names = self.record.patch_positions_keys
        return np.stack([decode_npy(self.member(name), name=f"{self.key}.{name}") for name in names])

    def member(self, name: str) -> bytes:
        """Content of one member. Raises KeyError."""
        for member_name, data in self.members:
            if member_name == name:
                return data
        raise KeyError(f"{self.key} has no member {name!r}")


class ShardReader:
    """The committed samples of a run. A context manager; a remote index is copied to a temporary file once."""

    def __init__(self, root: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> None:
        """Raises FileNotFoundError where the run has no index."""
        self.store = Store(root, storage_options)
        self._db, self._folder = open_index(self.store)
        try:
            self._tars = list(dict(json.loads(self.store.read_bytes(INFO_JSON))["shard_counts"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.close()
            raise self._damaged(f"{INFO_JSON}: {type(error).__name__}: {error}") from error

    def keys(self) -> list[str]:
        """Sample keys in the order of shards. This and all below: ValueError for a damaged index."""
        return [str(key) for (key,) in self._rows("SELECT sample_key FROM samples ORDER BY tar_file_id, sample_index")]

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM samples")[0][0])

    def __contains__(self, key: object) -> bool:
        return bool(self._rows("SELECT 1 FROM samples WHERE sample_key = ?", (key,)))

    def read(self, key: str) -> StoredSample:
        """One sample by one range read. Raises KeyError for an unknown key."""
        found = self._rows(
            "SELECT tar_file_id, sample_index, byte_offset, byte_size FROM samples WHERE sample_key = ?", (key,)
        )
        if not found:
            raise KeyError(f"no sample {key!r} in {self.store.root}; its keys are listed by keys()")
        tar_id, index, offset, size = found[0]
        parts = self._rows(
            "SELECT part_name, content_byte_offset, content_byte_size FROM sample_parts "
            "WHERE tar_file_id = ? AND sample_index = ? ORDER BY content_byte_offset",
            (tar_id, index),
        )
        numbers = [tar_id, offset, size, *(number for _, start, length in parts for number in (start, length))]
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or tar_id >= len(self._tars):
            raise self._damaged(f"the place of sample {key!r} is no place")
        if any(start < offset or start + length > offset + size for _, start, length in parts):
            raise self._damaged(f"members of sample {key!r} lie outside it")
        data = self.store.read_range(self._tars[tar_id], offset, offset + size)
        members = [(name, data[start - offset : start - offset + length]) for name, start, length in parts]
        return StoredSample(key=key, tar_name=self._tars[tar_id], members=members)

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise self._damaged(f"{INDEX_SQLITE}: {error}") from error

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"the index of {self.store.root} is damaged ({what}): run `ov2 tokenize` on it again, which writes it anew"
        )

    def __iter__(self) -> Iterator[StoredSample]:
        """Every committed sample, tar after tar, each read as a stream."""
        for record in iter_commits(self.store):
            if record.tar_name is not None:
                name = tar_rel(record.shard)
                with self.store.open_read(name) as file:
                    yield from _iter_stream(file, name)

    def close(self) -> None:
        self._db.close()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def iter_tar(path: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> Iterator[StoredSample]:
    """The samples of one tar at a path or URL, without index or commit. Raises ValueError for a tar that is damaged."""
    uri = os.fspath(path)
    local = local_path(uri)
    with fsspec.open(local if local is not None else uri, "rb", **(storage_options or {})) as file:
        yield from _iter_stream(cast(BinaryIO, file), uri)


def open_index(store: Store) -> tuple[sqlite3.Connection, tempfile.TemporaryDirectory[str] | None]:
    """The run's index.sqlite, read-only, and the folder of its temporary copy (remote stores), which the caller cleans
    up.

    Raises FileNotFoundError where the index is absent or was being rewritten when its process died.
    """
    if not (store.exists(INFO_JSON) and store.exists(INDEX_SQLITE)):
        raise FileNotFoundError(
            f"{store.root} has no index ({INFO_JSON}): run `ov2 tokenize` on it again, which finishes it"
        )
    folder = None
    if store.is_local:
        path = store.local(INDEX_SQLITE)
    else:
        folder = tempfile.TemporaryDirectory(prefix="ov2-index-")
        path = os.path.join(folder.name, "index.sqlite")
        with store.open_read(INDEX_SQLITE) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(f"file:{quoted}?mode=ro&immutable=1", uri=True, check_same_thread=False), folder


def _iter_stream(file: BinaryIO, tar_name: str) -> Iterator[StoredSample]:
    key: str | None = None
    members: list[Member] = []
    for member_key, part, data in iter_tar_members(file):
        if member_key != key:
            if key is not None:
                yield StoredSample(key=key, tar_name=tar_name, members=members)
            key, members = member_key, []
        members.append((part.name, data))
    if key is not None:
        yield StoredSample(key=key, tar_name=tar_name, members=members)
