"""One measurement of `ov2 bench scale` in a process of its own.

Enters: sizes and a folder. Leaves: seconds, CPU seconds of this process (the driver), its peak memory. Simulated are the probe (no
file is opened; sizes and durations follow from the id) and, where said, the work on a video; everything else is the pipeline's.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ov2_core import config as configs
from ov2_core.config import RunConfig, recipe
from ov2_core.data.keys import key_of
from ov2_core.make_sample import GENERATOR, ProbeOutcome, ProbeTask, SampleOutcome
from ov2_core.plan import PlanWriter, planned_text
from ov2_core.prediction import predict
from ov2_core.run_status import read_status
from ov2_core.storage.files import Store
from ov2_core.storage.layout import (
    COMMITS_DIR,
    SHARDS_DIR,
    SUMMARIES_DIR,
    commit_rel,
    shard_name,
    sidecar_rel,
    tar_rel,
)
from ov2_core.storage.summaries import iter_summaries
from ov2_core.storage.writer import canonical_json, encode_sample
from ov2_core.tokenize_video import tokenize_image
from pipelines.options import RunOptions, session
from pipelines.plan_videos import plan_videos
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import CommitRecord, CommittedSample, FilteredRow, PlannedRow, PlanRecord, TarPart
from schemas.tokens import Provenance
from schemas.video import ManifestRow, ProbeRecord, SourceIdentity

CONFIG = recipe("codec-32")
_SIZES_PX = ((640, 360), (1280, 720), (1920, 1080), (3840, 2160))
_CODECS = ("h264", "h264", "hevc", "vp9")


def write_manifest(path: Path, num_rows: int) -> None:
    """JSON lines with ids in no order, one in 10,000 used twice, one in 10,000 malformed."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(num_rows):
            if number % 10_000 == 5_000:
                file.write('{"video": "half a row\n')
                continue
            same = number - 1 if number % 10_000 == 7_001 else number
            id = hashlib.blake2b(str(same).encode(), digest_size=9).hexdigest()
            file.write(
                f'{{"video": "s3://corpus/part-{number // 10_000:05d}/{id}.mp4", "id": "{id}", '
                f'"caption": "Video {number} of a corpus that nobody has filmed.", "source": "simulated"}}\n'
            )


def simulated_probe(task: ProbeTask, config: RunConfig) -> ProbeOutcome:
    """A planned row whose file was never opened."""
    draw = int.from_bytes(hashlib.blake2b(task.id.encode(), digest_size=8).digest(), "little")
    width_px, height_px = _SIZES_PX[draw % 4]
    num_frames = 60 + draw // 4 % 1800
    probe = ProbeRecord(
        media="video",
        container="mp4",
        codec=_CODECS[draw // 16 % 4],
        pixel_format="yuv420p",
        width_px=width_px,
        height_px=height_px,
        num_frames=num_frames,
        duration_seconds=num_frames / 30,
        fps=30.0,
        variable_rate=False,
        rotation_degrees=0,
        size_bytes=draw % 10**8,
        video_bytes=draw % 10**8,
    )
    prediction = predict(probe, config.tokenizer)
    planned = PlannedRow(
        line=task.line,
        key=task.key,
        id=task.id,
        uri=task.uri,
        shard=0,
        row=task.row,
        probe=probe,
        identity=SourceIdentity(size_bytes=probe.size_bytes, stamp=f"{draw:x}"),
        predicted_tokens=prediction.tokens,
        predicted_bytes=prediction.bytes,
        predicted_cpu_seconds=prediction.cpu_seconds,
    )
    return ProbeOutcome(line=task.line, planned=planned)


@cache
def _grey() -> Any:
    image = Image.fromarray(np.full((56, 56, 3), 128, np.uint8))
    path = Path(f"/tmp/ov2-scale-{os.getpid()}.png")
    image.save(path)
    try:
        return tokenize_image(str(path), recipe("stills").tokenizer)
    finally:
        path.unlink()


def no_work(planned: PlannedRow, config: RunConfig) -> SampleOutcome:
    """A committed sample of one small grey still, whatever the row."""
    tokenized = _grey()
    provenance = Provenance(
        id=planned.id,
        uri=planned.uri,
        start_seconds=None,
        end_seconds=None,
        first_shown_seconds=0.0,
        source=None,
        tags=[],
        manifest_line=planned.line,
        size_bytes=0,
        codec="png",
        width_px=56,
        height_px=56,
        num_frames=1,
        duration_seconds=0.0,
        generator=GENERATOR,
        config_digest=configs.digest(config),
    )
    encoded = encode_sample(tokenized, key=planned.key, provenance=provenance, messages=[], config=config.tokenizer)
    return SampleOutcome(line=planned.line, key=planned.key, members=encoded.members, num_images=1, num_tokens=4)


def no_sample(planned: PlannedRow, config: RunConfig) -> SampleOutcome:
    """A filtered row: no member passes through anybody."""
    row = FilteredRow(line=planned.line, id=planned.id, uri=planned.uri, rule="simulated", message="nothing is made")
    return SampleOutcome(line=planned.line, key=planned.key, filtered=row)


def part_plan(spec: dict[str, Any]) -> dict[str, Any]:
    """Plans the manifest."""
    options = RunOptions(workers=spec["workers"], progress="plain")
    with session(options), _measured() as found:
        record = plan_videos(spec["manifest"], Store(spec["run"]), CONFIG, options, probe=simulated_probe)
    return {
        **found,
        "rows": record.manifest_rows,
        "shards": record.num_shards,
        "planned": record.num_planned,
        "quarantined": record.num_quarantined,
    }


def part_overhead(spec: dict[str, Any]) -> dict[str, Any]:
    """Tokenizes a planned manifest without work: CPU seconds of the driver."""
    options = RunOptions(workers=spec["workers"], progress="off")
    with session(options), _measured() as found:
        summary = tokenize_videos(spec["manifest"], Store(spec["run"]), CONFIG, options, make=no_work)
    return {**found, "rows": summary.num_made, "driver_ms_per_video": 1000 * found["cpu_seconds"] / summary.num_made}


def part_memory(spec: dict[str, Any]) -> dict[str, Any]:
    """Plans and tokenizes in this process, so that its peak is that of the driver's structures (and of one worker)."""
    options = RunOptions(workers=0, progress="off")
    store = Store(spec["run"])
    with _measured() as planned:
        record = plan_videos(spec["manifest"], store, CONFIG, options, probe=simulated_probe)
    with _measured() as found:
        tokenize_videos(spec["manifest"], store, CONFIG, options, make=no_sample)
    return {
        "rows": record.manifest_rows,
        "plan_peak_rss_mib": planned["peak_rss_mib"],
        "peak_rss_mib": found["peak_rss_mib"],
        "before_mib": planned["before_mib"],
        "wall_seconds": planned["wall_seconds"] + found["wall_seconds"],
    }


class _Stop(BaseException):
    """The first video is given out: what a resume does before is over."""


def part_restore(spec: dict[str, Any]) -> dict[str, Any]:
    """Goes on with a run of which all shards but the last are committed, up to its first video; then looks at its status."""
    store = Store(spec["run"])

    def stop(planned: PlannedRow, config: RunConfig) -> SampleOutcome:
        raise _Stop

    def resume() -> dict[str, Any]:
        with _measured() as found:
            try:
                tokenize_videos(spec["manifest"], store, CONFIG, RunOptions(workers=0, progress="off"), make=stop)
            except _Stop:
                return found
        raise AssertionError("nothing was left to make")

    restored = resume()
    with _measured() as told:
        status = read_status(store)
    return {
        "shards": status.num_shards_committed,
        "restore_seconds": restored["wall_seconds"],
        "restore_cpu_seconds": restored["cpu_seconds"],
        "status_seconds": told["wall_seconds"],
        "status_cpu_seconds": told["cpu_seconds"],
        "peak_rss_mib": told["peak_rss_mib"],
        "summary_bytes": sum(store.list_sizes(SUMMARIES_DIR).values()),
        "commit_bytes": sum(store.list_sizes(COMMITS_DIR).values()),
    }


def part_make_run(spec: dict[str, Any]) -> dict[str, Any]:
    """A run of so many shards, all committed but the last, without a pixel: its tars are holes of the right size."""
    store, num_shards, num_samples = Store(spec["run"]), spec["shards"], spec["samples_per_shard"]
    config_digest = configs.digest(CONFIG)
    manifest = Path(spec["manifest"])
    manifest.write_text("a manifest that a resume only hashes\n")
    with PlanWriter(store) as writer:
        for shard in range(num_shards):
            for place in range(num_samples):
                id = f"v{shard}-{place}"
                row = ManifestRow(video=f"/v/{id}.mp4", id=id)
                line = shard * num_samples + place + 1
                task = ProbeTask(line=line, id=id, key=key_of(id), uri=f"/v/{id}.mp4", row=row)
                planned = simulated_probe(task, CONFIG).planned
                assert planned is not None
                writer.add(planned_text(planned), shard)
        num_rows = num_shards * num_samples
        writer.finish(
            PlanRecord(
                manifest_uri=str(manifest),
                manifest_digest=hashlib.sha256(manifest.read_bytes()).hexdigest(),
                manifest_rows=num_rows,
                config_digest=config_digest,
                num_shards=num_shards,
                num_planned=num_rows,
                num_quarantined=0,
                predicted_tokens=0,
                predicted_bytes=0,
                predicted_cpu_seconds=0,
                predicted_video_seconds=0,
            )
        )
    for folder in (COMMITS_DIR, SHARDS_DIR):
        os.makedirs(store.local(folder), exist_ok=True)
    sidecar = bytes(8 * (num_samples + 1))
    for shard, data in commits_of(num_shards - 1, num_samples, config_digest):
        Path(store.local(commit_rel(shard))).write_bytes(data)
        Path(store.local(sidecar_rel(shard))).write_bytes(sidecar)
        with open(store.local(tar_rel(shard)), "wb") as file:
            file.truncate(_TAR_BYTES)
    with _measured() as found:
        count = sum(1 for _ in iter_summaries(store))
    return {
        "shards": count,
        "first_look_seconds": found["wall_seconds"],
        "first_look_cpu_seconds": found["cpu_seconds"],
    }


_TAR_BYTES = 200 << 20


def commits_of(num_shards: int, num_samples: int, config_digest: str) -> Iterator[tuple[int, bytes]]:
    """(shard, its commit's bytes): samples of 32 canvases with their positions, as `commit_shard` would write them."""
    names = [f"img_{i:03d}.jpg" for i in range(32)] + [f"patch_positions_{i:03d}.npy" for i in range(32)] + ["json"]
    parts = [TarPart(name=name, content_byte_offset=10**8, content_byte_size=50_000) for name in names]
    mark = "shard-987654"
    samples = [
        CommittedSample(
            line=i + 1,
            key=f"{mark}-{i}",
            id=f"{mark}-{i}",
            byte_offset=10**8,
            byte_size=3_000_000,
            parts=parts,
            num_images=32,
            num_tokens=5760,
            num_groups=4,
            duration_seconds=10.0,
            codec="h264",
            mode="codec",
            flags=[],
            cpu_seconds=1.25,
            peak_rss_bytes=10**8,
        )
        for i in range(num_samples)
    ]
    record = CommitRecord(
        shard=987654,
        tar_name=f"{mark}.tar",
        attempt=f"attempts/{mark}/0123456789abcdef.tar",
        tar_digest="0" * 64,
        tar_bytes=_TAR_BYTES,
        samples=samples,
        filtered=[],
        quarantined=[],
        config_digest=config_digest,
        code_version="0",
        started_unix_seconds=1.0,
        finished_unix_seconds=2.0,
    )
    text = canonical_json(record).decode()
    for shard in range(num_shards):
        yield shard, text.replace(mark, shard_name(shard)).replace('"shard":987654', f'"shard":{shard}').encode()


class _measured:
    """Wall and CPU seconds of this process, and its peak memory meanwhile (Linux), in a dict that is filled at the end."""

    def __enter__(self) -> dict[str, Any]:
        self.found: dict[str, Any] = {"before_mib": _status_mib("VmRSS")}
        Path("/proc/self/clear_refs").write_text("5")
        self.began, self.cpu = time.monotonic(), time.process_time()
        return self.found

    def __exit__(self, *_: object) -> None:
        self.found["wall_seconds"] = time.monotonic() - self.began
        self.found["cpu_seconds"] = time.process_time() - self.cpu
        self.found["peak_rss_mib"] = _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


PARTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "plan": part_plan,
    "overhead": part_overhead,
    "memory": part_memory,
    "make_run": part_make_run,
    "restore": part_restore,
}


def main(argv: list[str]) -> int:
    """PART, a file with what it needs, a file for what it found."""
    Path(argv[2]).write_text(json.dumps(PARTS[argv[0]](json.loads(Path(argv[1]).read_text()))))
    return 0
