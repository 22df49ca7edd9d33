"""What it costs to go on in the middle of a large stage: opening the loader, loading its state, the first batch.

Enters: sizes. Leaves: seconds and peak memory by position, for an index over token shards and for stage shards. The stages are
written by the project's own writers. Text is synthetic; all tars of the index are hard links to one small token shard, so that a
stage of any size can be read anywhere; the packs of the stage shards are text alone. Each measurement is a process of its own,
counted once its imports are done, with the stage's index put out of the page cache before.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ov2_core import config as configs
from ov2_core.data.keys import key_of
from ov2_core.data.stage import STAGE_JSON, pack_key, write_packs
from ov2_core.make_sample import GENERATOR
from ov2_core.storage.commit import commit_shard
from ov2_core.storage.files import Store
from ov2_core.storage.index import write_index
from ov2_core.storage.layout import shard_name
from ov2_core.storage.writer import TarWritten, canonical_json, encode_sample, write_tar
from ov2_core.tokenize_video import tokenize_image
from schemas.shard import CommittedSample
from schemas.stage import (
    PackedSample,
    PackedSamples,
    PackingStats,
    StageMedium,
    StagePack,
    StageRecord,
    StageSample,
    StageSource,
    StageTar,
)
from schemas.tokens import Provenance
from schemas.video import Message

PACKS_PER_BLOCK, BLOCKS_PER_PART = 64, 256
SEQUENCE_LENGTH = 32_768
POSITIONS = {"start": 0.0, "middle": 0.5, "near the end": 0.9995}
_ID = "bench/still"
_LINKS = 50_000


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `python -m jobs.bench_resume`."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench_resume", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packs", type=int, default=200_000)
    parser.add_argument("--samples-per-pack", type=int, default=10)
    parser.add_argument("--tars", type=int, default=140_000, help="1 GB each: the size of the published corpus")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the stages here, or take those that are there")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "SHARE"), help=argparse.SUPPRESS)
    args = parser.parse_args(None if argv is None else list(argv))
    if args.one:
        print(json.dumps(resume_once(args.one[0], float(args.one[1]), args.workers)))
        return 0
    with tempfile.TemporaryDirectory(prefix="ov2-bench-") as temporary:
        folder = args.folder or Path(temporary)
        report = bench_resume(
            folder,
            num_packs=args.packs,
            workers=args.workers,
            samples_per_pack=args.samples_per_pack,
            num_tars=args.tars,
        )
    print(table_text(report))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def bench_resume(
    folder: Path, *, num_packs: int, workers: int, samples_per_pack: int = 10, num_tars: int = 140_000
) -> dict[str, Any]:
    """Makes both stages where they are not there, and measures every position in a process of its own."""
    report: dict[str, Any] = {
        "packs": num_packs,
        "samples": num_packs * samples_per_pack,
        "workers": workers,
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "stages": {},
    }
    for form in ("index", "shards"):
        path = folder / form
        began = time.perf_counter()
        if not (path / STAGE_JSON).exists():
            if form == "index":
                make_large_index(path, num_packs, samples_per_pack, num_tars)
            else:
                make_large_shards(path, num_packs, samples_per_pack)
        made = time.perf_counter() - began
        index = index_files(path)
        found: dict[str, Any] = {"made_seconds": made, "index_bytes": sum(file.stat().st_size for file in index)}
        for name, share in POSITIONS.items():
            put_out_of_cache(index)
            command = [sys.executable, "-m", "jobs.bench_resume", "--one", str(path), str(share)]
            found[name] = json.loads(
                subprocess.run([*command, "--workers", str(workers)], check=True, capture_output=True).stdout
            )
        report["stages"][form] = found
    return report


def resume_once(path: str, share: float, workers: int) -> dict[str, float]:
    """Seconds and memory of one resume in this process."""
    from ov2_core.data.loader import StageLoader

    before = _peak_mib()
    began = time.perf_counter()
    with StageLoader(path, batch_size=1, num_workers=workers) as loader:
        opened = time.perf_counter()
        state = loader.state_dict()
        loader.load_state_dict({**state, "cursor": int(share * state["num_packs"])})
        batch = next(iter(loader))
        first = time.perf_counter()
    assert len(batch.keys) == 1
    return {
        "seconds": first - began,
        "open_seconds": opened - began,
        "first_batch_seconds": first - opened,
        "peak_mib": _peak_mib(),
        "peak_more_mib": _peak_mib() - before,
    }


def index_files(path: Path) -> list[Path]:
    """What a reader needs beside the tars."""
    sidecars = path.glob("shards/*.idx")
    return [
        path / STAGE_JSON,
        *path.glob("packs/*"),
        *path.glob("*.parquet"),
        *path.glob(".nv-meta/*"),
        *path.glob(".nv-meta/.*"),
        *sidecars,
    ]


def put_out_of_cache(files: Iterable[Path]) -> None:
    """So that the next read comes from the disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def make_large_index(path: Path, num_packs: int, samples_per_pack: int, num_tars: int) -> None:
    """An index of samples of one still each, over so many tars."""
    run = path / "run" / "shards"
    run.mkdir(parents=True)
    tar, key = _token_tar(run)
    names = [f"shards/{shard_name(i)}.tar" for i in range(num_tars)]
    for i, name in enumerate(names[1:], start=1):
        if i % _LINKS:
            os.link(path / "run" / names[i - i % _LINKS], path / "run" / name)
        else:  # file systems bound the links of one file
            shutil.copyfile(path / "run" / names[0], path / "run" / name)
    tokens = SEQUENCE_LENGTH // samples_per_pack
    place = {"key": key, "kind": "image", "byte_offset": tar.samples[0].byte_offset}

    def packs() -> Iterator[StagePack]:
        for number in range(num_packs):
            medium = StageMedium(**place, byte_size=tar.samples[0].byte_size, tar=number * num_tars // num_packs)
            samples = [
                StageSample(
                    source=0,
                    id=f"{number}-{i}",
                    messages=_turns(number * samples_per_pack + i, "<image>\n"),
                    media=[medium],
                    num_tokens=tokens,
                    num_visual_tokens=tokens // 2,
                    num_supervised_tokens=tokens // 4,
                )
                for i in range(samples_per_pack)
            ]
            yield StagePack(number=number, key=pack_key(number), num_tokens=tokens * samples_per_pack, samples=samples)

    def tars() -> list[StageTar]:
        return [
            StageTar(number=i, run=str(path / "run"), name=name, digest=tar.digest, num_bytes=tar.num_bytes)
            for i, name in enumerate(names)
        ]

    store = Store(path)
    per_part = PACKS_PER_BLOCK * BLOCKS_PER_PART
    written = write_packs(store, packs(), tars, packs_per_block=PACKS_PER_BLOCK, packs_per_part=per_part)
    record = stage_record(num_packs, samples_per_pack, digest=written.digest, num_tars=num_tars)
    store.write_bytes(STAGE_JSON, record.model_dump_json().encode())


def make_large_shards(path: Path, num_packs: int, samples_per_pack: int, *, packs_per_shard: int = 500) -> None:
    """Stage shards of text, all packs with one content."""
    store = Store(path)
    turns = [_turns(i, "") for i in range(samples_per_pack)]
    samples = [
        PackedSample(source="bench", id=str(i), messages=pair, media=[], num_tokens=100) for i, pair in enumerate(turns)
    ]
    content = canonical_json(
        PackedSamples(
            images=[[]] * samples_per_pack,
            prompts=[[pair[0].content] for pair in turns],
            captions=[[pair[1].content] for pair in turns],
            sample_count=samples_per_pack,
            patch_positions=[[]] * samples_per_pack,
            fps=[None] * samples_per_pack,
            timestamp_decimal=[1] * samples_per_pack,
            samples=samples,
        )
    )
    path.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, num_packs, packs_per_shard)):
        numbers = range(start, min(start + packs_per_shard, num_packs))
        tar = write_tar(str(path / "new.tar"), ((pack_key(number), [("json", content)]) for number in numbers))
        commit_packs(store, shard, start, tar)
    write_index(store)
    record = stage_record(num_packs, samples_per_pack, digest="bench", form="shards")
    store.write_bytes(STAGE_JSON, record.model_dump_json().encode())


def commit_packs(store: Store, shard: int, first: int, tar: TarWritten, *, num_images: int = 0) -> None:
    """Commits a tar of packs, the first of which has this number."""
    samples = [
        CommittedSample(
            line=first + i + 1,
            key=placed.key,
            id=placed.key,
            byte_offset=placed.byte_offset,
            byte_size=placed.byte_size,
            parts=placed.parts,
            num_images=num_images,
            num_tokens=num_images * 196,
            num_groups=num_images // 4,
            duration_seconds=0.0,
            codec="pack",
            mode="pack",
            flags=[],
            cpu_seconds=0.0,
            peak_rss_bytes=0,
        )
        for i, placed in enumerate(tar.samples)
    ]
    none: Any = {"filtered": [], "quarantined": [], "config_digest": "", "code_version": ""}
    times: Any = {"started_unix_seconds": 0.0, "finished_unix_seconds": 0.0}
    commit_shard(store, shard=shard, tar=tar, samples=samples, **none, **times)


def stage_record(
    num_packs: int,
    samples_per_pack: int,
    *,
    digest: str,
    num_tars: int = 0,
    form: Any = "index",
    packs_per_block: int = PACKS_PER_BLOCK,
    packs_per_part: int = PACKS_PER_BLOCK * BLOCKS_PER_PART,
) -> StageRecord:
    """stage.json of a synthetic stage of one source."""
    num_samples = num_packs * samples_per_pack
    num_tokens = SEQUENCE_LENGTH // samples_per_pack * num_samples
    source = StageSource(
        name="bench",
        slot="bench",
        importer="records",
        path="",
        weight=1.0,
        count=None,
        num_available=num_samples,
        num_quarantined=0,
        num_samples=num_samples,
        num_tokens=num_tokens,
        num_visual_tokens=0,
        num_supervised_tokens=0,
        num_rounds_cut=0,
        num_bytes=0,
        samples_by_modality={},
        tokens_by_modality={},
        num_tried=num_samples,
        dropped={},
    )
    return StageRecord(
        recipe="bench",
        recipe_version=1,
        config={"max_samples": 200},
        seed=0,
        form=form,
        tokenizer_digest="",
        packs_per_block=packs_per_block,
        packs_per_part=packs_per_part,
        num_tars=num_tars,
        digest=digest,
        sources=[source],
        missing_slots=[],
        packing=PackingStats(
            sequence_length=SEQUENCE_LENGTH,
            num_packs=num_packs,
            num_samples=num_samples,
            num_tokens=num_tokens,
            fill=num_tokens / (num_packs * SEQUENCE_LENGTH),
            max_samples=samples_per_pack,
            samples_per_pack=[0] * samples_per_pack + [num_packs],
            sample_tokens=[],
        ),
        generator=GENERATOR,
    )


def _turns(number: int, lead: str) -> list[Message]:
    """About 400 characters that differ from sample to sample."""
    words = " ".join(f"{(number * 2654435761 + i * 40503) % 99991}" for i in range(60))
    return [Message(role="user", content=f"{lead}What is {number}?"), Message(role="assistant", content=words)]


def _token_tar(run: Path) -> tuple[TarWritten, str]:
    """One token shard with a still of 280 x 280; and the still's key."""
    config = configs.recipe("stills")
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (280, 280, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture, format="PNG")
    tokenized = tokenize_image(io.BytesIO(picture.getvalue()), config.tokenizer)
    provenance = Provenance(
        id=_ID,
        uri=_ID,
        start_seconds=None,
        end_seconds=None,
        first_shown_seconds=0.0,
        source="bench",
        tags=[],
        manifest_line=1,
        size_bytes=len(picture.getvalue()),
        codec=tokenized.codec,
        width_px=280,
        height_px=280,
        num_frames=1,
        duration_seconds=0.0,
        generator=GENERATOR,
        config_digest=configs.digest(config),
    )
    key = key_of(_ID)
    sample = encode_sample(tokenized, key=key, provenance=provenance, messages=[], config=config.tokenizer)
    return write_tar(str(run / f"{shard_name(0)}.tar"), [(key, sample.members)]), key


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table_text(report: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [
        f"{report['packs']:,} packs of {report['samples']:,} samples, {report['workers']} workers, {report['cpus']} CPUs, "
        f"load {report['load_average']:.1f}",
        f"{'form':8s} {'index MB':>9s} {'position':14s} {'resume s':>9s} {'open s':>8s} {'first batch s':>14s} {'more MiB':>9s}",
    ]
    for form, found in report["stages"].items():
        for name in POSITIONS:
            one = found[name]
            lines.append(
                f"{form:8s} {found['index_bytes'] / 1e6:9.1f} {name:14s} {one['seconds']:9.3f} {one['open_seconds']:8.3f} "
                f"{one['first_batch_seconds']:14.3f} {one['peak_more_mib']:9.1f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
