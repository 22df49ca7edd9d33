"""Reading features back, for a trainer that takes them in place of pixels.

    with FeatureReader("RUN2") as reader:
        sample = reader.read("clip-7")
        model(input_ids, **sample.model_inputs())

Enters: a feature run. Leaves: features [T, D], the place of each row, the record. The run is checked once, on opening: a model
with another encoder than the one that made the features is refused where its digest is given.

Shape letters: T rows, D values of a row, N images, P patches of an image, m merge side.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from ov2_core.features.layout import FEATURES, SCALES
from ov2_core.features.stored_rows import restore_rows
from ov2_core.model.patches import to_block_order
from ov2_core.storage.layout import FEATURES_RECIPE, RUN_JSON
from ov2_core.storage.reader import ShardReader, StoredSample
from ov2_core.storage.writer import decode_npy
from schemas.features import FeatureConfig, FeatureRecord
from schemas.run import RunRecord


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """One sample of a feature run."""

    key: str
    record: FeatureRecord
    members: dict[str, bytes] = field(repr=False)

    @cached_property
    def features(self) -> Tensor:
        """[T, D]: float32, or bfloat16 where stored so; int8 comes scaled, as float32. Block order."""
        tensors = load_tensors(self.members[self.record.features.features_key])
        return restore_rows(tensors[FEATURES], tensors.get(SCALES))

    @property
    def positions_NP3(self) -> npt.NDArray[np.int32]:
        """(t, h, w) of every patch, raster order, as in the token shard."""
        names = self.record.patch_positions_keys
        return np.stack([decode_npy(self.members[name], name=f"{self.key}.{name}") for name in names])

    @property
    def positions(self) -> Tensor:
        """int64 [T, 3]: (t, h, w) of each row; of a merged row, that of its block's first patch."""
        record = self.record
        rows, columns = record.image_height_px // record.patch_px, record.image_width_px // record.patch_px
        ordered = to_block_order(self.positions_NP3, rows=rows, columns=columns, merge=record.merge).reshape(-1, 3)
        every = record.merge**2 if record.features.stage == "merged" else 1
        return torch.from_numpy(ordered[::every].astype(np.int64))

    def model_inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes in place of pixels: visual_tokens, or visual_features for its own connector."""
        return {"visual_tokens" if self.record.features.stage == "merged" else "visual_features": self.features}

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Raises ValueError: images stay in the token run."""
        raise ValueError(
            f"{self.key}: a feature run holds no images; read {self.record.image_keys[index]} from its source"
        )


class FeatureReader:
    """The committed samples of a feature run. A context manager."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        storage_options: dict[str, Any] | None = None,
        *,
        encoder_digest: str | None = None,
    ) -> None:
        """encoder_digest: of the model that will take the features (features.encoder.encoder_digest); None asks nothing.

        Raises:
            FileNotFoundError: no index there.
            ValueError: no feature run, or one of another encoder.
        """
        self._shards = ShardReader(root, storage_options)
        self.config = load_feature_config(self._shards)
        if encoder_digest is not None and encoder_digest != self.config.encoder_digest:
            self._shards.close()
            raise ValueError(
                f"{root} holds features of the encoder {self.config.encoder_digest[:12]}, the model's is "
                f"{encoder_digest[:12]}; run `ov2 encode` with this model"
            )

    def keys(self) -> list[str]:
        """Sample keys in the order of shards."""
        return self._shards.keys()

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, key: object) -> bool:
        return key in self._shards

    def read(self, key: str) -> StoredFeatures:
        """One sample by one range read. Raises KeyError for an unknown key."""
        return _features(self._shards.read(key))

    def __iter__(self) -> Iterator[StoredFeatures]:
        """Every committed sample, tar after tar."""
        return map(_features, self._shards)

    def close(self) -> None:
        self._shards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def load_feature_config(reader: ShardReader) -> FeatureConfig:
    """Raises ValueError where the run is none of features."""
    record = RunRecord.model_validate_json(reader.store.read_bytes(RUN_JSON))
    if record.recipe != FEATURES_RECIPE:
        raise ValueError(f"{reader.store.root} holds a run of {record.recipe!r}, no features; `ov2 encode` makes them")
    return FeatureConfig.model_validate(record.config)


def _features(stored: StoredSample) -> StoredFeatures:
    members = dict(stored.members)
    return StoredFeatures(key=stored.key, record=FeatureRecord.model_validate_json(members["json"]), members=members)
