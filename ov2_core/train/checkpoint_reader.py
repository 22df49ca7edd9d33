"""Reads torch's distributed checkpoints without running anything of them.

Enters: a checkpoint's folder. Leaves: names and shapes of its tensors; tensors, filled in place. DCP keeps its table of contents as
a pickle, which torch opens with all of Python at its service; here only the classes of such a table are let in, and entries that
are no tensors (pickles again) are refused, so a checkpoint of somebody else can be looked at.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

TABLE = ".metadata"
_KNOWN: dict[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict"}),
    "pathlib": frozenset({"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"}),
    "torch": frozenset(
        {"Size", "float64", "float32", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "int64", "bool"}
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.serialization": frozenset({"_get_layout"}),
}


def read_table(path: Path) -> Metadata:
    """A checkpoint's table of contents.

    Raises:
        ValueError: there is none, or it holds what no checkpoint of tensors holds.
    """
    try:
        with (path / TABLE).open("rb") as file:
            table = _TableUnpickler(file).load()
    except FileNotFoundError:
        raise ValueError(f"{path} is no checkpoint: it has no {TABLE}") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{path / TABLE} is no table of a checkpoint of tensors: {error}") from error
    if not isinstance(table, Metadata):
        raise ValueError(f"{path / TABLE} is no table of a checkpoint of tensors")
    for name, entry in table.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{path / TABLE}: {name} is no tensor")
    return table


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by name. Raises ValueError, see read_table."""
    return {name: tuple(entry.size) for name, entry in read_table(path).state_dict_metadata.items()}  # type: ignore[union-attr]


def fill(tensors: Mapping[str, Tensor], path: Path, *, alone: bool = False) -> None:
    """Reads a checkpoint into tensors, which may be sharded and of another dtype.

    Args:
        alone: this process reads by itself; else all ranks call this with their shards.

    Raises:
        ValueError: the table cannot be read; a tensor is missing, has another shape, or cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what `alone` asks for
            load(dict(tensors), storage_reader=_Reader(path), no_dist=alone)
    except CheckpointException as error:  # a BaseException
        raise ValueError(f"{path} cannot be read: {causes(error)}") from error


def causes(error: BaseException) -> str:
    """What went wrong, on whichever ranks, without DCP's tracebacks."""
    if not isinstance(error, CheckpointException):
        return f"{type(error).__name__}: {error}"
    found = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
    return "; ".join(sorted(found))


class _Reader(FileSystemReader):
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        table = read_table(Path(self.path))
        table.storage_meta = table.storage_meta or StorageMeta()
        table.storage_meta.load_id = self.load_id
        return table


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(module)
        if known is None or name not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)
