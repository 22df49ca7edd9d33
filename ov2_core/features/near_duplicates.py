"""Near-duplicates by what an encoder sees: samples whose mean features point the same way.

Enters: a feature run. Leaves: of samples that look alike all but the first by manifest line, as rows that say which and how
alike: the file that `filter.leave_out` takes. Exact: every sample is compared with every one that stays, a block at a time,
so time grows with their square and memory is that of the means, 4 D bytes a sample. Meant for up to some hundred thousand.

Shape letters: N samples, D values of a row, K samples that stay.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ov2_core.features.reader import StoredFeatures
from schemas.shard import FilteredRow

BLOCK_SAMPLES = 1024
RULE = "near_duplicate_features"


@dataclass(frozen=True, kw_only=True)
class MeanFeatures:
    """One unit vector a sample, by ascending manifest line."""

    lines: list[int]
    ids: list[str]
    uris: list[str]
    vectors_ND: Tensor


def mean_features(samples: Iterable[StoredFeatures]) -> MeanFeatures:
    """Means over a sample's rows, in float32, brought to length 1.

    Raises:
        ValueError: no sample.
    """
    found = []
    for sample in samples:
        provenance = sample.record.provenance
        vector = torch.nn.functional.normalize(sample.features.float().mean(dim=0), dim=0)
        found.append((provenance.manifest_line, provenance.id, provenance.uri, vector))
    if not found:
        raise ValueError("the feature run holds no sample; `ov2 encode` makes them of a token run")
    found.sort(key=lambda one: one[0])
    lines, ids, uris, vectors = zip(*found, strict=True)
    return MeanFeatures(lines=list(lines), ids=list(ids), uris=list(uris), vectors_ND=torch.stack(vectors))


def find_repeats(means: MeanFeatures, *, min_cosine: float) -> list[FilteredRow]:
    """Samples whose cosine with an earlier one that stays is at least min_cosine; each names the most alike, the first of equals.

    Raises:
        ValueError: min_cosine is not in (0, 1].
    """
    if not 0 < min_cosine <= 1:
        raise ValueError(f"--min-cosine must be in (0, 1], got {min_cosine:g}")
    vectors = means.vectors_ND
    kept: list[int] = []
    repeats = []
    for start in range(0, len(vectors), BLOCK_SAMPLES):
        block = vectors[start : start + BLOCK_SAMPLES]
        before = len(kept)
        best = _nearest(block, vectors, kept)
        inside = block @ block.T
        for row in range(len(block)):
            cosine, nearest = best[row]
            for other in range(before, len(kept)):  # of this block
                here = float(inside[row, kept[other] - start])
                if here > cosine:
                    cosine, nearest = here, kept[other]
            if cosine >= min_cosine - 1e-6:
                repeats.append(_repeat(means, start + row, nearest, cosine, min_cosine))
            else:
                kept.append(start + row)
    return repeats


def _nearest(block_BD: Tensor, vectors_ND: Tensor, kept: list[int]) -> list[tuple[float, int]]:
    """(cosine, index) of the most alike of those that stay, for each of a block; (-2, -1) where none does yet."""
    cosine, index = torch.full((len(block_BD),), -2.0), torch.full((len(block_BD),), -1)
    for start in range(0, len(kept), BLOCK_SAMPLES):
        places = torch.tensor(kept[start : start + BLOCK_SAMPLES])
        here, at = (block_BD @ vectors_ND[places].T).max(dim=1)
        better = here > cosine
        cosine, index = torch.where(better, here, cosine), torch.where(better, places[at], index)
    return list(zip(cosine.tolist(), index.tolist(), strict=True))


def _repeat(means: MeanFeatures, index: int, nearest: int, cosine: float, min_cosine: float) -> FilteredRow:
    return FilteredRow(
        line=means.lines[index],
        id=means.ids[index],
        uri=means.uris[index],
        rule=RULE,
        message=f"looks like line {means.lines[nearest]} ({means.ids[nearest]}) to the encoder: cosine {cosine:.4f}",
        value=round(cosine, 6),
        threshold=min_cosine,
    )
