"""A synthetic stage for `ov2 bench train`: packs of a given length that hold what training packs hold.

Enters: tokens of a pack, number of packs. Leaves: stage shards, and a folder with a processor whose tokenizer is the bytes. Of the
tokens of a pack about half are canvases of codec blocks, a quarter uniform frames, a tenth stills, and the rest text in samples of
various lengths; the last text fills the pack to the token. Pictures are of 392 x 392 px, 196 tokens each, at --side-px 392.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.bench_resume import commit_packs
from ov2_core.storage.files import Store
from ov2_core.storage.index import write_index
from ov2_core.storage.writer import Member, canonical_json, write_tar
from schemas.stage import PackedMedium, PackedSample, PackedSamples
from schemas.video import Message

PATCH_PX, MERGE = 14, 2
SHARES = {"codec": 0.5, "frames": 0.25, "still": 0.1}
TIME_TOKENS = {"codec": 60, "frames": 15, "still": 100}
"""Of each picture, besides its own: times before runs of patches, in bytes; a still brings its own question."""
TEXT_TOKENS = 250
"""Of a video, besides."""
PACKS_PER_SHARD = 16
NUM_PICTURES = 16
FRAMES_PER_CANVAS = 4
WORDS = np.array(
    ["the", "rope", "passes", "under", "a", "jumping", "figure", "while", "camera", "pans", "left", "twice"]
)


def make_stage(folder: Path, *, num_packs: int, pack_tokens: int, side_px: int = 392) -> tuple[Path, Path]:
    """(STAGE, folder of the processor).

    Raises:
        ValueError: a picture of this side does not fit into a tenth of a pack.
    """
    from ov2_core.model.byte_tokenizer import byte_tokenizer
    from ov2_core.model.processor import LlavaOnevision2Processor

    if side_px % (PATCH_PX * MERGE) or side_px < PATCH_PX * MERGE:
        raise ValueError(f"side_px must be a multiple of {PATCH_PX * MERGE}, got {side_px}")
    if 4 * (side_px // 28) ** 2 > pack_tokens // 2:
        raise ValueError(
            f"four pictures of {side_px} px take more than half of {pack_tokens} tokens; take smaller ones"
        )
    processor = LlavaOnevision2Processor(byte_tokenizer())
    processor.save_pretrained(folder / "processor")
    store = Store(folder / "STAGE")
    rng = np.random.default_rng(0)
    pictures = [_picture(rng, side_px) for _ in range(NUM_PICTURES)]
    for shard, start in enumerate(range(0, num_packs, PACKS_PER_SHARD)):
        packs = [
            (f"ps_{number:08d}", _Pack(processor, pictures, side_px=side_px, seed=number).members(pack_tokens))
            for number in range(start, min(start + PACKS_PER_SHARD, num_packs))
        ]
        tar = write_tar(str(folder / "new.tar"), packs)
        commit_packs(store, shard, start, tar)
    write_index(store)
    return folder / "STAGE", folder / "processor"


class _Pack:
    """Samples of one pack as they are added."""

    def __init__(self, processor: Any, pictures: list[bytes], *, side_px: int, seed: int) -> None:
        from ov2_core.model.chatml import TextEncoder

        self.processor, self.pictures = processor, pictures
        self.side = side_px // PATCH_PX
        self.rng = np.random.default_rng([seed, 1])
        self.encoder = TextEncoder(processor.tokenizer)
        self.files: list[Member] = []
        self.samples: list[PackedSample] = []
        self.names: list[list[str]] = []
        self.num_tokens = 0

    def members(self, pack_tokens: int) -> list[Member]:
        """The pack, filled to the token."""
        each = (self.side // MERGE) ** 2
        for kind, share in SHARES.items():
            self._see(kind, max(1, int((share * pack_tokens - TEXT_TOKENS) / (each + TIME_TOKENS[kind]))))
        shortest = self._count([Message(role="user", content="?"), Message(role="assistant", content=".")], [])
        while (room := pack_tokens - self.num_tokens) > 0:
            whole = min(room, int(self.rng.integers(150, 900)))
            if room - whole < 2 * shortest:
                whole = room
            if whole < shortest:
                raise ValueError(f"pictures leave {room} tokens of {pack_tokens} for text; take smaller ones")
            self._tell(whole)
        record = PackedSamples(
            images=self.names,
            prompts=[[sample.messages[0].content] for sample in self.samples],
            captions=[[sample.messages[1].content] for sample in self.samples],
            sample_count=len(self.samples),
            patch_positions=[[name.replace(".jpg", ".npy") for name in names] for names in self.names],
            fps=[sample.media[0].fps if sample.media else None for sample in self.samples],
            timestamp_decimal=[1] * len(self.samples),
            samples=self.samples,
        )
        return [*self.files, ("json", canonical_json(record))]

    def _see(self, kind: str, num_images: int) -> None:
        """Stills one by one, videos in samples of up to 32 pictures."""
        at_most = 1 if kind == "still" else 32
        for first in range(0, num_images, at_most):
            num = min(at_most, num_images - first)
            names, positions = [], []
            for j in range(num):
                name = f"img{len(self.samples)}_{j}.jpg"
                place = _codec_places(self.rng, j, self.side) if kind == "codec" else _frame_places(3 * j, self.side)
                out = io.BytesIO()
                np.save(out, place)
                picture = self.pictures[int(self.rng.integers(len(self.pictures)))]
                self.files += [(name, picture), (name.replace(".jpg", ".npy"), out.getvalue())]
                names.append(name)
                positions.append(place)
            medium = PackedMedium(
                key=f"{kind}-{len(self.samples)}",
                kind="image" if kind == "still" else "video",
                group_images=[min(4, num - start) for start in range(0, num, 4)],
                rows=self.side,
                columns=self.side,
                fps=None if kind == "still" else 10.0,
                timestamp_decimal=0 if kind == "still" else 1,
                patch_px=PATCH_PX,
                merge=MERGE,
            )
            tag = "<image>" if kind == "still" else "<video>"
            self._add(f"{tag}\nWhat happens?", self._words(60 if kind == "still" else 200), medium, names, positions)

    def _tell(self, num_tokens: int) -> None:
        """A text of exactly so many tokens, a third of which asks."""
        empty = self._count([Message(role="user", content="?"), Message(role="assistant", content=".")], [])
        letters = num_tokens - empty
        asks = letters // 3
        self._add("?" + self._words(asks), "." + self._words(letters - asks), None, [], [])

    def _add(
        self, asked: str, said: str, medium: PackedMedium | None, names: list[str], positions: list[npt.NDArray[Any]]
    ) -> None:
        turns = [Message(role="user", content=asked), Message(role="assistant", content=said)]
        media = [] if medium is None else [medium]
        runs = [] if medium is None else [self._runs(medium, positions)]
        num_tokens = self._count(turns, runs)
        name = f"{len(self.samples)}"
        self.samples.append(PackedSample(source="bench", id=name, messages=turns, media=media, num_tokens=num_tokens))
        self.names.append(names)
        self.num_tokens += num_tokens

    def _runs(self, medium: PackedMedium, positions: list[npt.NDArray[Any]]) -> Any:
        from ov2_core.model.visual import Visual

        return Visual(
            kind=medium.kind,
            image=lambda index: np.zeros((0, 0, 3), np.uint8),
            positions_NP3=np.stack(positions),
            rows=medium.rows,
            columns=medium.columns,
            fps=medium.fps,
            timestamp_decimal=medium.timestamp_decimal,
            group_images=tuple(medium.group_images),
            patch_px=medium.patch_px,
            merge=medium.merge,
        ).runs()

    def _count(self, turns: list[Message], runs: list[Any]) -> int:
        from ov2_core.model.chatml import lay_out

        system = self.processor.config.default_system
        ids, _ = self.encoder.encode(lay_out(turns, runs, default_system=system, for_generation=False))
        return len(ids)

    def _words(self, num_letters: int) -> str:
        text = " ".join(self.rng.choice(WORDS, num_letters // 2 + 1).tolist())
        return text[: max(num_letters - 1, 0)] + "." * min(num_letters, 1)


def _codec_places(rng: np.random.Generator, canvas: int, side: int) -> npt.NDArray[np.int32]:
    """(t, h, w) of the patches of a canvas whose 2 x 2 blocks lie anywhere in a few frames, raster order."""
    blocks = side // MERGE
    ticks = np.sort(rng.integers(0, FRAMES_PER_CANVAS, blocks * blocks)) + FRAMES_PER_CANVAS * canvas
    corner = MERGE * rng.integers(0, blocks, (blocks * blocks, 2))
    places = np.zeros((side, side, 3), np.int32)
    grid = np.stack([ticks, corner[:, 0], corner[:, 1]], axis=1).reshape(blocks, blocks, 3)
    for i in range(MERGE):
        for j in range(MERGE):
            places[i::MERGE, j::MERGE] = grid + np.array([0, i, j])
    return places.reshape(-1, 3).astype("<i4")


def _frame_places(tick: int, side: int) -> npt.NDArray[np.int32]:
    h, w = np.mgrid[0:side, 0:side]
    return np.stack([np.full(side * side, tick), h.reshape(-1), w.reshape(-1)], axis=1).astype("<i4")


def _picture(rng: np.random.Generator, side_px: int) -> bytes:
    y, x = np.mgrid[0:side_px, 0:side_px]
    base = np.stack([x * rng.uniform(0.2, 0.6), y * rng.uniform(0.2, 0.6), (x + y) * 0.3], axis=-1)
    noisy = np.clip(base + rng.normal(0, 7, base.shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, format="JPEG", quality=95)
    return out.getvalue()


def describe(stage: Path) -> dict[str, Any]:
    """Tokens of a pack by kind of sample, of all packs."""
    totals: dict[str, int] = {}
    num_samples = 0
    for sample in iter_samples(stage):
        kind = sample.media[0].key.split("-")[0] if sample.media else "text"
        totals[kind] = totals.get(kind, 0) + sample.num_tokens
        num_samples += 1
    return {"samples": num_samples, "tokens": totals}


def iter_samples(stage: Path) -> Iterator[PackedSample]:
    """Samples of all packs."""
    from ov2_core.storage.writer import iter_tar_members

    for tar in sorted((stage / "shards").glob("*.tar")):
        with tar.open("rb") as file:
            for _, part, data in iter_tar_members(file):
                if part.name == "json":
                    yield from PackedSamples.model_validate_json(data).samples or []
