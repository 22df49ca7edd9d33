"""What a run is: the record that a resume compares itself with, so that nothing is silently mixed.

Enters: recipe, config, manifest. Leaves: a RunRecord, or a ValueError that names every field in which two differ. The same of a
worker: an Installation, which a process on another node holds against its own.
"""

import ast
import functools
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ov2_core
import schemas
from ov2_core import config as configs
from ov2_core.config import RunConfig
from ov2_core.redact import redacted
from ov2_core.storage.files import Store
from ov2_core.storage.layout import RUN_JSON
from schemas.run import RunRecord
from schemas.shard import PlanRecord

LIBRARIES = ("av", "numpy", "numba", "pillow")
"""Those whose version may change a shard's bytes."""
ROOTS = ("ov2_core.make_sample", "ov2_core.storage.commit")
"""Modules from which every byte of a token shard comes."""
FEATURE_ROOTS = ("ov2_core.features.extract", "ov2_core.storage.commit")
"""Modules from which every byte of a feature shard comes."""
FEATURE_LEAVES = ("ov2_core.model", "ov2_core.model.onevision", "ov2_core.model.processor")
"""Imported by those, but without a say in the values: the language model, and text."""
_PACKAGES = {"schemas": schemas, "ov2_core": ov2_core}


class WrongInstallationError(RuntimeError):
    """A worker has other code or libraries than the driver, or does not see the run or its sources."""


@functools.cache
def code_version(roots: tuple[str, ...] = ROOTS, leaves: tuple[str, ...] = ()) -> str:
    """Package version + digest of the sources that decide shard bytes: those that the roots import, directly or not.

    Other packages of ov2_core (report, model, ...) may change without a run being refused for it.
    """
    return _version_of(tuple(source_closure(roots, leaves)))


def _version_of(modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in sorted(modules):
        path = _source_of(name)
        digest.update(f"{name}\0".encode() + (path.read_bytes() if path else b"") + b"\0")
    return f"{metadata.version('ov2-pipeline')}+{digest.hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Installation:
    """Code and libraries that decide what a run writes, as its driver has them, and the places that it reads and writes."""

    modules: tuple[str, ...]
    code_version: str
    library_versions: dict[str, str]
    runs: tuple[tuple[Store, str], ...] = ()
    """(run, digest of its record)."""
    places: tuple[str, ...] = ()
    """Other files and folders; those that the driver does not see either are not looked for."""

    @classmethod
    def here(
        cls,
        roots: tuple[str, ...] = ROOTS,
        leaves: tuple[str, ...] = (),
        *,
        libraries: tuple[str, ...] = LIBRARIES,
        runs: Sequence[Store] = (),
        places: Sequence[str] = (),
    ) -> "Installation":
        """Of this process; see code_version."""
        return cls(
            tuple(source_closure(roots, leaves)),
            code_version(roots, leaves),
            library_versions(libraries),
            tuple((run, _record_digest(run)) for run in runs),
            tuple(place for place in places if os.path.exists(place)),
        )

    def check(self) -> None:
        """Raises WrongInstallationError unless the process at hand has the same.

        A folder on a local disk has the same name everywhere and is another one on each machine: shards would be lost in it.
        """
        for run, digest in self.runs:
            if _record_digest(run) != digest:
                raise WrongInstallationError(
                    f"no sight of the run: {run.url(RUN_JSON)} is not there, or not the driver's; put the run where all nodes "
                    "see it: an object store, or a folder that is mounted on each"
                )
        for place in self.places:
            if not os.path.exists(place):
                raise WrongInstallationError(
                    f"no sight of {place}, which the driver sees; put it where all nodes see it: a folder that is mounted on each"
                )
        differences = [
            *_differences("code_version", _version_of(self.modules), self.code_version),
            *_differences("library_versions", library_versions(tuple(self.library_versions)), self.library_versions),
        ]
        if differences:
            raise WrongInstallationError(
                f"another installation than the driver's: {'; '.join(differences)} "
                "(there: the worker's, here: the driver's); install one release on all nodes"
            )


def _record_digest(run: Store) -> str:
    """Of the run's record; empty where there is none."""
    try:
        return hashlib.sha256(run.read_bytes(RUN_JSON)).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def source_closure(roots: tuple[str, ...], leaves: tuple[str, ...] = ()) -> dict[str, Path]:
    """{module: file} of the roots and all that they import of schemas and ov2_core, read from the sources alone.

    leaves: modules that are neither taken nor followed.
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _source_of(name)
        if path is None or name in found or name in leaves:
            continue
        found[name] = path
        parents = name.split(".")
        waiting += [".".join(parents[:length]) for length in range(1, len(parents))]
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _source_of(module: str) -> Path | None:
    package, *rest = module.split(".")
    if package not in _PACKAGES:
        return None
    path = Path(next(iter(_PACKAGES[package].__path__))).joinpath(*rest)
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def library_versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions."""
    return {name: _installed(name) for name in libraries}


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def make_run_record(config: RunConfig, *, manifest_uri: str, manifest_digest: str) -> RunRecord:
    """The identity of a run of this code, config and manifest."""
    return RunRecord(
        recipe=config.recipe,
        config=configs.to_dict(config),
        config_digest=configs.digest(config),
        code_version=code_version(),
        library_versions=library_versions(),
        manifest_uri=redacted(manifest_uri),
        manifest_digest=manifest_digest,
        created_unix_seconds=round(time.time(), 3),
    )


def load_run_record(store: Store) -> RunRecord | None:
    """RUN/run.json, or None where there is none."""
    try:
        data = store.read_bytes(RUN_JSON)
    except FileNotFoundError:
        return None
    return RunRecord.model_validate_json(data)


def claim_run(store: Store, record: RunRecord) -> None:
    """Makes the store this run's, or checks that it is.

    Raises:
        ValueError: it belongs to a run that differs (each field is named), or the storage cannot create exclusively.
    """
    store.require_exclusive_creation()
    data = (record.model_dump_json(indent=2) + "\n").encode()
    store.create_bytes(RUN_JSON, data)
    there = load_run_record(store)
    assert there is not None
    check_same_run(there, record, where=store.root)


def check_same_run(there: RunRecord, here: RunRecord, *, where: str) -> None:
    """Raises ValueError unless a resume of `there` by `here` gives the same bytes."""
    differences = [
        *run_differences(there, here),
        *_differences("manifest_digest", there.manifest_digest, here.manifest_digest),
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(
            f"{where} holds a run that differs from this command in:\n  {listed}\n"
            "Shards of two runs are never mixed: give the same manifest, recipe and options (and the same version of "
            "the code) to resume it, or another --out to start anew."
        )


def run_differences(there: RunRecord, here: RunRecord) -> list[str]:
    """What of two runs would give other bytes for one row: config, code, libraries."""
    return [
        *_differences("config", there.config, here.config),
        *_differences("code_version", there.code_version, here.code_version),
        *_differences("library_versions", there.library_versions, here.library_versions),
    ]


def check_same_plan(plan: PlanRecord, config: RunConfig, manifest_digest: str, *, where: str) -> None:
    """Raises ValueError unless a plan was made for this config and manifest."""
    differences = [
        *_differences("config_digest", plan.config_digest, configs.digest(config)),
        *_differences("manifest_digest", plan.manifest_digest, manifest_digest),
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(
            f"{where} holds a plan that differs from this command in:\n  {listed}\n"
            "Run `ov2 plan` again with these options to replace it, or give another --out."
        )


def _differences(name: str, there: Any, here: Any) -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted(there.keys() | here.keys()):
            found += _differences(f"{name}.{key}", there.get(key), here.get(key))
        return found
    return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]
