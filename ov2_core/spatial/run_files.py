"""Files of a spatial run beside its shards: records for the importer, the report, and the proof that all scenes are accounted for.

Everything here follows from commits and their tars alone, so it can be made again at any time.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from ov2_core.data.keys import key_of
from ov2_core.spatial.corpus import REASONS, SHIPS, CorpusVerdict, iter_scenes, level_corpus
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import RECORDS_DIR, RUN_JSON, SHARDS_DIR, records_rel, tar_rel
from ov2_core.storage.writer import canonical_json
from schemas.run import RunRecord, VerifyReport
from schemas.shard import CommitRecord
from schemas.spatial import SpatialQuestion, SpatialReport

REPORT_JSON = "report.json"


def recipe_digest(recipe: SpatialRecipe) -> str:
    """sha256 of all fields."""
    return hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()


def scene_key(name: str) -> str:
    """Sample key of a scene's name."""
    return key_of(name)


def records_bytes(store: Store, commit: CommitRecord, verdict: CorpusVerdict) -> bytes:
    """The questions of a committed shard that ship, scene after scene."""
    lines = [line for _, found in iter_scenes(store, commit) for line in found]
    reasons = verdict.reasons[commit.shard]
    return b"".join(line for line, reason in zip(lines, reasons, strict=True) if reason == SHIPS)


def publish_records(store: Store, verdict: CorpusVerdict) -> int:
    """Writes RUN/records/shard-*.jsonl where it is missing; returns how many were. A file is whole or absent.

    verdict: of all shards; while one is missing, what ships of the others is not known.
    """
    there = set(store.list(RECORDS_DIR))
    count = 0
    for commit in iter_commits(store):
        rel = records_rel(commit.shard)
        if commit.tar_name is not None and rel.rpartition("/")[2] not in there:
            store.write_bytes(rel, records_bytes(store, commit, verdict))
            count += 1
    return count


def iter_questions(store: Store) -> Iterator[SpatialQuestion]:
    """All shipped questions, shard after shard."""
    for name in store.list(RECORDS_DIR):
        with store.open_read(f"{RECORDS_DIR}/{name}") as file:
            for line in file:
                yield SpatialQuestion.model_validate_json(line)


def make_report(store: Store, verdict: CorpusVerdict) -> SpatialReport:
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
        reasons = iter(verdict.reasons[commit.shard].tolist())
        for fate, lines in iter_scenes(store, commit):
            num_drafted += fate.num_drafted
            for reason, count in fate.dropped.items():
                kind, _, why = reason.partition(": ")
                dropped[kind][why] += count
            for line in lines:
                question, fell = SpatialQuestion.model_validate_json(line), next(reasons)
                if fell != SHIPS:
                    dropped[question.type][REASONS[fell]] += 1
                    continue
                shipped[question.type] += 1
                answers[question.type][question.answer] += 1
                difficulties[question.difficulty] += 1
    total = sum(shipped.values())
    report = SpatialReport(
        num_scenes=num_scenes,
        num_scenes_quarantined=sum(quarantined.values()),
        num_scenes_filtered=num_filtered,
        num_scenes_repeated=len(verdict.repeated_scenes),
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


def verify_spatial(store: Store, *, deep: bool = True) -> VerifyReport:
    """Scenes = committed + filtered + quarantined, each once; tars and records are what the commits say.

    deep: read every tar, and hold the records against them; else sizes of tars alone, and that the records are there.
    """
    errors: list[str] = []
    run = RunRecord.model_validate_json(store.read_bytes(RUN_JSON))
    seen: Counter[int] = Counter()
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    sizes = {folder: store.list_sizes(folder) for folder in (SHARDS_DIR, RECORDS_DIR)}
    whole: list[CommitRecord] = []
    num_shards = 0
    for commit in iter_commits(store):
        num_shards += 1
        seen.update(row.line for rows in (commit.samples, commit.filtered, commit.quarantined) for row in rows)
        totals.update(committed=len(commit.samples), tar_bytes=commit.tar_bytes)
        rules.update(row.rule for row in commit.filtered)
        totals.update(images=sum(s.num_images for s in commit.samples))
        reasons.update(row.reason for row in commit.quarantined)
        if commit.tar_name is None:
            continue
        tar, records = tar_rel(commit.shard), records_rel(commit.shard)
        remedy = f"remove commits and shards of shard {commit.shard} and run `ov2 spatial` again"
        size = sizes[SHARDS_DIR].get(tar.rpartition("/")[2])
        if size != commit.tar_bytes:
            held = "is missing" if size is None else f"holds {size} bytes, its commit says {commit.tar_bytes}"
            errors.append(f"shard {commit.shard}: {tar} {held}; {remedy}")
        elif deep and hashlib.sha256(store.read_bytes(tar)).hexdigest() != commit.tar_digest:
            errors.append(f"shard {commit.shard}: the tar's digest is not the committed one; {remedy}")
        elif records.rpartition("/")[2] not in sizes[RECORDS_DIR]:
            errors.append(f"shard {commit.shard}: {records} is missing; run `ov2 spatial` again, which publishes it")
        else:
            whole.append(commit)
    if deep and not errors:
        verdict = level_corpus(store, max_share=float(run.config.get("max_share", 1.0)))
        for commit in whole:
            rel = records_rel(commit.shard)
            records_there = store.read_bytes(rel)
            totals["questions"] += records_there.count(b"\n")
            if records_there != records_bytes(store, commit, verdict):
                errors.append(f"{rel} is not what the tars say; remove it and run `ov2 spatial` again")
    elif store.exists(REPORT_JSON):
        totals["questions"] = SpatialReport.model_validate_json(store.read_bytes(REPORT_JSON)).num_questions
    expected = num_scenes_of(run)
    if expected is not None and set(seen) != set(range(1, expected + 1)):
        errors.append(f"{len(seen)} of {expected} scenes are accounted for; run `ov2 spatial` again")
    errors += [f"scene {line} is accounted for {count} times" for line, count in seen.items() if count > 1]
    return VerifyReport(
        ok=not errors,
        manifest_rows=len(seen) if expected is None else expected,
        committed=totals["committed"],
        filtered=rules.total(),
        filtered_by_rule=dict(sorted(rules.items())),
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
