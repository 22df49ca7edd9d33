"""`ov2 curriculum` and `ov2 stage`: what users see, and that verify finds every kind of damage."""

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from jobs.cli import app
from jobs.stage_text import stage_text
from ov2_core.data.loader import StageLoader
from ov2_core.data.stage import PackIndex, load_stage, part_rel
from ov2_core.data.verify_stage import verify_stage
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store

COMMON = ["--workers", "0", "--progress", "off", "--set", "sequence_length=1400"]


@pytest.fixture(scope="module")
def built(token_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """index/ and shards/ over run/; model/."""
    folder = tmp_path_factory.mktemp("curriculum")
    shutil.copytree(token_run, folder / "run")
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    (folder / "sources.yaml").write_text("sources: [{name: spatial, importer: token-shards, path: run}]")
    for name in ("index", "shards"):
        args = [
            "curriculum",
            "--recipe",
            "stage4",
            "--sources",
            str(folder / "sources.yaml"),
            "--out",
            str(folder / name),
        ]
        args += ["--model", str(folder / "model"), *COMMON]
        result = CliRunner().invoke(
            app, [*args, *(["--materialize", "--shard-bytes", "100000"] if name == "shards" else [])]
        )
        assert result.exit_code == 0, result.output
        assert "weight 4,000,000 -> 6 samples (100.00%)" in result.output
        assert "not filled" in result.output
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    for name in ("run", "index", "shards", "model"):
        shutil.copytree(built / name, tmp_path / name)
    return tmp_path


def invoke(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.output


@pytest.mark.parametrize("name", ["index", "shards"])
def test_a_stage_verifies_reports_and_shows_its_packs(built: Path, name: str) -> None:
    code, output = invoke("stage", "verify", str(built / name), "--model", str(built / "model"))
    assert (code, "41 images" in output, "OK: the stage holds" in output) == (0, True, True), output
    assert invoke("stage", "verify", str(built / name), "--quick")[0] == 0
    code, output = invoke("stage", "inspect", str(built / name))
    assert code == 0
    assert "fill" in output
    code, output = invoke("stage", "inspect", str(built / name), "0")
    assert code == 0
    assert "Describe this" in output
    assert invoke("stage", "inspect", str(built / name), "99")[0] == 2
    code, output = invoke("stage", "report", str(built / name))
    assert code == 0
    page = Path(output.strip()).read_text()
    assert page.count("<figure>") > 3
    assert "100.00%" in page
    for head in ("Mixture, asked and built", "Token budget", "Tokens by modality", "Samples a pack", "Tokens a sample"):
        assert f"<h2>{head}</h2>" in page
    record = load_stage(Store(built / name))
    assert page.count("class='strip'") == record.packing.num_packs, "few packs: all are drawn"
    assert page.count("class='sample'") == 2, "of the one source"
    assert f"{record.packing.fill:.2%}" in page
    assert "src='http" not in page


def test_a_text_that_looks_like_html_is_shown_as_text(copy: Path) -> None:
    parquet = copy / "index" / part_rel(0)
    table = pq.read_table(parquet)
    rows = table.to_pylist()
    for sample in (sample for row in rows for sample in row["samples"]):
        sample["messages"][1]["content"] = "<script>alert(1)</script>"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), parquet)
    code, output = invoke("stage", "report", str(copy / "index"))
    assert code == 0
    page = Path(output.strip()).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("text", "not those that stage.json was written for"),
        ("tokens", "tokens, at most 1400 and the sum of its samples"),
        ("twice", "stands in the stage twice"),
        ("lost_part", "cannot be read from the index"),
        ("tar_gone", "cannot be read"),
        ("tar_cut", "bytes, .* when the stage was built"),
        ("picture", "not a readable JPEG"),
        ("swapped", "the tar was changed since"),
    ],
)
def test_verify_finds_damage_and_names_it(built: Path, copy: Path, damage: str, finding: str) -> None:
    import re

    stage, moved = copy / "index", {str(built / "run"): str(copy / "run")}
    tar = copy / "run/shards/shard-000001.tar"
    if damage in ("text", "tokens", "twice"):
        parquet = stage / part_rel(0)
        table = pq.read_table(parquet)
        rows = table.to_pylist()
        sample = rows[0]["samples"][0]
        if damage == "text":
            sample["messages"][1]["content"] += "!"
        elif damage == "tokens":
            sample["num_tokens"] += 1
        else:
            rows[1]["samples"][0]["id"] = sample["id"]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), parquet)
    elif damage == "lost_part":
        (stage / part_rel(0)).unlink()
    elif damage == "tar_gone":
        tar.unlink()
    elif damage == "tar_cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    else:
        data = bytearray(tar.read_bytes())
        if damage == "picture":
            at = data.index(b"\xff\xd8\xff")
            data[at : at + 500] = bytes(500)
        else:
            data = data.replace(b"clip-2.", b"clip-9.")
        tar.write_bytes(data)
    found = verify_stage(Store(stage), moved=moved)
    assert not found.ok
    assert any(re.search(finding, error) for error in found.errors), found.errors
    quick = verify_stage(Store(stage), moved=moved, deep=False)
    assert quick.ok is (damage in ("picture", "swapped"))


def test_verify_with_a_model_counts_lengths_anew(built: Path, copy: Path) -> None:
    store = Store(copy / "index")
    record = load_stage(store)
    processor = LlavaOnevision2Processor.from_pretrained(copy / "model")
    assert verify_stage(store, processor=processor).ok
    index = PackIndex(store, record)
    assert sum(pack.num_tokens for pack in index) == record.packing.num_tokens
    parquet = copy / "index" / part_rel(0)
    table = pq.read_table(io.BytesIO(parquet.read_bytes()))
    rows = table.to_pylist()
    rows[0]["samples"][0]["messages"][1]["content"] += "!"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), parquet)
    errors = verify_stage(store, processor=processor).errors
    assert any("tokens here" in error for error in errors), errors


def test_what_is_no_stage_is_said_so(built: Path, tmp_path: Path) -> None:
    for command in ("verify", "inspect", "report"):
        code, _ = invoke("stage", command, str(tmp_path))
        assert code == 2
    (tmp_path / "s.yaml").write_text("sources: []")
    args = ["--sources", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "S"), "--model", str(built / "model")]
    for recipe in ("stage9", "stage1"):
        assert invoke("curriculum", "--recipe", recipe, *args)[0] == 2
    assert invoke("curriculum", "--recipe", "stage1", *args, "--set", "slots=3")[0] == 2
    assert json.loads((built / "index/stage.json").read_text())["form"] == "index"


def test_a_stage_without_a_model_counts_bytes_and_is_read_with_any_byte_level_tokenizer(
    built: Path, tmp_path: Path
) -> None:
    args = [
        "curriculum",
        "--recipe",
        "stage4",
        "--sources",
        str(built / "sources.yaml"),
        "--out",
        str(tmp_path / "stage"),
    ]
    code, output = invoke(*args, *COMMON)
    assert code == 0, output
    assert "no --model: text counts in bytes" in output
    merged = _processor_with_merges()
    merged.save_pretrained(tmp_path / "model")
    for processor in (LlavaOnevision2Processor(byte_tokenizer()), merged):
        loader = StageLoader(tmp_path / "stage", batch_size=1, num_workers=0, processor=processor)
        batches = list(loader)
        assert sum(len(ids) for batch in batches for ids in batch.sample_ids) == 6
        said = load_stage(Store(tmp_path / "stage")).packing.num_tokens
        read = sum(batch.num_tokens for batch in batches)
        assert (read < said) if processor is merged else (read == said)
    assert invoke("stage", "verify", str(tmp_path / "stage"), "--model", str(tmp_path / "model"))[0] == 0
    with pytest.raises(ValueError, match="another tokenizer"):
        StageLoader(built / "index", batch_size=1, processor=merged)


def _processor_with_merges() -> LlavaOnevision2Processor:
    """Bytes, and pairs of them."""
    tokenizer = byte_tokenizer()
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    fields["model"]["vocab"] |= {"th": 300, "is": 301, "es": 302}
    fields["model"]["merges"] = [["t", "h"], ["i", "s"], ["e", "s"]]
    return LlavaOnevision2Processor(
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(fields)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    )


def test_names_of_sources_are_aligned_and_what_was_left_out_is_named(built: Path) -> None:
    store = Store(built / "index")
    record = load_stage(store)
    long = "a-source-of-a-rather-long-name"
    source = record.sources[0].model_copy(update={"name": long, "dropped": {"unbound_media": 3}})
    lines = stage_text(record.model_copy(update={"sources": [source]}), store).splitlines()
    assert {line[len(long)] for line in lines} == {" "}
    assert {line[len(long) + 1] == " " for line in lines} == {False}
    assert any(line.split() == ["left", "out", store.url("dropped.jsonl")] for line in lines)
