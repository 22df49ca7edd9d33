"""Tensors of a folder in the Hub's layout, without a model: headers, reading, comparing, writing shards.

Enters: a folder with model.safetensors, or shards and model.safetensors.index.json. Leaves: entries (file, shape, dtype) by name,
tensors, differences, written files. Headers are enough to check a folder. Only safetensors and JSON are read: nothing is ever
unpickled.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SHARD_BYTES = 5 * 10**9
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A tensor of a folder, as its file's header tells it."""

    file: Path
    shape: Shape
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """How the tensors of a folder differ from those that its config asks for; each entry names one tensor."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshapen)

    def text(self, *, limit: int = 40) -> str:
        """A line for each tensor."""
        lines = [
            *(f"  missing: {name}" for name in self.missing),
            *(f"  extra: {name}" for name in self.extra),
            *(f"  misshapen: {text}" for text in self.misshapen),
        ]
        more = [f"  ... and {len(lines) - limit} more"] if len(lines) > limit else []
        return "\n".join([*lines[:limit], *more])


def read_entries(directory: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """All tensors of a folder by name, from headers alone.

    Raises:
        ValueError: no safetensors, or an index that its files contradict.
    """
    root = Path(directory)
    index = root / INDEX_NAME
    if index.exists():
        wanted: dict[str, str] = read_json(index)["weight_map"]
        files = sorted({root / name for name in wanted.values()})
    else:
        wanted, files = {}, [root / SINGLE_NAME]
    if not all(file.is_file() for file in files):
        absent = [file.name for file in files if not file.is_file()]
        others = sorted(p.name for p in root.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        hint = (
            f" ({', '.join(others[:3])} would have to be unpickled and is not read; convert it first)" if others else ""
        )
        raise ValueError(f"{root} lacks {', '.join(absent[:5])}{hint}")
    entries = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                part = tensors.get_slice(name)
                entries[name] = TensorEntry(file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype())
    lost = sorted(name for name, file in wanted.items() if name not in entries or entries[name].file != root / file)
    if lost:
        raise ValueError(f"{index} places tensors where they are not: {', '.join(lost[:5])} ({len(lost)} in all)")
    return entries


def read_tensors(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of entries, file by file."""
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                yield name, tensors.get_tensor(name)


def compare(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> Differences:
    """Differences between shapes by name."""
    return Differences(
        missing=tuple(sorted(set(wanted) - set(found))),
        extra=tuple(sorted(set(found) - set(wanted))),
        misshapen=tuple(
            f"{name} is {list(found[name])}, must be {list(shape)}"
            for name, shape in sorted(wanted.items())
            if name in found and found[name] != shape
        ),
    )


def write_shards(sizes: Mapping[str, int], read: Callable[[str], Tensor], root: Path, shard_bytes: int) -> list[Path]:
    """Greedy shards in the order of the names given; one shard in memory at a time."""
    root.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    total, written, places = len(shards), [], {}
    for i, names in enumerate(shards, start=1):
        file = root / (SINGLE_NAME if total == 1 else f"model-{i:05d}-of-{total:05d}.safetensors")
        partial = file.with_suffix(".partial")
        save_file({name: read(name).detach().cpu().contiguous() for name in names}, partial, metadata={"format": "pt"})
        partial.chmod(0o666 & ~_umask())  # safetensors makes files for their owner alone
        partial.replace(file)
        written.append(file)
        places.update(dict.fromkeys(names, file.name))
    if total > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        partial = (root / INDEX_NAME).with_suffix(".partial")
        partial.write_text(json.dumps(index, indent=2) + "\n")
        partial.replace(root / INDEX_NAME)
        written.append(root / INDEX_NAME)
    return written


def _umask() -> int:
    """Of this process, which can only be asked by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; a checkpoint folder holds config.json and safetensors") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value
