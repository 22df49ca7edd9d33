"""Features for the samples of a stage, by the keys of their media: a trainer's pixels, encoded already.

Enters: feature runs (`ov2 encode --unmerged`), loaded packs. Leaves: the features of a sample's media in order, held
against the sample: as many rows as it has patches, at the same places. Every thread reads through connections of its own.

P patches, C width of the encoder.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ov2_core.data.read_pack import BadPackError, LoadedSample
from ov2_core.features.reader import FeatureReader
from ov2_core.storage.files import is_transient


class FeatureSource:
    """Reads from one or more feature runs; of a key that several hold, the first whose features are of the same patches.

    Thread-safe."""

    def __init__(self, runs: Sequence[str], *, encoder_digest: str | None = None) -> None:
        """
        Args:
            encoder_digest: of the model that will take them (features.encoder.encoder_digest, unmerged); None asks nothing.

        Raises:
            FileNotFoundError: a run has no index.
            ValueError: a run holds merged features, or those of another encoder.
        """
        self._runs, self._digest = list(runs), encoder_digest
        self._local = threading.local()
        self._lock = threading.Lock()
        self._opened: list[FeatureReader] = []
        for run, reader in zip(self._runs, self._readers(), strict=True):
            if reader.config.stage != "unmerged":
                self.close()
                raise ValueError(
                    f"{run} holds merged features, behind a connector that would not be trained; make it anew with "
                    "`ov2 encode --unmerged`"
                )

    def of(self, sample: LoadedSample, *, pack_key: str) -> Tensor | None:
        """[P, C] of all media of a sample, block order; None without media.

        Raises:
            BadPackError: no run holds a medium, or its features are of other patches; the medium is named.
        """
        found = [
            self._medium(key, visual.positions_NP3, f"pack {pack_key}, sample {sample.id}")
            for key, visual in zip(sample.media_keys, sample.media, strict=True)
        ]
        return torch.cat(found) if found else None

    def close(self) -> None:
        """Closes what all threads have opened."""
        with self._lock:
            for reader in self._opened:
                reader.close()
            self._opened.clear()

    def _medium(self, key: str, positions_NP3: Any, where: str) -> Tensor:
        other: list[str] = []
        for run, reader in zip(self._runs, self._readers(), strict=True):
            if key not in reader:
                continue
            try:
                stored = reader.read(key)
                if np.array_equal(stored.positions_NP3, positions_NP3):
                    return stored.features
                other.append(run)  # the same clip, tokenized otherwise
            except (OSError, EOFError, ValueError, KeyError) as error:
                if is_transient(error):
                    raise
                raise BadPackError(f"{where}: features of {key} in {run} cannot be read: {error}", tar=run) from error
        runs = ", ".join(other or self._runs)
        found = "those there are of other patches" if other else "there are none"
        raise BadPackError(
            f"{where}: no features of {key} in {runs} ({found}); run `ov2 encode --unmerged` on its token run", tar=runs
        )

    def _readers(self) -> list[FeatureReader]:
        """Of this thread."""
        readers: list[FeatureReader] | None = getattr(self._local, "readers", None)
        if readers is None:
            readers = [FeatureReader(run, encoder_digest=self._digest) for run in self._runs]
            self._local.readers = readers
            with self._lock:
                self._opened += readers
        return readers
