"""StageLoader: a stage to batches, for any number of ranks and workers, from any point on.

    loader = StageLoader("STAGE", batch_size=1, rank=rank, world_size=world, num_workers=8, seed=0, processor=processor)
    for batch in loader:                       # to the end of the epoch; the next loop reads the next one
        loss = model(**batch.to("cuda").model_inputs()).loss
        checkpoint["loader"] = loader.state_dict()

What is read when is decided by `order.py` alone: one global order from (stage, seed), one cursor (packs that all ranks have
consumed). So the state is a number, equal on all ranks, and any world size, batch size or worker count goes on with exactly the
packs that remain, in the same order. Workers are threads: reading, JPEG decoding and patch arithmetic run outside the
interpreter's lock. At most `prefetch_packs` packs are in the making, whatever the stage's size; batches come out in order.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self

import torch

from ov2_core.data.lengths import layout_digest
from ov2_core.data.order import HeldOut, PackOrder, Reading, Shuffle, Step
from ov2_core.data.packed_batch import LoadedBatch, OnBad, PackDecoder, PackedBatch, PackEncoder
from ov2_core.data.read_pack import open_packs
from ov2_core.data.stage import STAGE_JSON, load_stage
from ov2_core.features.source import FeatureSource
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from ov2_core.storage.index import INDEX_UUID
from schemas.stage import StageRecord

STATE_VERSION = 1


class StageLoader:
    """An iterable of PackedBatch; without a processor, of LoadedBatch. One iteration at a time, a new one ends the last."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 4,
        seed: int = 0,
        processor: LlavaOnevision2Processor | str | os.PathLike[str] | None = None,
        endless: bool = False,
        drop_last: bool = False,
        mixed_blocks: int = 16,
        held_out: int = 0,
        part: Literal["training", "held_out"] = "training",
        prefetch_packs: int | None = None,
        pixel_dtype: torch.dtype = torch.float32,
        pad_to: int | None = None,
        features: FeatureSource | None = None,
        on_bad: OnBad = "raise",
        moved: dict[str, str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            path: STAGE, local or any fsspec URL: an index, stage shards, or a folder of such shards with an Energon index alone.
            batch_size: packs of this rank and step.
            num_workers: threads; 0: everything in the caller's.
            processor: or the folder of one; batches are then tensors (PackedBatch). The stage must have been built with an equal
                one, or without any. None: batches are conversations with decoded pictures (LoadedBatch).
            endless: epochs follow each other without a seam. Else an iteration ends with its epoch, whose last step may be smaller
                (evenly so: a rank has at most one pack more than another, and may have none).
            drop_last: leave out what does not fill a last step.
            held_out, part: so many packs, evenly spaced over the stage, are left out; part "held_out" reads those alone, in order.
            mixed_blocks: blocks (of 64 packs, by default of a stage) whose packs are mixed; 0 for no shuffle.
            prefetch_packs: packs in the making or waiting, at least a batch; by default two a worker.
            pixel_dtype: torch.uint8 leaves normalising to the device and makes batches four times smaller.
            pad_to: tokens of every row; by default the longest pack's.
            on_bad: "skip" leaves out samples (of stage shards: packs) that cannot be read and counts them in `skipped`.
            features: the encoder's outputs for the stage's media, read in place of pictures; closed with the loader.
            moved: {old: new} prefixes of token runs that lie elsewhere than when the stage was built.

        Raises:
            ValueError: no stage there, another processor than it was built with, or numbers that do not fit.
        """
        self.store = Store(path, storage_options)
        self.record: StageRecord | None = load_stage(self.store) if self.store.exists(STAGE_JSON) else None
        self.processor = (
            processor
            if processor is None or isinstance(processor, LlavaOnevision2Processor)
            else LlavaOnevision2Processor.from_pretrained(processor)
        )
        if (
            self.record is not None
            and self.processor is not None
            and self.record.lengths == "exact"
            and self.record.tokenizer_digest != layout_digest(self.processor)
        ):
            raise ValueError(
                f"{self.store.root} was built with another tokenizer, system line or patch size than this one; token counts "
                "would differ: give the processor of --model, or build the stage anew"
            )
        if num_workers < 0 or on_bad not in ("raise", "skip"):
            raise ValueError(f"num_workers must be >= 0 and on_bad raise or skip, got {num_workers} and {on_bad!r}")
        self._packs = open_packs(self.store, self.record, moved=moved or {}, cached_blocks=mixed_blocks + 4)
        self.held_out = HeldOut(num_packs=len(self._packs), num_held_out=held_out)
        if part == "held_out":
            if not held_out:
                raise ValueError("part 'held_out' needs held_out > 0")
            mixed_blocks = 0
        num_packs = held_out if part == "held_out" else len(self._packs) - held_out
        shuffle = Shuffle(seed=seed, block_packs=self._packs.block_packs, mixed_blocks=mixed_blocks)
        self.order = PackOrder(num_packs, shuffle)
        self._part = part
        self.reading = Reading(
            num_packs=num_packs,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            endless=endless,
            drop_last=drop_last,
        )
        if drop_last and self.reading.global_batch > num_packs:
            raise ValueError(
                f"drop_last leaves nothing: a step takes {self.reading.global_batch} packs, there are {num_packs}"
            )
        self._encoder: Any = PackDecoder()
        if self.processor is not None:
            exact = self.record is None or self.record.lengths == "exact"
            self._encoder = PackEncoder(self.processor, pixel_dtype=pixel_dtype, exact_lengths=exact, features=features)
        self._features = features
        self._num_workers, self._on_bad, self._pad_to = num_workers, on_bad, pad_to
        self._prefetch_packs = max(batch_size, 2 * num_workers if prefetch_packs is None else prefetch_packs)
        self._cursor = 0
        self._iteration = 0
        self._pool: ThreadPoolExecutor | None = None
        self.skipped: Counter[str] = Counter()
        """Samples left out by this rank so far, by the tar at fault."""

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        each = self.reading.global_batch
        whole, left = divmod(self.reading.num_packs, each)
        return whole + (1 if left and not self.reading.drop_last else 0)

    @property
    def epoch(self) -> int:
        """Of the next batch."""
        return self._cursor // self.reading.num_packs

    def packs_between(self, start: int, stop: int) -> list[int]:
        """Numbers of the packs at the cursor's positions [start, stop), whichever rank reads them."""
        indices = self.order.packs(start, stop)
        if self._part == "held_out":
            return [int(number) for number in self.held_out.held_out()[indices]]
        return [int(number) for number in self.held_out.training(indices)]

    def state_dict(self) -> dict[str, Any]:
        """What has been delivered: the batches that the loop has received, however many were read ahead. Equal on all ranks."""
        return {
            "version": STATE_VERSION,
            "stage": self._stage_digest(),
            "num_packs": self.reading.num_packs,
            "held_out": self.held_out.num_held_out,
            "part": self._part,
            "seed": self.order.shuffle.seed,
            "block_packs": self.order.shuffle.block_packs,
            "mixed_blocks": self.order.shuffle.mixed_blocks,
            "cursor": self._cursor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of any world size, batch size and worker count; ends a running iteration.

        Raises:
            ValueError: the state is of another stage or order; each difference is named.
        """
        here = self.state_dict()
        differ = [
            f"{name}: {state.get(name)!r} there, {here[name]!r} here"
            for name in here
            if name != "cursor" and state.get(name) != here[name]
        ]
        if differ:
            raise ValueError(
                "the loader's state is of another order; the remaining packs would not be the same:\n  "
                + "\n  ".join(differ)
            )
        self._iteration += 1
        self._cursor = int(state["cursor"])

    def __iter__(self) -> Iterator[Any]:
        self._iteration += 1
        return self._batches(self._iteration)

    def close(self) -> None:
        """Ends a running iteration and its workers."""
        self._iteration += 1
        self._stop_pool()
        self._packs.close()
        if self._features is not None:
            self._features.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _batches(self, iteration: int) -> Iterator[Any]:
        steps = self.reading.steps(self._cursor)
        end = self.reading.epoch_end(self._cursor)
        ahead: deque[tuple[Step, list[Future[Any]]]] = deque()
        num_ahead = 0
        try:
            for step in steps:
                futures = [self._start(number) for number in self.packs_between(step.start, step.stop)]
                ahead.append((step, futures))
                num_ahead += len(futures)
                while ahead and num_ahead + self.reading.batch_size > self._prefetch_packs:
                    num_ahead -= len(ahead[0][1])
                    yield self._deliver(*ahead.popleft())
                    if iteration != self._iteration:
                        return
            while ahead:
                yield self._deliver(*ahead.popleft())
                if iteration != self._iteration:
                    return
            if not self.reading.endless:
                self._cursor = end  # what drop_last leaves out is behind us
        finally:
            for _, futures in ahead:
                for future in futures:
                    future.cancel()
            if iteration == self._iteration:
                self._stop_pool()

    def _deliver(self, step: Step, futures: list[Future[Any]]) -> PackedBatch | LoadedBatch:
        batch: PackedBatch | LoadedBatch = self._encoder.collate(
            [future.result() for future in futures], pad_to=self._pad_to
        )
        self.skipped.update(batch.skipped)
        self._cursor = step.cursor
        return batch

    def _start(self, number: int) -> Future[Any]:
        if self._num_workers == 0:
            future: Future[Any] = Future()
            try:
                future.set_result(self._make(number))
            except Exception as error:
                future.set_exception(error)
            return future
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="stage-loader")
        return self._pool.submit(self._make, number)

    def _make(self, number: int) -> Any:
        loaded = self._packs.load(number, skip_bad=self._on_bad == "skip")
        return self._encoder.encode(loaded, on_bad=self._on_bad)

    def _stop_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _stage_digest(self) -> str:
        if self.record is not None:
            return self.record.digest
        return hashlib.sha256(self.store.read_bytes(INDEX_UUID)).hexdigest()
