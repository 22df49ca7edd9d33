"""Binds every token, caption and feature to its video: clips whose pixels say who they are, by workers that finish out of order.

Enters: options. Leaves: counts and a list of mismatches; the exit code is 1 where there is one. Every 28-px block of a clip names
its video, frame, row and column, and its caption names the video. The clips differ in size, length, rate and codec, so that
nothing fits by accident; a stand-in delays rows at random and, with workers, ends the worker under some; after each ten clips
comes a broken file, and after each five one that vanishes between the plan and its turn, so that it falls at once behind a clip
that takes its time. Read back are the published tars by webdataset (not by our own reader), and the features of an encoder
that lets pixels through, made in batches that hold parts of several samples.
"""

import argparse
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.bench_markdown import write_section
from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.evals.clips import CANARY_BLOCK_PX, Canary, read_canary, write_canary_clip
from ov2_core.make_sample import SampleOutcome, make_sample
from ov2_core.rounds import load_rounds
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run
from pipelines.options import RunOptions
from pipelines.plan_videos import plan_videos
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import PlannedRow

BEGIN, END = "<!-- canary: begin -->", "<!-- canary: end -->"
PATCHES_A_BLOCK = 2
TOKENS_PER_BATCH = 190
"""No multiple of a clip's blocks, so that batches hold parts of several samples."""
_CODECS = (("libx264", ".mp4"), ("libx264", ".mkv"), ("libx265", ".mp4"), ("libvpx-vp9", ".webm"))


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench canary`."""
    parser = argparse.ArgumentParser(prog="ov2 bench canary", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--recipe", action="append", help="default: evidence-8 and uniform-4, one run each")
    parser.add_argument("--workers", type=int, default=2, help="0: in this process, without Ray and without crashes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-features", action="store_true", help="tokens and captions alone, without torch")
    parser.add_argument("--folder", type=Path, help="keep the clips and the runs here")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    if args.clips < 1:
        parser.error(f"--clips must be >= 1, got {args.clips}")
    reports = []
    with tempfile.TemporaryDirectory(prefix="ov2-canary-") as temporary:
        folder = args.folder or Path(temporary)
        manifest = write_corpus(folder, num_clips=args.clips, seed=args.seed)
        for name in args.recipe or ["evidence-8", "uniform-4"]:
            store = Store(folder / f"run-{name}")
            report = run_tokens(manifest, store, recipe_name=name, workers=args.workers, seed=args.seed)
            if not args.no_features:
                of_features = run_features(store, folder, workers=args.workers)
                report |= of_features | {"mismatches": report["mismatches"] + of_features["mismatches"]}
            reports.append({"recipe": name, "workers": args.workers, "clips": args.clips, "seed": args.seed, **report})
    print(table_text(reports))
    if args.out is not None:
        args.out.write_text(json.dumps(reports, indent=2) + "\n")
    if args.markdown is not None:
        write_section(table_text(reports), args.markdown, begin=BEGIN, end=END, heading="## Binding canary")
    mismatches = [mismatch for report in reports for mismatch in report["mismatches"]]
    for mismatch in mismatches:
        print(f"mismatch: {mismatch}", file=sys.stderr)
    return 1 if mismatches else 0


def write_corpus(folder: Path, *, num_clips: int, seed: int) -> Path:
    """`num_clips` canary clips, a broken file after each ten, one to vanish after each five, and their manifest in an order of its
    own."""
    rng = np.random.default_rng(seed)
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rows = []
    for video_id in range(num_clips):
        codec, suffix = _CODECS[int(rng.integers(len(_CODECS)))]
        path = clips / f"{video_id:05d}{suffix}"
        write_canary_clip(
            path,
            video_id=video_id,
            num_frames=int(rng.integers(8, 60)),
            fps=float(rng.choice([10, 24, 30])),
            columns=int(rng.integers(4, 8)),
            rows=int(rng.integers(3, 6)),
            codec=codec,
        )
        rows.append({"video": str(path), "id": f"canary-{video_id}", "caption": f"Canary {video_id}."})
        if video_id % 5 == 4:
            rows.append(
                {"video": str(clips / f"gone-{video_id:05d}{suffix}"), "id": f"gone-{video_id}", "caption": "Gone."}
            )
        if video_id % 10 == 9:
            broken = clips / f"{video_id:05d}-broken.mp4"
            broken.write_bytes(path.read_bytes()[:200])
            rows.append({"video": str(broken), "id": f"broken-{video_id}", "caption": "Nothing."})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(rows[i]) + "\n" for i in rng.permutation(len(rows))))
    return manifest


def run_tokens(manifest: Path, store: Store, *, recipe_name: str, workers: int, seed: int) -> dict[str, Any]:
    """Tokenizes the corpus and reads every block and caption back."""
    config = with_overrides(recipe(recipe_name), {"shards.max_samples": "16"})
    marks = Path(store.root).parent / "crashed"
    marks.mkdir(exist_ok=True)
    make = _DisturbedMake(seed=seed, crash_folder=str(marks) if workers else None)
    options = RunOptions(workers=workers, progress="off")
    began = time.monotonic()
    there = [json.loads(line) for line in manifest.read_text().splitlines()]
    vanishing = [Path(row["video"]) for row in there if row["id"].startswith("gone-")]
    for path in vanishing:
        shutil.copy(path.with_name(path.name.removeprefix("gone-")), path)
    plan_videos(str(manifest), store, config, options)
    for path in vanishing:
        path.unlink()
    tokenize_videos(str(manifest), store, config, options, make=make)
    wall_seconds = time.monotonic() - began
    found = verify_run(store)
    mismatches = [f"verify: {error}" for error in found.errors]
    expected = {row["id"] for row in there if row["id"].startswith("canary-")}
    mismatches += _fallen_mismatches(store, there)
    seen: Counter[str] = Counter()
    num_blocks = 0
    for sample in _read_with_webdataset(Path(store.root)):
        record = json.loads(sample["json"])
        video_id = int(record["messages"][-1]["content"].removeprefix("Canary ").removesuffix("."))
        seen[f"canary-{video_id}"] += 1
        where = f"{recipe_name}, {sample['__key__']}"
        if record["provenance"]["id"] != f"canary-{video_id}":
            mismatches.append(f"{where}: caption of video {video_id}, id {record['provenance']['id']}")
        if sample["__key__"] != record["provenance"]["id"]:
            mismatches.append(f"{where}: the sample of {record['provenance']['id']}")
        for place, read in _canaries(record, sample):
            num_blocks += 1
            mismatches += _compared(where, video_id, place, read)
    for row_id in sorted(expected ^ set(seen)) + [row_id for row_id, count in seen.items() if count > 1]:
        mismatches.append(f"{recipe_name}: {row_id} is in {seen[row_id]} samples")
    return {
        "samples": sum(seen.values()),
        "blocks": num_blocks,
        "quarantined": found.quarantined,
        "crashes": len(list(marks.glob(f"{recipe_name}-*"))),
        "wall_seconds": round(wall_seconds, 1),
        "mismatches": mismatches,
    }


def _fallen_mismatches(store: Store, manifest: list[dict[str, Any]]) -> list[str]:
    """Whether those that had to fall, and they alone, stand in the ledger, each with its own place and reason."""
    reasons = {"broken": {"not_media", "no_video_stream", "no_decodable_frame"}, "gone": {"source_missing"}}
    due = {
        row["id"]: (line, row["video"], reasons[row["id"].partition("-")[0]])
        for line, row in enumerate(manifest, start=1)
        if not row["id"].startswith("canary-")
    }
    rounds = load_rounds(store)
    assert rounds is not None, "no plan"
    mismatches = []
    for fallen in rounds.iter_quarantined():
        line, uri, likely = due.pop(fallen.id or "", (0, "", set()))
        if (fallen.line, fallen.uri) != (line, uri) or fallen.reason not in likely:
            mismatches.append(f"quarantined: {fallen.id}, line {fallen.line}, {fallen.uri}: {fallen.reason}")
    return mismatches + [f"{row_id} did not fall" for row_id in due]


def run_features(store: Store, folder: Path, *, workers: int) -> dict[str, Any]:
    """Encodes the run with the encoder that lets pixels through and reads every block out of its features."""
    from ov2_core.features.canary import read_feature_canary, write_transparent_model
    from ov2_core.features.reader import FeatureReader
    from pipelines.extract_features import EncodeOptions, extract_features

    model = write_transparent_model(folder / "model")
    out = Store(f"{store.root}-features")
    options = EncodeOptions(model=str(model), stage="unmerged", tokens_per_batch=TOKENS_PER_BATCH, decode_threads=3)
    extract_features(store, out, options, RunOptions(workers=workers, progress="off"))
    mismatches, num_blocks, num_samples = [], 0, 0
    with FeatureReader(out.root) as reader:
        for stored in reader:
            num_samples += 1
            video_id = int(stored.record.messages[-1].content.removeprefix("Canary ").removesuffix("."))
            features, places = stored.features, stored.positions.tolist()
            for at in range(0, len(features), PATCHES_A_BLOCK**2):
                num_blocks += 1
                try:
                    read: Canary | str = read_feature_canary(features[at : at + PATCHES_A_BLOCK**2])
                except ValueError as error:
                    read = str(error)
                mismatches += _compared(f"features of {stored.key}", video_id, tuple(places[at]), read)
    return {"feature_samples": num_samples, "feature_blocks": num_blocks, "mismatches": mismatches}


@dataclass(frozen=True)
class _DisturbedMake:
    """make_sample that takes a random while, so rows end out of order, and ends its worker once under some rows."""

    seed: int
    crash_folder: str | None

    def __call__(self, planned: PlannedRow, config: RunConfig) -> SampleOutcome:
        draw = np.random.default_rng([self.seed, planned.line]).random(2)
        if self.crash_folder is not None and draw[0] < 0.01:
            mark = Path(self.crash_folder) / f"{config.recipe}-{planned.line}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02 * float(draw[1]))
        return make_sample(planned, config)


def _read_with_webdataset(root: Path) -> Iterator[dict[str, Any]]:
    import webdataset

    tars = sorted(str(path) for path in (root / "shards").glob("*.tar"))
    yield from webdataset.WebDataset(tars, shardshuffle=False)


def _canaries(record: dict[str, Any], sample: dict[str, Any]) -> Iterator[tuple[tuple[int, int, int], Canary | str]]:
    """((t, h, w), what the block shows or why it cannot be read) of every block of a sample."""
    for image_key, positions_key in zip(record["image_keys"], record["patch_positions_keys"], strict=True):
        image = np.asarray(Image.open(io.BytesIO(sample[image_key])).convert("RGB"))
        rows, columns = (side // CANARY_BLOCK_PX for side in image.shape[:2])
        positions = np.load(io.BytesIO(sample[positions_key]), allow_pickle=False)
        places = positions.reshape(rows, PATCHES_A_BLOCK, columns, PATCHES_A_BLOCK, 3)[:, 0, :, 0]
        for row in range(rows):
            for column in range(columns):
                y, x = row * CANARY_BLOCK_PX, column * CANARY_BLOCK_PX
                t, h, w = (int(v) for v in places[row, column])
                try:
                    yield (t, h, w), read_canary(image[y : y + CANARY_BLOCK_PX, x : x + CANARY_BLOCK_PX])
                except ValueError as error:
                    yield (t, h, w), str(error)


def _compared(where: str, video_id: int, place: tuple[int, ...], read: Canary | str) -> list[str]:
    if isinstance(read, str):
        return [f"{where}, block at (t, h, w) = {place}: {read}"]
    t, h, w = place
    want = Canary(video_id=video_id, frame=t, row=h // PATCHES_A_BLOCK, column=w // PATCHES_A_BLOCK)
    return [] if read == want else [f"{where}: says {want}, shows {read}"]


def table_text(reports: Iterable[dict[str, Any]]) -> str:
    """The reports as a Markdown table."""
    lines = [
        "| recipe | workers | clips | samples | blocks read | broken rows | workers killed | features read | wall s | mismatches |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['recipe']} | {r['workers']} | {r['clips']} | {r['samples']} | {r['blocks']} | {r['quarantined']} | {r['crashes']} "
        f"| {r.get('feature_blocks', '-')} | {r['wall_seconds']:.0f} | {len(r['mismatches'])} |"
        for r in reports
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
