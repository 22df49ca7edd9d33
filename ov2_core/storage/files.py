"""Store: one folder of files on a local disk or any fsspec URL, with the few atomic operations that the commit
protocol needs.

Bytes and relative "a/b/c" paths go in; a file is either absent or complete, never partial:
- local: a temporary beside the target, fsync, then rename (overwrite) or hard link (exclusive create);
- remote: one PUT, or a multipart upload opened with autocommit=False and committed at the end. A plain `with
  fs.open(..., "wb")` would publish what was written before an exception. This holds for object stores (S3, GCS,
  Azure), not for sftp and the like.
Listings are never cached: other processes write to the same folder.
"""

import contextlib
import copy
import errno
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.local_file import LocalFile, read_failed
from ov2_core.storage.retry import is_transient, retry_transient, retry_within
from ov2_core.storage.source import local_path, object_stamp, open_source, source_identity

__all__ = ["Store", "is_transient", "open_source", "retry_transient", "source_identity"]

T = TypeVar("T")
Names = list[str]
Blobs = list[bytes]
COPY_BYTES = 1 << 20
UPLOAD_PART_BYTES = 16 << 20
PROBE_DIR = "attempts/probe"
"""Below attempts: what a probe that was killed leaves is swept with them."""
_OBJECT_STORES = frozenset({"s3", "gs", "az", "abfs", "memory"})
_TEMPORARY_SUFFIX = ".ov2tmp"
MAX_SWEEPS = 4
"""Of temporaries, beside one write of a file."""
_NO_LINK = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


class Store:
    """Files below `root`, a local path or an fsspec URL (s3://bucket/prefix, memory://x).

    Picklable; opens nothing when made.
    """

    def __init__(self, root: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> None:
        self.root = os.fspath(root).rstrip("/") or "/"
        self.storage_options = dict(storage_options or {})
        path = local_path(self.root)
        self.local_root: str | None = None if path is None else os.path.abspath(path)
        """Absolute path for a local store, None for a remote one."""
        self._fs: Any = None
        self._prefix = ""

    def __reduce__(self) -> tuple[object, ...]:
        return Store, (self.root, self.storage_options)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @property
    def is_local(self) -> bool:
        return self.local_root is not None

    def local(self, rel: str) -> str:
        """Absolute path of `rel` in a local store."""
        assert self.local_root is not None, f"{self.root} is not local"
        return os.path.join(self.local_root, *_parts(rel))

    def url(self, rel: str) -> str:
        """Path or URL of `rel`, as a user would write it."""
        return "/".join([self.root.rstrip("/"), *_parts(rel)])

    # Reading

    def read_bytes(self, rel: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        if self.is_local:
            path = self.local(rel)
            with _reading(path), open(path, "rb") as file:
                return file.read()
        data: bytes = self._retry(rel, lambda: self.fs.cat_file(self._remote(rel)))
        return data

    def read_many(self, rels: Sequence[str]) -> Blobs:
        """Several whole files, in the order asked; one batch of parallel requests on a remote store."""
        if self.is_local or len(rels) <= 1:
            return [self.read_bytes(rel) for rel in rels]
        paths = [self._remote(rel) for rel in rels]
        found = self._retry(rels[0], lambda: self.fs.cat(paths))
        return [found[path] for path in paths]

    def open_read(self, rel: str) -> BinaryIO:
        """A seekable binary stream; the caller closes it. Raises FileNotFoundError."""
        if self.is_local:
            return io.BufferedReader(LocalFile(self.local(rel)))
        return cast(
            BinaryIO,
            self._retry(rel, lambda: self.fs.open(self._remote(rel), "rb", block_size=8 << 20, cache_type="readahead")),
        )

    def read_range(self, rel: str, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises FileNotFoundError, EOFError where the file is shorter than `end`, ValueError for no range."""
        if not 0 <= start <= end:
            raise ValueError(f"{self.url(rel)}: {start}..{end} is no range of bytes")
        if start == end:
            return b""
        if self.is_local:
            path = self.local(rel)
            with _reading(path), open(path, "rb") as file:
                there = min(
                    end, os.fstat(file.fileno()).st_size
                )  # memory for what is there, not for what an index claims
                data = b""
                while start + len(data) < there:
                    more = os.pread(file.fileno(), there - start - len(data), start + len(data))
                    if not more:
                        break
                    data = data + more if data else more
        else:
            data = self._retry(rel, lambda: self.fs.cat_file(self._remote(rel), start=start, end=end))
        if len(data) != end - start:
            raise EOFError(f"{self.url(rel)}: asked for bytes {start}..{end}, got {len(data)}: the file is too short")
        return data

    def exists(self, rel: str) -> bool:
        try:
            self.size(rel)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        return True

    def size(self, rel: str) -> int:
        """Bytes of the file. Raises FileNotFoundError, and IsADirectoryError for a folder."""
        if self.is_local:
            path = self.local(rel)
            size = os.stat(path).st_size
            if os.path.isdir(path):
                raise IsADirectoryError(path)
            return size
        info = self._retry(rel, lambda: self.fs.info(self._remote(rel)))
        if info["type"] == "directory":
            raise IsADirectoryError(self.url(rel))
        return int(info["size"])

    def list(self, rel_dir: str = "") -> Names:
        """Sorted names of the files and folders directly in `rel_dir`; empty where it does not exist.

        Temporaries are left out.
        """
        return sorted(name for name, *_ in self._scan(rel_dir))

    def list_sizes(self, rel_dir: str = "") -> dict[str, int]:
        """{name: bytes} of the files directly in `rel_dir`, by one listing."""
        return {name: size for name, size, _ in sorted(self._scan(rel_dir)) if size >= 0}

    def list_stamps(self, rel_dir: str = "") -> dict[str, tuple[int, str]]:
        """{name: (bytes, stamp)} of the files directly in `rel_dir`, by one listing. A file that is written anew gets another
        stamp: an object store's ETag, else the modification time in ns."""
        return {name: (size, stamp) for name, size, stamp in self._scan(rel_dir) if size >= 0}

    def _scan(self, rel_dir: str) -> Iterator[tuple[str, int, str]]:
        """(name, bytes; -1 for a folder, stamp)."""
        if self.is_local:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.local(rel_dir)) as entries:
                for entry in entries:
                    if entry.name.endswith(_TEMPORARY_SUFFIX):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                        found = entry.stat()
                        yield entry.name, -1 if entry.is_dir() else found.st_size, str(found.st_mtime_ns)
            return
        folder = self._remote(rel_dir)
        try:
            infos = self._retry(rel_dir, lambda: self.fs.ls(folder, detail=True))
        except FileNotFoundError:
            return
        for info in infos:
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if info["name"].strip("/") != folder.strip("/"):  # some stores hold a marker object for the folder itself
                yield name, -1 if info["type"] == "directory" else int(info["size"]), object_stamp(info)

    # Writing

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Create or replace the file atomically."""
        if self.is_local:
            self._replace_local(rel, lambda file: file.write(data))
        else:
            self._make_folder(rel)
            self._retry(rel, lambda: self.fs.pipe_file(self._remote(rel), data))

    def create_bytes(self, rel: str, data: bytes) -> bool:
        """Create the file if it does not exist: True if this call created it, False if it was there. Never
        half-written.

        Local: a complete temporary is hard-linked to the name. S3: a conditional PUT (If-None-Match: *); a request
        that took effect although its answer was lost is repeated and then says False, so a caller who must know
        compares the content with its own. Other fsspec file systems: mode="create", which gcsfs makes atomic too;
        where a file system only checks for existence before it writes (memory://, sftp), two writers at the same
        instant may both be told True: use one writer. require_exclusive_creation() finds servers that do not even do that.
        """
        if not self.is_local:
            self._make_folder(rel)
            return self._retry(rel, lambda: self._create_remote(rel, data))
        target = self.local(rel)
        if os.path.lexists(target):
            return False
        try:
            self._place_local(target, lambda temporary: _write_new(temporary, lambda file: file.write(data)), os.link)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            raise OSError(
                error.errno,
                f"{target}: this file system has no hard links, which exclusive creation needs; use another --out",
            ) from error
        return True

    def require_exclusive_creation(self) -> None:
        """Tries create_bytes on a remote store with a file of its own: three small requests.

        Raises:
            ValueError: what is there was replaced: the server ignores If-None-Match, so commits would not be exclusive.
        """
        if self.is_local:
            return
        rel = f"{PROBE_DIR}/{uuid.uuid4().hex}"
        self.create_bytes(rel, b"first")
        replaced = self.create_bytes(rel, b"second")
        self.remove(rel)
        if replaced:
            raise ValueError(
                f"{self.root}: this storage replaced a file that was to be created only if absent (it ignores "
                "If-None-Match: *), so of two writers both would win; use another storage or a newer version of its server"
            )

    def _create_remote(self, rel: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self._remote(rel), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs gives FileExistsError only where the server names the condition, else EINVAL (412 by another server).
            if error.errno == errno.EINVAL and not is_transient(error) and self.exists(rel):
                return False
            raise
        return True

    def put_file(self, local: str | os.PathLike[str], rel: str, *, move: bool = False) -> None:
        """Copy a local file to `rel`, atomically replacing what is there; a large one is streamed.

        move: the local file is no longer needed. It is removed, and on the same disk renamed instead of copied.
        """
        if not self.is_local:
            self._retry(rel, lambda: self._upload(local, rel))
        elif move:
            target = self.local(rel)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(local, "rb") as file:
                os.fsync(file.fileno())
            try:
                os.replace(local, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self.put_file(local, rel)
            else:
                _sync_dir(os.path.dirname(target))
        else:
            self._replace_local(rel, lambda file: _copy_into(local, file))
        if move:
            _unlink(os.fspath(local))

    def _upload(self, local: str | os.PathLike[str], rel: str) -> None:
        self._make_folder(rel)
        with open(local, "rb") as source:
            target = self.fs.open(self._remote(rel), "wb", autocommit=False, block_size=UPLOAD_PART_BYTES)
            try:
                shutil.copyfileobj(source, target, COPY_BYTES)
                target.close()
            except BaseException:
                with contextlib.suppress(Exception):
                    target.discard()
                with contextlib.suppress(Exception):
                    target.closed = True  # else the collector would flush what is left of it
                raise
            try:
                target.commit()
            except (
                FileNotFoundError
            ) as error:  # of the upload: completed by a request whose answer was lost, or aborted
                raise ConnectionError(f"{self.url(rel)}: whether its upload was completed is unknown") from error

    def publish(self, src_rel: str, dst_rel: str) -> None:
        """Make the complete file `src_rel` appear as `dst_rel` too, replacing it. May be repeated. Raises
        FileNotFoundError.

        A hard link (else a copy) and a rename locally; a copy inside the store remotely: no byte passes through this
        machine.
        """
        if not self.is_local:
            self._make_folder(dst_rel)
            self._retry(src_rel, lambda: self.fs.cp_file(self._remote(src_rel), self._remote(dst_rel)))
            return
        source, target = self.local(src_rel), self.local(dst_rel)
        try:
            self._place_local(target, lambda temporary: os.link(source, temporary), os.replace)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._replace_local(dst_rel, lambda file: _copy_into(source, file))

    def copy_from(self, other: "Store", src_rel: str, dst_rel: str) -> None:
        """A file of another store as `dst_rel` of this one, atomically replacing what is there. Raises FileNotFoundError.

        Inside one object store a copy by the server, on one disk a hard link: published files are never written into.
        """
        if self.is_local and other.is_local:
            Store("/").publish(other.local(src_rel).lstrip("/"), self.local(dst_rel).lstrip("/"))
        elif other.is_local:
            self.put_file(other.local(src_rel), dst_rel)
        elif not self.is_local and self.fs == other.fs:
            self._make_folder(dst_rel)
            self._retry(dst_rel, lambda: self.fs.cp_file(other._remote(src_rel), self._remote(dst_rel)))
        else:
            with tempfile.TemporaryDirectory(prefix="ov2-copy-") as folder:
                path = os.path.join(folder, "file")
                with other.open_read(src_rel) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target, COPY_BYTES)
                self.put_file(path, dst_rel, move=True)

    def remove(self, rel: str, *, missing_ok: bool = True) -> None:
        """Remove one file. Raises FileNotFoundError unless missing_ok."""
        try:
            if self.is_local:
                os.unlink(self.local(rel))
            else:
                if not missing_ok and not self.exists(rel):  # S3 deletes what is not there without a word
                    raise FileNotFoundError(self.url(rel))
                self._retry(rel, lambda: self.fs.rm_file(self._remote(rel)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_empty_dirs(self, rel_dir: str) -> None:
        """Remove the empty folders directly in `rel_dir`, and itself if then empty.

        Object stores have none: does nothing.
        """
        if self.is_local:
            for name in [*self.list(rel_dir), ""]:
                with contextlib.suppress(OSError):
                    os.rmdir(self.local(f"{rel_dir}/{name}" if name else rel_dir))

    def remove_temporaries(self, rel_dir: str) -> int:
        """Remove what killed writers left half-written directly in a local `rel_dir`. A late writer makes its own again."""
        count = 0
        if self.is_local:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(self.local(rel_dir)):
                    if name.endswith(_TEMPORARY_SUFFIX):
                        _unlink(os.path.join(self.local(rel_dir), name))
                        count += 1
        return count

    # Inside

    @property
    def fs(self) -> Any:
        """The fsspec file system of a remote store."""
        if self._fs is None:
            # Copied: s3fs writes into what it is given, and stores of equal options shall share one file system.
            options = {"use_listings_cache": False, **copy.deepcopy(self.storage_options)}
            self._fs, self._prefix = fsspec.core.url_to_fs(self.root, **options)
            retry_within(self._fs)
        return self._fs

    def _remote(self, rel: str) -> str:
        assert self.fs is not None
        return "/".join([self._prefix.rstrip("/"), *_parts(rel)])

    def _make_folder(self, rel: str) -> None:
        """Object stores have no folders; asking s3fs for one costs a request, or makes a bucket."""
        if _OBJECT_STORES.isdisjoint([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol):
            self.fs.makedirs(self.fs._parent(self._remote(rel)), exist_ok=True)

    def _retry(self, rel: str, fn: Callable[[], T]) -> T:
        """Errors that outlast all attempts name the file: ConnectionError where the same call may succeed later."""
        try:
            return retry_transient(fn)
        except PermissionError as error:
            raise PermissionError(
                f"{self.url(rel)}: access denied ({error}); may these credentials read and write there?"
            ) from error
        except Exception as error:
            if not is_transient(error):
                raise
            raise ConnectionError(
                f"{self.url(rel)}: the storage still fails after all attempts ({error}); once it answers, the same command "
                "goes on from here"
            ) from error

    def _temporary(self, target: str) -> str:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        return os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")

    def _replace_local(self, rel: str, write: Callable[[BinaryIO], object]) -> None:
        self._place_local(self.local(rel), lambda temporary: _write_new(temporary, write), os.replace)

    def _place_local(self, target: str, make: Callable[[str], object], place: Callable[[str, str], object]) -> None:
        """`target` appears at once and whole: `make` makes it under another name, `place` gives it its own.

        Who ends a run sweeps temporaries away, a late writer's among them: what is gone when it is to be placed is made again.
        """
        for num_sweeps in range(MAX_SWEEPS + 1):
            temporary = self._temporary(target)
            try:
                make(temporary)
                place(temporary, target)
                break
            except FileNotFoundError:
                if num_sweeps == MAX_SWEEPS:
                    raise
            finally:
                _unlink(temporary)  # rename(2) leaves it where both names are one file already
        _sync_dir(os.path.dirname(target))


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """A fault of the machine rises as ReadFailedError, which is transient."""
    try:
        yield
    except OSError as error:
        raise read_failed(path, error) from error


def _parts(rel: str) -> Names:
    """Raises ValueError for a path that could lead out of the store, whoever wrote it into a record or an index."""
    parts = [part for part in rel.split("/") if part]
    if rel.startswith("/") or ".." in parts or "\0" in rel:
        raise ValueError(f"{rel!r} is no path below a run")
    return parts


def _write_new(path: str, write: Callable[[BinaryIO], object]) -> None:
    with open(path, "xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    failpoint("mid_write")


def _copy_into(path: str | os.PathLike[str], file: BinaryIO) -> None:
    with open(path, "rb") as source:
        shutil.copyfileobj(source, file, COPY_BYTES)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _sync_dir(path: str) -> None:
    """Make a rename or link survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
