import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ov2_core.config import recipe, with_overrides
from ov2_core.storage.files import Store
from pipelines import run_identity
from pipelines.run_identity import (
    ROOTS,
    Installation,
    WrongInstallationError,
    check_same_run,
    claim_run,
    make_run_record,
    source_closure,
)


def test_closure_holds_all_modules_that_making_a_sample_loads() -> None:
    code = f"import sys, {', '.join(ROOTS)}; print(*[m for m in sys.modules if m.split('.')[0] in ('schemas', 'ov2_core')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ov2_core.tokenizer.canvas" in loaded
    assert set(loaded) <= source_closure(ROOTS).keys()


def test_closure_leaves_out_what_makes_no_shard() -> None:
    closure = source_closure(ROOTS)
    assert not [name for name in closure if name.startswith(("ov2_core.report", "ov2_core.model", "ov2_core.train"))]


def test_second_claim_of_the_same_run_passes_and_of_another_is_refused(tmp_path: object) -> None:
    store = Store(str(tmp_path))
    record = make_run_record(recipe("codec-32"), manifest_uri="m.jsonl", manifest_digest="d")
    claim_run(store, record)
    claim_run(store, record.model_copy(update={"created_unix_seconds": 5.0, "manifest_uri": "/elsewhere/m.jsonl"}))
    other = make_run_record(
        with_overrides(recipe("codec-32"), {"groups.spike_ratio": "5"}), manifest_uri="m.jsonl", manifest_digest="d"
    )
    with pytest.raises(ValueError, match=r"config\.tokenizer\.groups\.spike_ratio: 4\.0 there, 5\.0 here"):
        claim_run(store, other)


def test_other_library_version_is_named() -> None:
    record = make_run_record(recipe("codec-32"), manifest_uri="m", manifest_digest="d")
    newer = record.model_copy(update={"library_versions": {**record.library_versions, "av": "99"}})
    with pytest.raises(ValueError, match=r"library_versions\.av: .* there, '99' here"):
        check_same_run(record, newer, where="RUN")


def test_a_worker_with_other_code_or_libraries_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Installation.here()
    assert "ov2_core.tokenizer.hold" in here.modules
    here.check()
    pickle.loads(pickle.dumps(here)).check()
    other = replace(here, library_versions={**here.library_versions, "av": "1.2", "not-there": "3"})
    with pytest.raises(
        WrongInstallationError, match=r"library_versions\.av: .* there, '1\.2' here.*not-there: 'missing' there"
    ):
        other.check()

    changed = tmp_path / "hold.py"
    changed.write_bytes(run_identity._source_of("ov2_core.tokenizer.hold").read_bytes() + b"\n")
    source_of = run_identity._source_of
    monkeypatch.setattr(run_identity, "_source_of", lambda name: changed if name.endswith(".hold") else source_of(name))
    with pytest.raises(WrongInstallationError, match=r"code_version: .* there, .* here"):
        here.check()
    monkeypatch.setattr(run_identity, "_source_of", lambda name: None if name.endswith(".hold") else source_of(name))
    with pytest.raises(WrongInstallationError, match="code_version"):
        here.check()


def test_storage_that_replaces_what_is_to_be_created_is_refused() -> None:
    class IgnoresConditions(Store):
        def create_bytes(self, rel: str, data: bytes) -> bool:
            self.write_bytes(rel, data)
            return True

    store = IgnoresConditions("memory://ignores-conditions")
    record = make_run_record(recipe("codec-32"), manifest_uri="m.jsonl", manifest_digest="d")
    with pytest.raises(ValueError, match=r"ignores If-None-Match: \*.*use another storage"):
        claim_run(store, record)
    assert store.list() == []
