"""The loader on stages on disk: order, resumes, packed batches, what it does when a shard is bad."""

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from feature_runs import INLINE

from jobs.recipes import stage
from ov2_core.data import read_pack
from ov2_core.data.loader import StageLoader
from ov2_core.data.read_pack import BadPackError
from ov2_core.data.stage_config import with_settings
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.processor_config import ProcessorConfig
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum

SOURCES = """
sources:
  - {name: spatial, importer: token-shards, path: run, weight: 1}
  - {name: finevision, path: text.parquet, weight: 4}
"""


@pytest.fixture(scope="module")
def stages(token_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """index/ and shards/: 6 samples of the token run and 24 of text, in some 20 packs of up to 1300 tokens; model/, run/."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("stages")
    shutil.copytree(token_run, folder / "run")
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    rows = [
        {"images": [], "texts": [{"user": f"Say {i}.", "assistant": f"{i} " * (60 + 16 * i)}], "source": "t"}
        for i in range(24)
    ]
    schema = pa.schema(
        [
            ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
            ("source", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "text.parquet")
    (folder / "sources.yaml").write_text(SOURCES)
    config = with_settings(stage("stage4"), ["sequence_length=1400", "packs_per_block=2"])
    for name in ("index", "shards"):
        options = CurriculumOptions(
            sources=str(folder / "sources.yaml"),
            model=str(folder / "model"),
            materialize=name == "shards",
            shard_bytes=200_000,
        )
        build_curriculum(Store(folder / name), config, options, INLINE)
    return folder


@pytest.fixture(scope="module")
def processor(stages: Path) -> LlavaOnevision2Processor:
    return LlavaOnevision2Processor.from_pretrained(stages / "model")


def open_loader(stages: Path, processor: Any, name: str = "index", **options: Any) -> StageLoader:
    return StageLoader(
        stages / name, **{"batch_size": 1, "num_workers": 0, "mixed_blocks": 3, "processor": processor, **options}
    )


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize("name", ["index", "shards"])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_are_those_of_a_single_process(stages: Path, processor: Any, name: str, num_workers: int) -> None:
    loader = open_loader(stages, processor, name, num_workers=num_workers, batch_size=3)
    with loader:
        batches = list(loader)
    reference = open_loader(stages, processor)
    numbers = reference.order.packs(0, reference.reading.num_packs).tolist()
    assert [number for batch in batches for number in batch.numbers] == numbers
    plain = {key: batch for batch in reference for key in batch.keys}
    for batch in batches:
        for row, key in enumerate(batch.keys):
            one = plain[key]
            assert torch.equal(batch.input_ids[row, : one.num_tokens], one.input_ids[0])
            assert torch.equal(batch.labels[row, : one.num_tokens], one.labels[0])
        pixels = [plain[key].pixel_values for key in batch.keys if plain[key].pixel_values is not None]
        assert (batch.pixel_values is None) == (not pixels)
        if pixels:
            assert torch.equal(batch.pixel_values, torch.cat(pixels))


def test_a_batch_holds_its_samples_as_the_processor_encodes_them(stages: Path, processor: Any) -> None:
    loader = open_loader(stages, processor, batch_size=2, pad_to=1400)
    num_samples = 0
    for batch in loader:
        assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (len(batch.keys), 1400)
        visions = []
        ends = []
        for row, number in enumerate(batch.numbers):
            at = 0
            for sample in loader._packs.load(number, skip_bad=False).samples:
                one = processor.encode(sample.media, messages=sample.messages)
                here = slice(at, at + one.num_tokens)
                assert torch.equal(batch.input_ids[row, here], one.input_ids)
                assert torch.equal(batch.labels[row, here], one.labels)
                assert batch.position_ids[row, here].tolist() == list(range(one.num_tokens))
                at += one.num_tokens
                ends.append(1400 * row + at)
                num_samples += 1
                if one.vision is not None:
                    visions.append(one.vision)
            if at < 1400:
                assert batch.position_ids[row, at:].tolist() == list(range(1400 - at))
                assert (batch.labels[row, at:] == -100).all()
                ends.append(1400 * (row + 1))
        assert batch.cu_seqlens.tolist() == [0, *ends]
        assert batch.cu_seqlens.dtype == torch.int32
        assert batch.max_seqlen == max(np.diff([0, *ends]))
        for name in ("pixel_values", "image_grid_thw", "patch_positions", "patch_group_lengths"):
            if visions:
                assert torch.equal(getattr(batch, name), torch.cat([getattr(v, name) for v in visions]))
            else:
                assert getattr(batch, name) is None
    assert num_samples == 30


@pytest.mark.parametrize("name", ["index", "shards"])
def test_without_a_processor_batches_are_conversations_with_pictures(stages: Path, processor: Any, name: str) -> None:
    loader = StageLoader(stages / name, batch_size=2, rank=0, world_size=1, num_workers=2, seed=0)
    batches = list(loader)
    tensors = {b.keys[0]: b for b in open_loader(stages, processor, name, mixed_blocks=16)}
    assert keys_of(batches) == list(tensors)
    for pack in (pack for batch in batches for pack in batch.packs):
        ids = [processor.encode(s.media, messages=s.messages).input_ids for s in pack.samples]
        assert torch.equal(torch.cat(ids), tensors[pack.key].input_ids[0])
        for visual in (visual for sample in pack.samples for visual in sample.media):
            assert visual.image(0) is visual.image(0)


def test_packed_samples_do_not_see_each_other(stages: Path, processor: Any, tiny_model: Path) -> None:
    from ov2_core.model import LlavaOnevision2ForConditionalGeneration

    model = LlavaOnevision2ForConditionalGeneration.from_pretrained(tiny_model).eval()
    loader = open_loader(stages, processor, pad_to=1400)
    batch = next(b for b in loader if len(b.sample_lengths[0]) > 1 and b.pixel_values is not None)
    with torch.no_grad():
        packed = model(**batch.model_inputs()).logits[0]
        at = 0
        for sample in loader._packs.load(batch.numbers[0], skip_bad=False).samples:
            alone = model(**processor(sample.media or None, messages=sample.messages)).logits[0]
            assert (packed[at : at + len(alone)] - alone).abs().max() < 1e-4
            at += len(alone)


@pytest.mark.parametrize("name", ["index", "shards"])
def test_a_resume_at_other_sizes_leaves_exactly_the_rest(stages: Path, processor: Any, name: str) -> None:
    whole = keys_of(open_loader(stages, processor, name))
    rng = np.random.default_rng(0)
    for _ in range(6):
        read: list[str] = []
        state: dict[str, Any] = {}
        for _ in range(3):
            world, batch, workers = (int(n) for n in rng.integers(1, 4, 3))
            ranks = [
                open_loader(
                    stages, processor, name, rank=r, world_size=world, batch_size=batch, num_workers=workers - 1
                )
                for r in range(world)
            ]
            for loader in ranks:
                if state:
                    loader.load_state_dict(json.loads(json.dumps(state)))
            iterators = [iter(loader) for loader in ranks]
            for _ in range(int(rng.integers(1, 4))):
                step = [next(iterator, None) for iterator in iterators]
                if step[0] is None:
                    break
                assert None not in step
                read += keys_of(step)
                states = [loader.state_dict() for loader in ranks]
                assert all(s == states[0] for s in states)
                state = states[0]
            for loader in ranks:
                loader.close()
            if state["cursor"] >= len(whole):
                break
        loader = open_loader(stages, processor, name)
        loader.load_state_dict(state)
        if state["cursor"] < len(whole):
            read += keys_of(loader)
        assert hashlib.sha256("".join(read).encode()).digest() == hashlib.sha256("".join(whole).encode()).digest()


def test_what_is_read_ahead_does_not_count_as_delivered(stages: Path, processor: Any) -> None:
    loader = open_loader(stages, processor, num_workers=3)
    iterator = iter(loader)
    first = [next(iterator).keys[0] for _ in range(4)]
    state = loader.state_dict()
    again = open_loader(stages, processor, num_workers=1)
    again.load_state_dict(state)
    assert first + keys_of(again) == keys_of(open_loader(stages, processor))


def test_an_iteration_is_an_epoch_and_the_next_goes_on(stages: Path, processor: Any) -> None:
    loader = open_loader(stages, processor)
    first, second = keys_of(loader), keys_of(loader)
    assert loader.epoch == 2
    assert sorted(first) == sorted(second)
    assert first != second
    endless = open_loader(stages, processor, endless=True, batch_size=2)
    got = []
    for batch in endless:
        got += batch.keys
        if len(got) >= len(first) + 4:
            break
    assert got[: len(first) + 4] == first + second[:4]
    dropping = open_loader(stages, processor, drop_last=True, batch_size=len(first) - 1)
    assert len(keys_of(dropping)) == len(dropping) * (len(first) - 1) == len(first) - 1
    assert dropping.epoch == 1


def test_packs_in_the_making_are_bounded(stages: Path, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = open_loader(stages, processor, num_workers=3, prefetch_packs=4)
    started = 0
    lock = threading.Lock()
    make = loader._make

    def counted(number: int) -> Any:
        nonlocal started
        with lock:
            started += 1
        return make(number)

    monkeypatch.setattr(loader, "_make", counted)
    for delivered, _ in enumerate(loader, start=1):
        assert started <= delivered + 4


def test_a_new_iteration_or_state_ends_the_old_one(stages: Path, processor: Any) -> None:
    loader = open_loader(stages, processor, num_workers=2)
    old = iter(loader)
    next(old)
    state = loader.state_dict()
    next(old)
    loader.load_state_dict(state)
    assert next(old, None) is None
    assert loader.state_dict() == state


def test_a_state_of_another_order_is_refused(stages: Path, processor: Any) -> None:
    state = open_loader(stages, processor).state_dict()
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 here"):
        open_loader(stages, processor, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"stage: 'x' there"):
        open_loader(stages, processor).load_state_dict({**state, "stage": "x"})


@pytest.fixture
def broken(stages: Path, tmp_path: Path) -> Path:
    for name in ("run", "index", "shards"):
        shutil.copytree(stages / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten", "picture"])
def test_a_bad_token_shard_is_named_or_skipped_and_counted(
    stages: Path, processor: Any, broken: Path, damage: str
) -> None:
    tar = broken / "run/shards/shard-000001.tar"
    moved = {str(stages / "run"): str(broken / "run")}
    harm(tar, damage)
    with pytest.raises(BadPackError, match=r"shard-000001\.tar: sample .* of pack ps_000000\d\d") as caught:
        list(open_loader(broken, processor, moved=moved, num_workers=2))
    assert caught.value.tar.endswith("run/shards/shard-000001.tar")
    loader = open_loader(broken, processor, moved=moved, num_workers=2, on_bad="skip")
    batches = list(loader)
    whole = list(open_loader(stages, processor))
    assert keys_of(batches) == keys_of(whole)
    lost = 1 if damage == "picture" else 2
    assert loader.skipped == {str(tar): lost}
    assert sum(len(b.sample_ids[0]) for b in batches) == 30 - lost
    assert sum((b.skipped for b in batches), start=type(loader.skipped)()) == loader.skipped


def test_a_bad_stage_shard_is_named_or_skipped_and_counted(processor: Any, broken: Path) -> None:
    tar = broken / "shards/shards/shard-000000.tar"
    harm(tar, "cut")
    with pytest.raises(BadPackError, match=r"shard-000000\.tar: pack ps_\d+ cannot be read"):
        list(open_loader(broken, processor, "shards"))
    loader = open_loader(broken, processor, "shards", on_bad="skip")
    batches = list(loader)
    assert len(keys_of(batches)) == len(loader)
    assert sum(loader.skipped.values()) == sum(b.num_tokens == 0 for b in batches) > 0


def harm(tar: Path, damage: str) -> None:
    data = tar.read_bytes()
    if damage == "gone":
        tar.unlink()
    elif damage == "cut":
        tar.write_bytes(data[:1000])
    elif damage == "overwritten":
        tar.write_bytes(bytes(len(data)))
    else:
        at = data.index(b"\xff\xd8\xff")
        tar.write_bytes(data[:at] + bytes(2000) + data[at + 2000 :])


def test_another_processor_than_the_stages_is_refused(stages: Path) -> None:
    other = LlavaOnevision2Processor(byte_tokenizer(), ProcessorConfig(default_system="Be brief."))
    with pytest.raises(ValueError, match="built with another tokenizer, system line or patch size"):
        open_loader(stages, other)


def test_a_folder_of_shards_alone_is_read_too(stages: Path, processor: Any, tmp_path: Path) -> None:
    shutil.copytree(stages / "shards", tmp_path / "alone")
    (tmp_path / "alone/stage.json").unlink()
    loader = open_loader(tmp_path, processor, "alone")
    assert loader.record is None
    assert sorted(keys_of(loader)) == sorted(keys_of(open_loader(stages, processor)))


def test_shards_are_read_by_the_offsets_beside_them_and_by_the_index_where_these_are_gone(
    stages: Path, processor: Any, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = keys_of(open_loader(stages, processor, "shards"))
    monkeypatch.setattr(read_pack, "open_index", lambda _: pytest.fail("a large stage's index.sqlite was opened"))
    assert keys_of(open_loader(broken, processor, "shards")) == whole
    monkeypatch.undo()
    first, *others = sorted((broken / "shards/shards").glob("*.idx"))
    for sidecar in others:
        sidecar.unlink()
    with open_loader(broken, processor, "shards") as loader:
        assert keys_of(loader) == whole
    (broken / "shards/stage.json").unlink()  # as if others had made the shards: keys are those of the tars
    with open_loader(broken, processor, "shards", mixed_blocks=0) as loader:
        assert keys_of(loader) == sorted(whole)
    for harmed, message in ((first.read_bytes()[:-8], "write it anew"), (bytes(first.stat().st_size), "do not ascend")):
        first.write_bytes(harmed)
        with pytest.raises(BadPackError, match=rf"shard-000000\.tar: pack .* {message}"):
            keys_of(open_loader(broken, processor, "shards", mixed_blocks=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "num_workers"),
        ({"on_bad": "ignore"}, "on_bad"),
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 1}, "rank must be"),
        ({"batch_size": 100, "drop_last": True}, "drop_last leaves nothing"),
    ],
)
def test_options_that_read_nothing_are_refused(
    stages: Path, processor: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_loader(stages, processor, **options)


def test_no_stage_is_said_so(processor: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither stage\.json nor an Energon index"):
        open_loader(tmp_path, processor, ".")


def test_held_out_packs_are_read_by_themselves_and_never_in_training(stages: Path, processor: Any) -> None:
    def numbers(**options: Any) -> list[int]:
        loader = StageLoader(stages / "index", batch_size=1, num_workers=0, processor=processor, **options)
        return [number for batch in loader for number in batch.numbers]

    everything = sorted(numbers())
    held_out = numbers(held_out=2, part="held_out")
    assert len(held_out) == 2
    assert sorted(numbers(held_out=2) + held_out) == everything
    with pytest.raises(ValueError, match="part 'held_out' needs"):
        numbers(part="held_out")


def test_a_batch_says_what_its_samples_show(stages: Path, processor: Any) -> None:
    loader = StageLoader(stages / "index", batch_size=1, num_workers=0, processor=processor)
    for batch in loader:
        for ids, kinds in zip(batch.sample_ids, batch.input_kinds, strict=True):
            assert len(ids) == len(kinds)
            assert set(kinds) <= {"text", "image", "frames", "codec", "mixed"}
