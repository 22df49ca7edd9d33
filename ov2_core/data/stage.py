"""STAGE on disk: an index over token shards, written once and read at random.

    stage.json               what the stage is (StageRecord); written last
    packs/part-00000.parquet one row a pack, row groups of `packs_per_block` packs; `packs_per_part` packs a file
    tars.parquet             the tars that packs name by number
    dropped.jsonl            what was tried and left out

Enters: packs in order. Leaves: packs by number. A pack is found by arithmetic and costs at most one range read of its row group, so
opening a stage costs the same whatever its size, and a reader of neighbouring packs reads each row group once.
"""

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store
from ov2_core.storage.writer import canonical_json
from schemas.stage import StagePack, StageRecord, StageTar

STAGE_JSON = "stage.json"
TARS_PARQUET = "tars.parquet"
DROPPED_JSONL = "dropped.jsonl"
PACKS_PER_PART = 16384
_MEDIUM = pa.struct(
    [
        ("key", pa.string()),
        ("kind", pa.string()),
        ("tar", pa.int32()),
        ("byte_offset", pa.int64()),
        ("byte_size", pa.int64()),
    ]
)
_SAMPLE = pa.struct(
    [
        ("source", pa.int16()),
        ("id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("media", pa.list_(_MEDIUM)),
        ("num_tokens", pa.int32()),
        ("num_visual_tokens", pa.int32()),
        ("num_supervised_tokens", pa.int32()),
        ("num_rounds_cut", pa.int32()),
    ]
)
_PACKS = pa.schema(
    [("number", pa.int64()), ("key", pa.string()), ("num_tokens", pa.int32()), ("samples", pa.list_(_SAMPLE))]
)
_TARS = pa.schema(
    [
        ("number", pa.int32()),
        ("run", pa.string()),
        ("name", pa.string()),
        ("digest", pa.string()),
        ("num_bytes", pa.int64()),
    ]
)


def pack_key(number: int) -> str:
    """ps_00000042."""
    return f"ps_{number:08d}"


def part_rel(part: int) -> str:
    return f"packs/part-{part:05d}.parquet"


class StageDigest:
    """The stage's identity: what its packs say and what the tars hold, wherever they lie."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add_pack(self, pack: StagePack) -> None:
        """Packs in order."""
        self._sha256.update(canonical_json(pack) + b"\n")

    def finish(self, tars: Sequence[StageTar]) -> str:
        """Hex."""
        for tar in tars:
            self._sha256.update(f"{tar.number}\0{tar.digest}\0{tar.num_bytes}\n".encode())
        return self._sha256.hexdigest()


@dataclass(slots=True)
class StageWritten:
    """What write_packs leaves."""

    num_packs: int = 0
    digest: str = ""


def write_packs(
    store: Store,
    packs: Iterable[StagePack],
    tars: Callable[[], Sequence[StageTar]],
    *,
    packs_per_block: int,
    packs_per_part: int = PACKS_PER_PART,
) -> StageWritten:
    """All packs and tars; one block and one compressed part are held in memory. The digest covers the packs, and of the tars what
    they hold, not where. `tars` is asked for them once all packs are written.

    Raises:
        ValueError: packs_per_part is no multiple of packs_per_block.
    """
    if packs_per_part % packs_per_block:
        raise ValueError(f"packs_per_part ({packs_per_part}) must be a multiple of packs_per_block ({packs_per_block})")
    digest = StageDigest()
    written = StageWritten()
    sink, parquet, in_part = io.BytesIO(), None, 0
    for block in _chunks(packs, packs_per_block):
        if parquet is None:
            sink, in_part = io.BytesIO(), 0
            parquet = pq.ParquetWriter(sink, _PACKS, compression="zstd")
        for pack in block:
            digest.add_pack(pack)
        parquet.write_table(pa.Table.from_pylist([_row(pack) for pack in block], schema=_PACKS))
        written.num_packs += len(block)
        in_part += len(block)
        if in_part == packs_per_part or len(block) < packs_per_block:
            _finish_part(store, parquet, sink, written.num_packs, packs_per_part)
            parquet = None
    if parquet is not None:
        _finish_part(store, parquet, sink, written.num_packs, packs_per_part)
    named = tars()
    sink = io.BytesIO()
    rows = [tar.model_dump(exclude={"schema_version"}) for tar in named]
    pq.write_table(pa.Table.from_pylist(rows, schema=_TARS), sink)
    store.write_bytes(TARS_PARQUET, sink.getvalue())
    failpoint("after_packs")
    written.digest = digest.finish(named)
    return written


def _finish_part(store: Store, parquet: Any, sink: io.BytesIO, num_packs: int, packs_per_part: int) -> None:
    parquet.close()
    store.write_bytes(part_rel((num_packs - 1) // packs_per_part), sink.getvalue())
    failpoint("mid_packs")


def load_stage(store: Store) -> StageRecord:
    """Raises ValueError where no finished stage stands, with what to do."""
    try:
        data = store.read_bytes(STAGE_JSON)
    except FileNotFoundError:
        raise ValueError(
            f"{store.root} holds no finished stage ({STAGE_JSON}); build it, or go on building it, with `ov2 curriculum`"
        ) from None
    return StageRecord.model_validate_json(data)


def load_tars(store: Store) -> list[StageTar]:
    """Tars by number."""
    return list(TarTable(store))


class TarTable:
    """Tars by number, kept as they stand in the file: a stage of the published corpus names a hundred thousand, a batch a few."""

    def __init__(self, store: Store) -> None:
        self._table = pq.read_table(io.BytesIO(store.read_bytes(TARS_PARQUET)), schema=_TARS).combine_chunks()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, number: int) -> StageTar:
        """Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return StageTar.model_validate(self._table.slice(number, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[StageTar]:
        return (StageTar.model_validate(row) for row in self._table.to_pylist())

    def runs(self) -> list[str]:
        """The token runs, each once."""
        return [str(run) for run in self._table["run"].unique().to_pylist()]


class PackIndex:
    """Packs by number. Thread-safe; keeps the last `cached_blocks` row groups."""

    def __init__(self, store: Store, record: StageRecord, *, cached_blocks: int = 32) -> None:
        self.store, self.record = store, record
        self._cached_blocks = cached_blocks
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._footers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.record.packing.num_packs

    def __getitem__(self, number: int) -> StagePack:
        """Raises IndexError, and ValueError for an index that does not hold what stage.json says."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        number_block, place = divmod(number, self.record.packs_per_block)
        rows = self._block(number_block).slice(place, 1).to_pylist()
        if not rows or rows[0]["number"] != number:
            raise ValueError(
                f"{self.store.root}: pack {number} is not where the index should have it; build the stage anew"
            )
        return StagePack.model_validate(rows[0])

    def __iter__(self) -> Iterator[StagePack]:
        return (self[number] for number in range(len(self)))

    def _block(self, number: int) -> Any:
        with self._lock:
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = _Block()
                while len(self._blocks) > self._cached_blocks:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
        with block.lock:  # one thread reads, the others that want the same block wait for it alone
            if block.table is None:
                block.table = self._read_block(number)
            return block.table

    def _read_block(self, number: int) -> Any:
        part, group = divmod(number, self.record.packs_per_part // self.record.packs_per_block)
        with self.store.open_read(part_rel(part)) as file:
            parquet = pq.ParquetFile(file, metadata=self._footers.get(part))
            self._footers[part] = parquet.metadata
            return parquet.read_row_group(group)


@dataclass(slots=True)
class _Block:
    table: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def _row(pack: StagePack) -> dict[str, Any]:
    row: dict[str, Any] = pack.model_dump(exclude={"schema_version"})
    return row


def _chunks(packs: Iterable[StagePack], size: int) -> Iterator[list[StagePack]]:
    held: list[StagePack] = []
    for pack in packs:
        held.append(pack)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def relocate(run: str, moved: dict[str, str]) -> str:
    """A run's path with the longest matching prefix of `moved` replaced: token shards may lie elsewhere than when built."""
    for prefix in sorted(moved, key=len, reverse=True):
        bare = prefix.rstrip("/")
        if run == bare or run.startswith(bare + "/"):
            return os.fspath(moved[prefix]).rstrip("/") + run[len(bare) :]
    return run
