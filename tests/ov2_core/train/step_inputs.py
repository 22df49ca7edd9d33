"""Small models and packs for the tests of ov2_core.train: samples of every kind of input, made by hand, and packs taken apart."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch

from ov2_core.data.packed_batch import PackedBatch, PackEncoder
from ov2_core.data.read_pack import LoadedPack, LoadedSample
from ov2_core.model.attention import GroupLayout
from ov2_core.model.byte_tokenizer import CONFIG_IDS, byte_tokenizer
from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.visual import Visual, show_frames, show_still
from ov2_core.train.pack_inputs import PackInputs
from schemas.video import Message

WORLD_OF_ONE = {"rank": 0, "size": 1, "device": torch.device("cpu")}


def small_config(*, tied: bool = False) -> LlavaOnevision2Config:
    return LlavaOnevision2Config.from_preset(
        "tiny", text_config={"vocab_size": 512}, tie_word_embeddings=tied, **CONFIG_IDS
    )


def small_model(*, seed: int = 0, tied: bool = False) -> LlavaOnevision2ForConditionalGeneration:
    """Weights larger than the usual 0.02, so that a slip in attention or rotation shows."""
    torch.manual_seed(seed)
    model = LlavaOnevision2ForConditionalGeneration(small_config(tied=tied)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def text(name: str, *, words: int = 8) -> LoadedSample:
    return sample(name, "", [], " ".join(f"{name}{i}" for i in range(words)))


def still(name: str, *, seed: int = 0, rows: int = 4, columns: int = 4) -> LoadedSample:
    return sample(name, "<image>\n", [show_still(_noise(seed, rows, columns))], f"A still {name}.")


def frames(name: str, *, seed: int = 0, num: int = 5) -> LoadedSample:
    shown = show_frames([_noise(seed + i, 4, 4) for i in range(num)], ticks=[3 * i for i in range(num)], fps=10.0)
    return sample(name, "<video>\n", [shown], f"Frames {name}.")


def codec(name: str, *, seed: int = 0, num: int = 4, rows: int = 4, columns: int = 6) -> LoadedSample:
    """Canvases whose 2 x 2 blocks come from frames and places of their own."""
    rng = np.random.default_rng(seed)
    positions = np.zeros((num, rows, columns, 3), np.int32)
    ticks = iter(np.sort(rng.integers(0, 60, num * rows * columns // 4)).tolist())
    for n in range(num):
        for h in range(0, rows, 2):
            for w in range(0, columns, 2):
                at = 2 * rng.integers(0, 9, 2)
                positions[n, h : h + 2, w : w + 2, 0] = next(ticks)
                positions[n, h : h + 2, w : w + 2, 1] = at[0] + np.arange(2)[:, None]
                positions[n, h : h + 2, w : w + 2, 2] = at[1] + np.arange(2)
    canvases = [_noise(seed + i, rows, columns) for i in range(num)]
    shown = Visual(
        kind="video",
        image=canvases.__getitem__,
        positions_NP3=positions.reshape(num, -1, 3),
        rows=rows,
        columns=columns,
        fps=10.0,
        timestamp_decimal=1,
        group_images=tuple(min(4, num - first) for first in range(0, num, 4)),
        patch_px=14,
        merge=2,
    )
    return sample(name, "<video>\n", [shown], f"Canvases {name}.")


def sample(name: str, before: str, media: list[Visual], answer: str) -> LoadedSample:
    turns = [Message(role="user", content=f"{before}What is {name}?"), Message(role="assistant", content=answer)]
    return LoadedSample(
        source="seen" if media else "told",
        id=name,
        messages=turns,
        media=media,
        media_keys=[],
        num_tokens=None,
        num_bytes=1,
        tars=[],
    )


def mixed_pack() -> list[LoadedSample]:
    """Every kind of input, text before, between and after."""
    return [
        text("a"),
        codec("b", seed=1),
        text("c", words=30),
        still("d", seed=2),
        frames("e", seed=3),
        still("f", seed=4, rows=2, columns=6),
        codec("g", seed=5, num=2),
        text("h", words=3),
    ]


def make_batch(packs: Sequence[Sequence[LoadedSample]], *, first: int = 0) -> PackedBatch:
    """As a loader delivers it, pixels uint8."""
    encoder = PackEncoder(LlavaOnevision2Processor(byte_tokenizer()), pixel_dtype=torch.uint8)
    loaded = [
        LoadedPack(number=first + i, key=f"ps_{first + i:08d}", samples=list(samples))
        for i, samples in enumerate(packs)
    ]
    return encoder.collate([encoder.encode(pack, on_bad="raise") for pack in loaded])


def take_sample(inputs: PackInputs, index: int, *, image_token_id: int) -> PackInputs:
    """One sample of a micro-batch as a micro-batch of its own, cut out by counting tokens and placeholders."""
    ends = list(accumulate(one.num_tokens for one in inputs.samples))
    start, stop = ([0, *ends])[index], ends[index]
    ids = inputs.input_ids[0]
    patches_before, patches_to = (4 * int((ids[:at] == image_token_id).sum()) for at in (start, stop))
    mine = inputs.target_samples == index
    offsets = [0, *accumulate(inputs.patch_group_lengths or ())]
    groups = [b - a for a, b in pairwise(offsets) if patches_before <= a and b <= patches_to]
    assert sum(groups) == patches_to - patches_before
    seen = patches_to > patches_before
    return replace(
        inputs,
        samples=(inputs.samples[index],),
        segments=GroupLayout([stop - start]),
        input_ids=inputs.input_ids[:, start:stop],
        position_ids=torch.arange(stop - start)[None],
        rows=inputs.rows[mine] - start,
        targets=inputs.targets[mine],
        target_samples=torch.zeros(int(mine.sum()), dtype=torch.int64),
        pixel_values=inputs.pixel_values[patches_before:patches_to] if seen else None,
        patch_positions=inputs.patch_positions[patches_before:patches_to] if seen else None,
        image_grid_thw=None,
        patch_group_lengths=tuple(groups) if seen else None,
    )


def _noise(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (14 * rows, 14 * columns, 3), dtype=np.uint8)
