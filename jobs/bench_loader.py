"""The loader against a bare tar read, webdataset and Energon: the same stage shards, the same work, the same number of workers.

The work is what any trainer needs of a pack: its JSON read, positions parsed, every picture decoded to RGB. webdataset and Energon
do it in worker processes, as they are made to, and hand tensors over in shared memory; our loader in threads. "bare read" takes
the members' bytes alone, one after the other, in one thread. Every reader runs once a round, in turn, and the best round counts.
Packing is timed beside first-fit decreasing and upstream's settings; resumes in large stages by bench_resume.py. Synthetic shards
are made where none are given.

Rates are taken from the first batch on; what comes before is told apart, as start.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.bench_resume import bench_resume, commit_packs
from jobs.bench_resume import table_text as resume_text
from ov2_core.data.packing import PackingConfig, pack
from ov2_core.storage.files import Store
from ov2_core.storage.index import write_index
from ov2_core.storage.writer import Member, canonical_json, iter_tar_members, write_tar
from schemas.stage import PackedMedium, PackedSample, PackedSamples
from schemas.video import Message

SIDE_PX = 392
Packs = Iterator[tuple[int, int]]
"""(pictures, bytes of the pack) as they are delivered."""


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench loader`."""
    parser = argparse.ArgumentParser(prog="ov2 bench loader", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", help="a folder with stage shards; by default synthetic ones are made")
    parser.add_argument("--packs", type=int, default=48, help="synthetic packs")
    parser.add_argument("--images", type=int, default=48, help="pictures of a synthetic pack")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1_000_000, help="lengths to pack; 0 leaves packing out")
    parser.add_argument(
        "--resume-packs", type=int, default=0, help="resume in stages of so many packs too (200000: minutes)"
    )
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args(None if argv is None else list(argv))
    with tempfile.TemporaryDirectory(prefix="ov2-bench-") as folder:
        path = args.stage or str(make_stage(Path(folder), num_packs=args.packs, num_images=args.images))
        report = bench_readers(path, workers=args.workers, rounds=args.rounds)
        if args.resume_packs:
            report["resume"] = bench_resume(Path(folder) / "large", num_packs=args.resume_packs, workers=args.workers)
    if args.samples:
        report["packing"] = bench_packing(args.samples)
    print(table_text(report))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def bench_readers(path: str, *, workers: int, rounds: int) -> dict[str, Any]:
    """Rates of every reader over all packs of a stage."""
    readers: dict[str, Callable[[], Packs]] = {
        "bare read": lambda: _bare(path),
        "ours": lambda: _ours(path, workers),
        "webdataset": lambda: _webdataset(path, workers),
        "energon": lambda: _energon(path, workers),
    }
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, reader in readers.items():
            found = _time(reader)
            if name not in best or found["packs_per_second"] > best[name]["packs_per_second"]:
                best[name] = found
    counts = {(found["packs"], found["bytes"]) for name, found in best.items()}
    assert len(counts) == 1, f"readers read different things: {best}"
    return {
        "workers": workers,
        "rounds": rounds,
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "versions": {name: metadata.version(name) for name in ("webdataset", "megatron-energon", "torch", "pillow")},
        "readers": best,
        "resume_seconds": _resume(path, workers),
    }


def _time(reader: Callable[[], Packs]) -> dict[str, float]:
    began = time.perf_counter()
    first = 0.0
    num_packs = num_images = num_bytes = 0
    for images, size in reader():
        if not num_packs:
            first = time.perf_counter()
        num_packs += 1
        num_images += images
        num_bytes += size
    end = time.perf_counter()
    share = (num_packs - 1) / num_packs
    seconds = max(end - first, 1e-9)
    return {
        "packs": num_packs,
        "images": num_images,
        "bytes": num_bytes,
        "start_seconds": first - began,
        "total_seconds": end - began,
        "packs_per_second": (num_packs - 1) / seconds,
        "images_per_second": share * num_images / seconds,
        "mb_per_second": share * num_bytes / 1e6 / seconds,
    }


def _bare(path: str) -> Packs:
    for tar in _tars(path):
        with open(tar, "rb") as file:
            key, images, size = "", 0, 0
            for member_key, part, data in iter_tar_members(file):
                if member_key != key and key:
                    yield images, size
                    images = size = 0
                key = member_key
                images += part.name.endswith(".jpg")
                size += 0 if part.name == "json" else len(data)
            yield images, size


def _ours(path: str, workers: int) -> Packs:
    from ov2_core.data.loader import StageLoader

    with StageLoader(path, batch_size=1, num_workers=workers) as loader:
        for batch in loader:
            yield sum(v.num_images for p in batch.packs for s in p.samples for v in s.media), batch.num_bytes


def decode(members: dict[str, Any]) -> tuple[int, int, Any]:
    """(pictures, bytes, tensors) of one pack: the work that all readers do."""
    from ov2_core.data.packed_batch import media_tensors
    from ov2_core.data.read_pack import show_packed

    samples = show_packed({name: data for name, data in members.items() if not name.startswith("__")}, tar="")
    tensors = media_tensors(samples)
    return sum(len(pictures) for pictures, _ in tensors), sum(sample.num_bytes for sample in samples), tensors


def _webdataset(path: str, workers: int) -> Packs:
    import webdataset

    dataset = webdataset.WebDataset(_tars(path), shardshuffle=False, empty_check=False).map(decode)
    for images, size, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield images, size


def _energon(path: str, workers: int) -> Packs:
    from megatron import energon

    @energon.stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return {**energon.basic_sample_keys(sample), "pack": decode(sample)}

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

        def batch(self, samples: list[dict[str, Any]]) -> Any:
            return [sample["pack"] for sample in samples]

        def encode_batch(self, batch: Any) -> Any:
            return batch

    dataset = energon.get_train_dataset(
        path,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
        repeat=False,
    )
    for batch in energon.get_loader(dataset):
        for images, size, _ in batch:
            yield images, size


def _resume(path: str, workers: int) -> dict[str, float]:
    """Seconds from an open process to the first batch, by position."""
    from ov2_core.data.loader import StageLoader

    found = {}
    for name, share in (("start", 0.0), ("middle", 0.5), ("end", 0.95)):
        began = time.perf_counter()
        with StageLoader(path, batch_size=1, num_workers=workers) as loader:
            state = loader.state_dict()
            state["cursor"] = int(share * state["num_packs"])
            loader.load_state_dict(state)
            next(iter(loader))
            found[name] = time.perf_counter() - began
    return found


def bench_packing(num_samples: int) -> dict[str, dict[str, float]]:
    """Fill and time on length mixes of the published recipes; ours, upstream's settings (no window) and first-fit decreasing."""
    rng = np.random.default_rng(0)
    buckets = {(4, 30): 4.2, (30, 60): 2.7, (60, 90): 0.7, (200, 340): 0.35}
    weights = np.array(list(buckets.values()))
    spans = np.array(list(buckets))[rng.choice(len(buckets), num_samples, p=weights / weights.sum())]
    captions = rng.integers(spans[:, 0], spans[:, 1] + 1) * 205 + rng.integers(100, 1500, num_samples)
    mixes = {
        "four caption buckets, packs of 73,728": (73_728, captions),
        "the first three, packs of 32,768": (32_768, captions[captions <= 32_768]),
        "10,000 to 32,000 tokens, packs of 73,728": (73_728, rng.integers(10_000, 32_001, num_samples)),
        "10,000 to 32,000 tokens, packs of 32,768": (32_768, rng.integers(10_000, 32_001, num_samples)),
    }
    pack([1, 2], PackingConfig(sequence_length=4))  # compiled before it is timed
    found = {}
    for name, (limit, lengths) in mixes.items():
        began = time.perf_counter()
        packs = pack(lengths, PackingConfig(sequence_length=limit))
        seconds = time.perf_counter() - began
        whole = pack(lengths, PackingConfig(sequence_length=limit, window_samples=len(lengths)))
        found[name] = {
            "seconds": seconds,
            "samples": len(lengths),
            "packs": len(packs),
            "fill": packs.fill(lengths, limit),
            "fill_upstream": whole.fill(lengths, limit),
            "fill_first_fit": first_fit_fill(lengths, limit),
            "fill_at_most": fill_bound(lengths, limit),
        }
    return found


def first_fit_fill(lengths: np.ndarray[Any, Any], limit: int, *, num: int = 20_000, max_samples: int = 200) -> float:
    """Fill of first-fit decreasing over the first `num` samples: a scan over all open packs for each."""
    room = np.zeros(num, np.int64)
    counts = np.zeros(num, np.int64)
    num_packs = 0
    some = np.sort(lengths[:num])[::-1]
    for length in some.tolist():
        fits = (room[:num_packs] >= length) & (counts[:num_packs] < max_samples)
        at = int(fits.argmax()) if num_packs and fits.any() else num_packs
        if at == num_packs:
            room[at] = limit
            num_packs += 1
        room[at] -= length
        counts[at] += 1
    return float(some.sum() / (num_packs * limit))


def fill_bound(lengths: np.ndarray[Any, Any], limit: int) -> float:
    """No packing can fill more (Martello and Toth's bound L2): samples above half a pack need one each, and beside them fits no
    more than what they leave."""
    most = 0
    for small in np.unique(np.linspace(0, limit // 2, 200).astype(np.int64)).tolist():
        large = lengths[lengths > limit - small]
        middle = lengths[(lengths > limit // 2) & (lengths <= limit - small)]
        little = lengths[(lengths >= max(small, 1)) & (lengths <= limit // 2)]
        beside = len(middle) * limit - int(middle.sum())
        more = max(0, -(-(int(little.sum()) - beside) // limit))
        most = max(most, len(large) + len(middle) + more)
    least = max(most, -(-int(lengths.sum()) // limit))
    return float(lengths.sum() / (least * limit))


def make_stage(folder: Path, *, num_packs: int, num_images: int, packs_per_shard: int = 12) -> Path:
    """Stage shards of synthetic pictures (gradients, edges and noise; about 60 KB each), one video a pack."""
    store = Store(folder)
    rng = np.random.default_rng(0)
    pictures = [_picture(rng) for _ in range(16)]
    for shard, start in enumerate(range(0, num_packs, packs_per_shard)):
        numbers = range(start, min(start + packs_per_shard, num_packs))
        packs = [(f"ps_{number:08d}", _members(number, num_images, pictures)) for number in numbers]
        tar = write_tar(str(folder / "new.tar"), packs)
        commit_packs(store, shard, start, tar, num_images=num_images)
    write_index(store)
    return folder


def _picture(rng: np.random.Generator) -> bytes:
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    base = np.stack([x * rng.uniform(0.2, 0.6), y * rng.uniform(0.2, 0.6), (x + y) * 0.3], axis=-1)
    base[(x // 40 + y // 56) % 2 == 0] += 60
    noisy = np.clip(base + rng.normal(0, 7, base.shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, format="JPEG", quality=95)
    return out.getvalue()


def _members(number: int, num_images: int, pictures: list[bytes]) -> list[Member]:
    side = SIDE_PX // 14
    members: list[Member] = []
    for j in range(num_images):
        h, w = np.mgrid[0:side, 0:side]
        positions = np.stack([np.full(side * side, j), h.reshape(-1), w.reshape(-1)], axis=1).astype("<i4")
        out = io.BytesIO()
        np.save(out, positions)
        members += [(f"img0_{j}.jpg", pictures[(number + j) % len(pictures)]), (f"img0_{j}.npy", out.getvalue())]
    medium = PackedMedium(
        key=f"clip-{number}",
        kind="video",
        group_images=[min(4, num_images - first) for first in range(0, num_images, 4)],
        rows=side,
        columns=side,
        fps=1.0,
        timestamp_decimal=1,
        patch_px=14,
        merge=2,
    )
    turns = [Message(role="user", content="<video>\nWhat happens?"), Message(role="assistant", content="Edges move.")]
    record = PackedSamples(
        images=[[f"img0_{j}.jpg" for j in range(num_images)]],
        prompts=[[turns[0].content]],
        captions=[[turns[1].content]],
        sample_count=1,
        patch_positions=[[f"img0_{j}.npy" for j in range(num_images)]],
        fps=[1.0],
        timestamp_decimal=[1],
        samples=[
            PackedSample(source="bench", id=str(number), messages=turns, media=[medium], num_tokens=num_images * 196)
        ],
    )
    return [*members, ("json", canonical_json(record))]


def _tars(path: str) -> list[str]:
    return sorted(str(tar) for tar in (Path(path) / "shards").glob("*.tar"))


def table_text(report: dict[str, Any]) -> str:
    """The numbers for people."""
    ours = report["readers"]["ours"]["packs_per_second"]
    lines = [
        f"{report['workers']} workers, {report['cpus']} CPUs, load {report['load_average']:.1f}, best of {report['rounds']} rounds",
        f"{'reader':12s} {'packs/s':>8s} {'images/s':>9s} {'MB/s':>8s} {'start s':>8s} {'ours / it':>10s}",
    ]
    for name, found in report["readers"].items():
        lines.append(
            f"{name:12s} {found['packs_per_second']:8.2f} {found['images_per_second']:9.1f} {found['mb_per_second']:8.1f} "
            f"{found['start_seconds']:8.2f} {ours / found['packs_per_second']:10.2f}"
        )
    resume = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report["resume_seconds"].items())
    lines.append(f"resume to the first batch: {resume}")
    if "resume" in report:
        lines.append(resume_text(report["resume"]))
    for name, found in report.get("packing", {}).items():
        lines.append(
            f"packing, {name}: fill {found['fill']:.2%} in {found['seconds']:.1f} s ({found['samples']:,} samples); "
            f"no window {found['fill_upstream']:.2%}, first-fit {found['fill_first_fit']:.2%}, bound {found['fill_at_most']:.2%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
