"""Where everything of a run stands below RUN."""

import re

SHARDS_DIR = "shards"
COMMITS_DIR = "commits"
ATTEMPTS_DIR = "attempts"
QUARANTINE_DIR = "quarantine"
INDEX_DIR = ".nv-meta"
RUN_JSON = "run.json"
MERGE_JSON = "merge.json"
"""In a run that `ov2 merge` made."""
FEATURES_RECIPE = "features"
"""`recipe` in the run.json of a feature run."""
SPATIAL_RECIPE = "spatial"
"""`recipe` in the run.json of a spatial run."""
RECORDS_DIR = "records"
SUMMARIES_DIR = "summaries"
"""Derived from the commits (summaries.py); may be removed."""
PLAN_DIR = "plan"
PLAN_JSON = f"{PLAN_DIR}/plan.json"
_COMMIT_NAME = re.compile(r"shard-([0-9]{6,18})\.json")


def shard_name(shard: int) -> str:
    """shard-000042; more digits above a million."""
    return f"shard-{shard:06d}"


def tar_rel(shard: int) -> str:
    """The published tar."""
    return f"{SHARDS_DIR}/{shard_name(shard)}.tar"


def sidecar_rel(shard: int) -> str:
    """Sample offsets beside the tar, as Energon expects them."""
    return f"{tar_rel(shard)}.idx"


def commit_rel(shard: int) -> str:
    return f"{COMMITS_DIR}/{shard_name(shard)}.json"


def shard_of_commit(name: str) -> int | None:
    """The shard whose commit has this name in COMMITS_DIR; None for any other file."""
    match = _COMMIT_NAME.fullmatch(name)
    return int(match[1]) if match is not None and name == f"{shard_name(int(match[1]))}.json" else None


def quarantine_rel(shard: int) -> str:
    """What the shard's commit quarantined, as JSON lines; absent where nothing was."""
    return f"{QUARANTINE_DIR}/{shard_name(shard)}.jsonl"


def records_rel(shard: int) -> str:
    """Questions of a spatial shard, as JSON lines."""
    return f"{RECORDS_DIR}/{shard_name(shard)}.jsonl"
