"""A small run over hostile rows: nothing escapes the run's folder, no credential is written anywhere, good rows are not lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ov2_core.config import recipe, with_overrides
from ov2_core.plan import iter_plan_quarantine
from ov2_core.report.render import write_report
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos

CONFIG = with_overrides(recipe("uniform-4"), {"shards.max_samples": "4", "area_px": "12544"})
INLINE = RunOptions(workers=0, progress="off")
SECRET = "c0ffee0canary"
SECRET_URIS = [
    f"https://me:{SECRET}@127.0.0.1:9/a.mp4",
    f"https://{SECRET}@127.0.0.1:9/",
    f"http://127.0.0.1:9/a.mp4?X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://127.0.0.1:9/c/a.mp4?sv=1&sig={SECRET}",
    f"s3://AKIA:{SECRET}@bucket/a.mp4",
    f"simplecache::https://me:{SECRET}@127.0.0.1:9/a.mp4",
    f"ftp://me:{SECRET}@127.0.0.1/a.mp4",
]
HOSTILE_IDS = [
    "../../../../tmp/evil",
    "/etc/cron.d/evil",
    "a/../../b",
    "..",
    "nul\0byte",
    "line\nbreak\r\n",
    "\x1b]0;owned\x07\x1b[2J",
    "<script>alert(1)</script>",
    "'; DROP TABLE samples; --",
    "x" * 4096,
    "\u202egpj.exe",
    "ＡＢＣ",
    "ｃｌｉｐ／．．",
    "e\u0301",
    "\u00e9",
    "CON",
    "{0..9}",
    "%2e%2e%2f",
    "shard-000000.tar",
    "-rf",
]


def everything_below(folder: Path) -> bytes:
    return b"\n".join(p.read_bytes() + os.fsencode(p) for p in sorted(folder.rglob("*")) if p.is_file())


def run_of(rows: list[dict[str, object] | str], folder: Path) -> Store:
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    store = Store(folder / "run")
    tokenize_videos(str(manifest), store, CONFIG, INLINE)
    write_report(store)
    assert verify_run(store).errors == []
    return store


def test_credentials_are_written_nowhere(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "AZURE_STORAGE_KEY"):
        monkeypatch.setenv(name, SECRET)
    rows: list[dict[str, object] | str] = [{"video": str(clip_folder / "clip_0.mp4"), "id": "good"}]
    rows += [{"video": uri} for uri in SECRET_URIS]
    rows += [{"image": uri, "id": f"with-id-{i}"} for i, uri in enumerate(SECRET_URIS)]
    rows += [{"video": uri, "frames_fps": 1} for uri in SECRET_URIS[:1]]
    rows += [
        f'{{"video": "{SECRET_URIS[0]}", "unknown": 1}}',
        f'{{"video": "{SECRET_URIS[2]}"',
        f"not JSON {SECRET_URIS[3]}",
    ]
    store = run_of(rows, tmp_path)
    written = everything_below(tmp_path / "run")
    assert SECRET.encode() not in written
    assert SECRET not in caplog.text
    found = verify_run(store)
    assert (found.manifest_rows, found.committed) == (len(rows), 1)
    assert found.quarantined_by_reason == {"refused_uri": len(rows) - 4, "malformed_row": 3}
    fallen = list(iter_plan_quarantine(store))
    assert all("***" in (row.uri or row.raw or "") for row in fallen if "://" in (row.uri or row.raw or ""))


def test_a_secret_of_the_manifests_own_url_stays_out_of_the_run(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a manifest at https://me:password@host/m.jsonl: read here from a file of the same text."""
    import pipelines.plan_videos as planning
    import pipelines.tokenize_videos as tokenizing

    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        json.dumps({"video": str(clip_folder / "clip_1.mp4"), "id": "a"}) + '\n{"video": "b.mp4", "id": "b"}\n'
    )
    url = f"https://me:{SECRET}@host/m.jsonl?token={SECRET}"
    for module in (planning, tokenizing):
        monkeypatch.setattr(module, "manifest_digest", lambda uri: "0")
    read = planning.read_rows
    monkeypatch.setattr(planning, "read_rows", lambda uri: read(str(manifest)))
    store = Store(tmp_path / "run")
    tokenize_videos(url, store, CONFIG, INLINE)
    write_report(store)
    assert SECRET.encode() not in everything_below(tmp_path / "run")
    assert b"https://***@host/m.jsonl?token=***" in (tmp_path / "run" / "run.json").read_bytes()
    assert verify_run(store).quarantined_by_reason == {"refused_uri": 1}


def test_hostile_ids_name_no_file_and_lose_no_row(clip_folder: Path, tmp_path: Path) -> None:
    clips = [str(clip_folder / f"clip_{i % 6}.mp4") for i in range(len(HOSTILE_IDS))]
    before = {p for p in tmp_path.parent.parent.rglob("*evil*")}
    store = run_of([{"video": clip, "id": id} for clip, id in zip(clips, HOSTILE_IDS, strict=True)], tmp_path)
    found = verify_run(store)
    assert found.committed == len(HOSTILE_IDS)
    with ShardReader(store.root) as reader:
        assert {sample.record.provenance.id for sample in reader} == set(HOSTILE_IDS)
        assert len(set(map(str.lower, reader.keys()))) == len(HOSTILE_IDS)
    names = [p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("*")]
    assert all(str(name).isascii() and ".." not in name.parts for name in names)
    assert {p for p in tmp_path.parent.parent.rglob("*evil*")} == before
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>alert(1)</script>" not in page


def test_ids_that_no_record_can_hold_are_malformed(clip_folder: Path, tmp_path: Path) -> None:
    clip = str(clip_folder / "clip_0.mp4")
    rows: list[dict[str, object] | str] = [
        {"video": clip, "id": "x" * 4097},
        f'{{"video": "{clip}", "id": "\\ud800"}}',
        {"video": clip, "id": ""},
        {"video": clip, "id": ["a"]},
        {"video": "a\0b.mp4", "id": "nul"},
        {"video": "a\nb.mp4", "id": "newline"},
        {"video": "../" * 3000, "id": "long"},
        {"video": "/dev/zero", "id": "device"},
        {"video": "/proc/self/environ", "id": "proc"},
        {"video": "/dev/stdin", "id": "stdin"},
    ]
    store = run_of(rows, tmp_path)
    found = verify_run(store)
    assert found.committed == 0
    assert found.quarantined_by_reason["malformed_row"] == 4
    assert found.quarantined == len(rows)


def test_terminal_sees_no_command_of_a_hostile_row(
    clip_folder: Path, tmp_path: Path, make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import typer.testing

    from jobs.cli import app

    id = "\x1b]0;owned\x07\x1b[2J"
    good = {"video": str(clip_folder / "clip_0.mp4"), "id": id, "caption": "\x1b[31mred"}
    store = run_of([good, {"video": "nowhere.mp4", "id": "\x1b[2Jgone"}, {"video": "\x1b[2J.mp4"}], tmp_path)
    shown = typer.testing.CliRunner().invoke(app, ["inspect", store.root, id])
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.output
    assert "\\x1b]0;owned" in shown.output
    missing = typer.testing.CliRunner().invoke(app, ["inspect", store.root, f"\x1b[2J https://me:{SECRET}@h/"])
    assert missing.exit_code == 2
    assert "\x1b" not in missing.output
    assert SECRET not in missing.output
    failed = typer.testing.CliRunner().invoke(app, ["failed", store.root])
    assert failed.exit_code == 0, failed.output
    assert "\x1b" not in failed.output
