"""Files of a spatial run beside its shards: records for the importer, the report, and the proof that all scenes are accounted for.

Everything here follows from commits and their tars alone, so it can be made again at any time.
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from ov2_core.data.keys import key_of
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import RECORDS_DIR, RUN_JSON, records_rel, tar_rel
from ov2_core.storage.writer import canonical_json, iter_tar_members
from schemas.run import RunRecord, VerifyReport
from schemas.shard import CommitRecord
from schemas.spatial import SceneYield, SpatialQuestion, SpatialReport

QUESTIONS_MEMBER = "questions.jsonl"
REPORT_JSON = "report.json"


def recipe_digest(recipe: SpatialRecipe) -> str:
    """sha256 of all fields."""
    return hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()


def scene_key(name: str) -> str:
    """Sample key of a scene's name."""
    return key_of(name)


def records_bytes(store: Store, commit: CommitRecord) -> bytes:
    """The questions of a committed shard, scene after scene."""
    if commit.tar_name is None:
        return b""
    with store.open_read(tar_rel(commit.shard)) as file:
        return b"".join(data for _, part, data in iter_tar_members(file) if part.name == QUESTIONS_MEMBER)


def publish_records(store: Store) -> int:
    """Writes RUN/records/shard-*.jsonl where it is missing; returns how many were. A file is whole or absent."""
    there = set(store.list(RECORDS_DIR))
    count = 0
    for commit in iter_commits(store):
        rel = records_rel(commit.shard)
        if commit.tar_name is not None and rel.rpartition("/")[2] not in there:
            store.write_bytes(rel, records_bytes(store, commit))
            count += 1
    return count


def iter_questions(store: Store) -> Iterator[SpatialQuestion]:
    """All shipped questions, shard after shard."""
    for name in store.list(RECORDS_DIR):
        with store.open_read(f"{RECORDS_DIR}/{name}") as file:
            for line in file:
                yield SpatialQuestion.model_validate_json(line)


def make_report(store: Store) -> SpatialReport:
    """Sums over all commits; written as RUN/report.json."""
    shipped: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    quarantined: Counter[str] = Counter()
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    difficulties: Counter[str] = Counter()
    num_scenes = num_filtered = num_drafted = 0
    for commit in iter_commits(store):
        num_scenes += len(commit.samples) + len(commit.filtered) + len(commit.quarantined)
        num_filtered += len(commit.filtered)
        quarantined.update(row.reason for row in commit.quarantined)
        if commit.tar_name is None:
            continue
        with store.open_read(tar_rel(commit.shard)) as file:
            for _, part, data in iter_tar_members(file):
                if part.name == "json":
                    fate = SceneYield.model_validate_json(data)
                    num_drafted += fate.num_drafted
                    for reason, count in fate.dropped.items():
                        kind, _, why = reason.partition(": ")
                        dropped[kind][why] += count
                    continue
                for line in io.BytesIO(data):
                    question = SpatialQuestion.model_validate_json(line)
                    shipped[question.type] += 1
                    answers[question.type][question.answer] += 1
                    difficulties[question.difficulty] += 1
    total = sum(shipped.values())
    report = SpatialReport(
        num_scenes=num_scenes,
        num_scenes_quarantined=sum(quarantined.values()),
        num_scenes_filtered=num_filtered,
        num_questions=total,
        num_drafted=num_drafted,
        shipped=dict(sorted(shipped.items())),
        dropped={kind: dict(sorted(reasons.items())) for kind, reasons in sorted(dropped.items())},
        quarantined=dict(sorted(quarantined.items())),
        answers={kind: dict(counts.most_common(12)) for kind, counts in sorted(answers.items())},
        difficulties=dict(sorted(difficulties.items())),
        max_share=max(shipped.values()) / total if total else 0.0,
    )
    store.write_bytes(REPORT_JSON, canonical_json(report) + b"\n")
    return report


def verify_spatial(store: Store) -> VerifyReport:
    """Scenes = committed + filtered + quarantined, each once; tars and records are what the commits say."""
    errors: list[str] = []
    run = RunRecord.model_validate_json(store.read_bytes(RUN_JSON))
    seen: Counter[int] = Counter()
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    num_shards = 0
    for commit in iter_commits(store):
        num_shards += 1
        seen.update(row.line for rows in (commit.samples, commit.filtered, commit.quarantined) for row in rows)
        totals.update(committed=len(commit.samples), filtered=len(commit.filtered), tar_bytes=commit.tar_bytes)
        totals.update(
            images=sum(s.num_images for s in commit.samples), questions=sum(s.num_tokens for s in commit.samples)
        )
        reasons.update(row.reason for row in commit.quarantined)
        if commit.tar_name is None:
            continue
        remedy = f"remove commits and shards of shard {commit.shard} and run `ov2 spatial` again"
        try:
            data = store.read_bytes(tar_rel(commit.shard))
            if hashlib.sha256(data).hexdigest() != commit.tar_digest:
                errors.append(f"shard {commit.shard}: the tar's digest is not the committed one; {remedy}")
                continue
            records = store.read_bytes(records_rel(commit.shard))
        except FileNotFoundError as error:
            errors.append(f"shard {commit.shard}: {error}; run `ov2 spatial` again, which publishes it")
            continue
        if records != records_bytes(store, commit):
            errors.append(
                f"{records_rel(commit.shard)} is not what its tar says; remove it and run `ov2 spatial` again"
            )
    expected = num_scenes_of(run)
    if expected is not None and set(seen) != set(range(1, expected + 1)):
        errors.append(f"{len(seen)} of {expected} scenes are accounted for; run `ov2 spatial` again")
    errors += [f"scene {line} is accounted for {count} times" for line, count in seen.items() if count > 1]
    return VerifyReport(
        ok=not errors,
        manifest_rows=len(seen) if expected is None else expected,
        committed=totals["committed"],
        filtered=totals["filtered"],
        quarantined=sum(reasons.values()),
        quarantined_by_reason=dict(sorted(reasons.items())),
        shards=num_shards,
        tar_bytes=totals["tar_bytes"],
        num_images=totals["images"],
        num_tokens=totals["questions"],
        errors=errors,
    )


def num_scenes_of(run: RunRecord) -> int | None:
    """As run.json says."""
    value = run.config.get("num_scenes")
    return value if isinstance(value, int) else None
