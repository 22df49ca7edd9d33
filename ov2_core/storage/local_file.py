"""A local file whose reads tell the machine's faults from the file's.

A mount that is away for a moment (FUSE, NFS, a failing disk) answers EIO or ENOTCONN. FFmpeg and Pillow take that for the
file's end, and an innocent video would be committed as `truncated` or quarantined as `not_media`. So they read through this:
what the operating system refuses rises as ReadFailedError, which is transient, and the row is tried again, elsewhere if it can be.
"""

import errno
import io
import os
from typing import Any

_ANSWERS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EILSEQ,
        errno.ENXIO,
    }
)
"""What a file system says of a path. Every other error (EIO, ENOTCONN, ESTALE, EMFILE, ENOMEM, ...) is said of itself."""


class ReadFailedError(ConnectionError):
    """This machine cannot read a local file now; another try, or another machine, may."""


def read_failed(path: str, error: OSError) -> OSError:
    """The error as what it is: ReadFailedError for a fault of the machine, itself where it is the file system's answer."""
    if error.errno in _ANSWERS or error.errno is None:
        return error
    name = errno.errorcode.get(error.errno, str(error.errno))
    return ReadFailedError(
        f"{path}: this machine cannot read it ({name}: {error.strerror}); is its disk or mount well?"
    )


def fault_behind(error: BaseException) -> ReadFailedError | None:
    """The fault of the machine for which a reader raised what it raised; None: the file is to blame, or the reader.

    Errors of libraries with error numbers of their own (FFmpeg's) tell nothing of the machine.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in errno.errorcode and not _of_ffmpeg(behind):
            found = read_failed(str(behind.filename or "a file"), behind)
            if isinstance(found, ReadFailedError):
                return found
        behind = behind.__cause__ or behind.__context__
    return None


def _of_ffmpeg(error: OSError) -> bool:
    return type(error).__module__.startswith("av.")


class LocalFile(io.FileIO):
    """A regular file, for reading.

    Raises:
        ReadFailedError: a fault of the machine.
        OSError: from the constructor, what the file system answers: FileNotFoundError, PermissionError, IsADirectoryError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self.fault: ReadFailedError | None = None
        """What the first read that failed has raised."""
        try:
            super().__init__(self._path, "r")
        except OSError as error:
            raise read_failed(self._path, error) from error

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes; b"" at the end.

        A fault is raised once: FFmpeg reads on before PyAV passes it on, and PyAV would complain of the second.
        """
        if self.fault is not None:
            return b""
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            raise self._noted(error) from error

    def readinto(self, buffer: Any, /) -> int:
        """Bytes that were put into the buffer; 0 at the end."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise self._noted(error) from error

    def readall(self) -> bytes:
        """What is left of the file."""
        try:
            return super().readall()
        except OSError as error:
            raise self._noted(error) from error

    def _noted(self, error: OSError) -> ReadFailedError:
        if self.fault is None:
            self.fault = ReadFailedError(str(read_failed(self._path, error)))
        return self.fault
