"""What a stage recipe says, and what a sources file says: frozen configs, validated when made.

Enters: YAML text. Leaves: sources bound to the recipe's slots. A slot is one line of a published recipe: its size, which
importers fill it, and how its media must have been tokenized.
"""

import dataclasses
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ov2_core.data.mixture import Share
from ov2_core.data.packing import PackingConfig
from ov2_core.storage.files import Store
from ov2_core.storage.source import local_path

_NAME = re.compile(r"\w[\w.+-]{0,99}")
_FIELDS = ("name", "slot", "importer", "path", "weight", "count", "shards")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One line of a recipe."""

    name: str
    importers: tuple[str, ...]
    """Those that usually fill it; any other may be named in the sources file."""
    published_count: int | None
    """Samples in the published mixture: the weight of a source that gives none. None: not published, a weight is needed."""
    video_modes: tuple[str, ...] = ("uniform",)
    """How its videos may have been tokenized: uniform, codec."""
    max_images: int = 384
    """Frames or canvases of one video."""
    tokenize_recipe: str = "uniform-auto"
    """`ov2 tokenize --recipe` for its videos."""

    def __post_init__(self) -> None:
        if not set(self.video_modes) <= {"uniform", "codec"} or self.max_images < 1:
            raise ValueError(f"slot {self.name!r}: video_modes are uniform and codec, max_images >= 1, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """A whole stage recipe."""

    name: str
    version: int
    """Counts up with every change that gives another stage from the same sources."""
    slots: tuple[Slot, ...]
    sequence_length: int
    max_samples: int = 200
    window_samples: int = 16384
    full_enough: float = 0.99
    still_area_px: int = 392 * 392
    """Of stills that lie in no token run and are made here."""
    cut_rounds: bool = True
    """Trailing rounds are cut where a sample would not fit; else it is dropped."""
    packs_per_block: int = 64
    """A row group of the index: what a reader fetches at once."""

    def __post_init__(self) -> None:
        names = [slot.name for slot in self.slots]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"recipe {self.name!r}: slots must have names of their own, got {names}")
        if self.packs_per_block < 1 or self.still_area_px < 28 * 28:
            raise ValueError(f"recipe {self.name!r}: packs_per_block >= 1 and still_area_px >= 784, got {self}")
        self.packing()

    def packing(self) -> PackingConfig:
        """Raises ValueError for limits that pack nothing."""
        return PackingConfig(
            sequence_length=self.sequence_length,
            max_samples=self.max_samples,
            window_samples=self.window_samples,
            full_enough=self.full_enough,
        )

    def slot(self, name: str) -> Slot:
        """Raises ValueError for an unknown name; the message lists them."""
        for slot in self.slots:
            if slot.name == name:
                return slot
        raise ValueError(f"recipe {self.name!r} has no slot {name!r}; it has {', '.join(s.name for s in self.slots)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """One entry of the sources file, bound to its slot."""

    name: str
    slot: Slot
    importer: str
    path: str
    share: Share
    asked_weight: float | None
    asked_count: int | None
    shards: tuple[str, ...] = ()
    """Token runs that hold its media, by key; the first that has a key gives it."""
    options: dict[str, Any] = field(default_factory=dict)
    """The importer's own."""


def with_settings(config: StageConfig, settings: Sequence[str]) -> StageConfig:
    """A copy with whole-number or true/false fields set from "key=value" texts. Raises ValueError naming the fields."""
    for text in settings:
        name, equals, value = text.partition("=")
        current = getattr(config, name, None) if equals else None
        if name in ("name", "version", "slots") or not isinstance(current, int | float):
            known = [f.name for f in dataclasses.fields(config) if f.name not in ("name", "version", "slots")]
            raise ValueError(f"--set expects key=value with a key of {', '.join(known)}, got {text!r}")
        try:
            parsed: Any = {"true": True, "false": False}[value] if isinstance(current, bool) else type(current)(value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {name}: expected {type(current).__name__}, got {value!r}") from None
        config = dataclasses.replace(config, **{name: parsed})
    return config


def load_sources(path: str, config: StageConfig) -> list[SourceSpec]:
    """The sources file at a path or URL; relative paths in it are relative to its folder.

    Raises:
        ValueError: not YAML of the form `sources: [{name, importer, path, ...}]`, or an entry that fits no slot.
        FileNotFoundError: no such file.
    """
    folder, name = posixpath.split(path)
    data = Store(folder or ".").read_bytes(name)
    try:
        loaded = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(loaded, dict) or set(loaded) != {"sources"} or not isinstance(loaded["sources"], list):
        raise ValueError(f"{path}: expected `sources:` with a list of {{name, importer, path, weight or count}} alone")
    specs = [_spec(f"{path}: sources[{i}]", item, folder, config) for i, item in enumerate(loaded["sources"])]
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) < len(names):
        raise ValueError(f"{path}: at least one source, each with a name of its own, got {names}")
    return specs


def _spec(where: str, item: Any, folder: str, config: StageConfig) -> SourceSpec:
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("name", "path")):
        raise ValueError(f"{where}: expected {{name, importer, path, ...}} with texts, got {item!r:.200}")
    name = item["name"]
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: a name is a file name too: 1 to 100 letters, digits, and ._+- inside, got {name!r:.120}"
        )
    slot = config.slot(str(item.get("slot", name)))
    importer = item.get("importer", slot.importers[0] if len(slot.importers) == 1 else None)
    if not isinstance(importer, str):
        raise ValueError(
            f"{where} ({name}): give an importer; the slot is usually filled by {', '.join(slot.importers)}"
        )
    weight, count, shards = item.get("weight"), item.get("count"), item.get("shards", [])
    for key, value, kinds in (("weight", weight, (int, float)), ("count", count, (int,))):
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(f"{where} ({name}): {key} must be a number, got {value!r}")
    shards = [shards] if isinstance(shards, str) else shards
    if not isinstance(shards, list) or not all(isinstance(run, str) for run in shards):
        raise ValueError(f"{where} ({name}): shards must be a token run or a list of them, got {shards!r}")
    if weight is None and count is None and slot.published_count is None:
        raise ValueError(f"{where} ({name}): the size of this slot is not published; give a weight or a count")
    published = float(slot.published_count) if slot.published_count is not None and count is None else None
    return SourceSpec(
        name=name,
        slot=slot,
        importer=importer,
        path=_resolve(item["path"], folder),
        share=Share(name=name, weight=weight if weight is not None else published, count=count),
        asked_weight=weight,
        asked_count=count,
        shards=tuple(_resolve(run, folder) for run in shards),
        options={
            key: _resolve(value, folder) if key in ("mapping", "media_root") and isinstance(value, str) else value
            for key, value in item.items()
            if key not in _FIELDS
        },
    )


def _resolve(path: str, folder: str) -> str:
    """An absolute path or URL."""
    if local_path(path) is None or os.path.isabs(path):
        return path
    if local_path(folder or ".") is None:
        return f"{folder}/{path}"
    return os.path.abspath(os.path.join(folder or ".", path))
