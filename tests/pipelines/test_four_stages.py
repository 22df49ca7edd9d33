"""All four stages of toy data, from every importer's files: what lies in no token run is tokenized from the manifests that the
first attempt writes, and each sample's text, times and pixels are held against its source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from toy_stages import COLUMNS, FPS, ROWS, build_toy_stage, toy_config, write_datasets

from jobs.recipes import STAGES
from ov2_core.data.importers import open_importer
from ov2_core.data.loader import StageLoader
from ov2_core.data.read_pack import LoadedSample
from ov2_core.evals.clips import read_canary
from ov2_core.model.patches import to_block_order


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See toy_stages.write_datasets."""
    return write_datasets(tmp_path_factory.mktemp("datasets") / "data")


@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_of_every_source_reads_back_as_its_sources(
    data: Path, tmp_path: Path, name: str, materialize: bool
) -> None:
    config = toy_config(name)
    _, record, sources = build_toy_stage(data, tmp_path, name, materialize=materialize)
    assert [source.name for source in record.sources] == [slot.name for slot in config.slots]
    assert record.missing_slots == []
    assert {source.num_samples for source in record.sources} == {3 if name == "stage4" else 4}

    texts = texts_of(sources)
    loader = StageLoader(tmp_path / "stage", batch_size=2, num_workers=1)
    seen = []
    for batch in loader:
        for sample in (sample for pack in batch.packs for sample in pack.samples):
            seen.append((sample.source, sample.id))
            assert [(turn.role, turn.content) for turn in sample.messages] == texts[seen[-1]]
            check_pixels(sample)
    assert len(seen) == len(set(seen)) == record.packing.num_samples


def texts_of(sources: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(source, id) -> turns, from the importers."""
    found = {}
    for source in sources:
        extra = {key: source[key] for key in ("media_root", "media_template") if key in source}
        importer = source.get("importer") or stage_importer(source["name"])
        for item in open_importer(importer, source["path"], source=source["name"], **extra):
            if item.record is not None:
                found[source["name"], item.record.id] = [(t.role, t.content) for t in item.record.messages]
    return found


def stage_importer(slot: str) -> str:
    return next(s.importers[0] for make in STAGES.values() for s in make().slots if s.name == slot)


def check_pixels(sample: LoadedSample) -> None:
    """What the text says of the media is what they show, at the times that the positions say."""
    text = " ".join(turn.content for turn in sample.messages)
    words = text.replace(".", " ").replace("<", " ").split()
    for number, visual in enumerate(sample.media):
        if visual.kind == "image":
            said = sample.messages[-1].content.rstrip(".").split()[-1]
            expected = int(said) + (number if "From grey" in text else 0)
            assert abs(float(visual.image(0).mean()) - 20 * expected) < 2
            continue
        position = [word.lower() for word in words].index("clip")
        said_id = int("".join(c for c in words[position + 1] if c.isdigit()))
        images = np.stack([visual.image(i) for i in range(visual.num_images)])
        blocks = images.reshape(len(images), ROWS, 28, COLUMNS, 28, 3).swapaxes(2, 3).reshape(-1, 28, 28, 3)
        shown = [read_canary(block) for block in blocks]
        assert {canary.video_id for canary in shown} == {said_id}
        places = to_block_order(visual.positions_NP3, rows=2 * ROWS, columns=2 * COLUMNS, merge=2)
        assert [[c.frame, 2 * c.row, 2 * c.column] for c in shown] == places.reshape(-1, 3)[::4].tolist()
        assert visual.fps == FPS
        assert list(visual.runs().seconds_R) == sorted({t / FPS for t in places[..., 0].reshape(-1).tolist()})
