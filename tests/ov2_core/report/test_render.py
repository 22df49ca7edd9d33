"""The page as a file: self-contained, safe against hostile text, bounded in size."""

import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from ov2_core.report import render
from ov2_core.report.collect import collect_run
from ov2_core.report.render import render_report, write_report
from ov2_core.report.sample_page import sample_page
from ov2_core.storage.files import Store
from ov2_core.storage.reader import StoredSample
from schemas.shard import QuarantineRow
from schemas.video import Message

HOSTILE = "</script><script>document.title='owned'</script><!--<script>\u2028&lt; \"'`{{csp}} \U0001f600"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


def read_data(page: str) -> dict[str, object]:
    blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in blocks}


def test_write_report_puts_one_file_beside_the_shards(store, tmp_path, make_tokenized, make_encoded, make_run):
    make_run(store, tmp_path, [make_encoded(make_tokenized())])
    path = write_report(store.root)
    assert path == store.url("report.html")
    page = store.read_bytes("report.html").decode()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=\"(?!data:,|#)", page.split('<script type="application/json"')[0])
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))
    data = read_data(page)
    assert data["run-data"]["committed"] == 1
    assert len(data["sample-data-0"]["images"]) == 8


def test_page_is_the_same_for_the_same_run(store, tmp_path, make_tokenized, make_encoded, make_run):
    make_run(store, tmp_path, [make_encoded(make_tokenized())])
    assert render_report(store, collect_run(store)) == render_report(store, collect_run(store))


def test_policy_allows_the_inlined_script_and_style_alone(store, tmp_path, make_tokenized, make_encoded, make_run):
    make_run(store, tmp_path, [make_encoded(make_tokenized())])
    page = render_report(store, collect_run(store))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        text = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_data(store, tmp_path, make_tokenized, make_encoded, make_run):
    said = [Message(role="user", content=HOSTILE), Message(role="assistant", content=HOSTILE)]
    sample = make_encoded(make_tokenized(), video_id=HOSTILE, uri=HOSTILE, messages=said)
    row = QuarantineRow(line=2, id=HOSTILE, uri=HOSTILE, reason="not_media", stage="probe", message=HOSTILE)
    make_run(store, tmp_path, [sample], quarantined=(row,))
    page = render_report(store, collect_run(store))
    assert page.count("<script") == 3  # run data, sample data, viewer
    assert "<!--" not in page
    data = read_data(page)
    assert data["sample-data-0"]["id"] == HOSTILE
    assert data["sample-data-0"]["turns"][1][2] == HOSTILE
    assert data["run-data"]["quarantine"][0]["examples"][0]["message"] == HOSTILE


def test_unreadable_sample_is_named_and_the_rest_shown(
    store, tmp_path, make_tokenized, make_encoded, make_run, monkeypatch
):
    good, bad = (make_encoded(make_tokenized(), key=f"k{i}", line=i + 1) for i in range(2))
    make_run(store, tmp_path, [good, bad], samples_a_shard=1)
    (tmp_path / "run/shards/shard-000001.tar").write_bytes(b"short")
    data = read_data(render_report(store, collect_run(store)))
    assert "images" in data["sample-data-0"]
    assert data["sample-data-1"]["key"] == "k1"
    assert "too short" in data["sample-data-1"]["error"]


def test_page_of_a_run_without_samples(store, tmp_path, make_run):
    row = QuarantineRow(line=1, id=None, uri=None, reason="malformed_row", stage="manifest", message="no", raw="{")
    store.write_bytes("quarantine/plan.jsonl", row.model_dump_json().encode() + b"\n")
    store.write_bytes(
        "plan/plan.json",
        json.dumps(
            {
                "manifest_uri": "m",
                "manifest_digest": "0",
                "manifest_rows": 1,
                "config_digest": "0",
                "num_shards": 0,
                "num_planned": 0,
                "num_quarantined": 1,
                "predicted_tokens": 0,
                "predicted_bytes": 0,
                "predicted_cpu_seconds": 0,
                "predicted_video_seconds": 0,
            }
        ).encode(),
    )
    data = read_data(render_report(store, collect_run(store)))
    assert data["run-data"]["quarantined"] == 1
    assert data["run-data"]["num_shown"] == 0


# Bounded size: noise does not compress, so a picture of it is as large as pictures get.


@pytest.fixture
def noisy(make_tokenized, make_encoded):
    tokenized = make_tokenized(num_groups=6, rows=6, columns=8)
    noise = np.random.default_rng(0).integers(0, 256, tokenized.images_NHW3.shape, np.uint8)
    members = make_encoded(dataclasses.replace(tokenized, images_NHW3=noise)).members
    return StoredSample(key="noisy", tar_name="", members=members)


def picture_bytes(page):
    return sum(len(image["src"]) for image in page["images"])


def test_pictures_are_the_stored_bytes_where_they_fit(noisy):
    page = sample_page(noisy, run_root="RUN", max_bytes=10_000_000)
    for image, name in zip(page["images"], noisy.record.image_keys, strict=True):
        assert base64.b64decode(image["src"].split(",")[1]) == noisy.member(name)
    assert page["notes"] == []
    assert page["blockPx"] == 28


@pytest.mark.parametrize(
    ("max_bytes", "block_px", "num_images", "says"),
    [
        (1_100_000, 28, 24, "JPEG quality 85"),
        (400_000, 14, 24, "at 1/2 size"),
        (100_000, 7, 24, "at 1/4 size"),
        (25_000, 14, 4, "first 1 of 6 groups"),
    ],
)
def test_pictures_shrink_to_the_room_and_the_page_says_so(noisy, max_bytes, block_px, num_images, says):
    page = sample_page(noisy, run_root="RUN", max_bytes=max_bytes)
    assert page["blockPx"] == block_px
    assert len(page["images"]) == num_images
    assert says in page["notes"][0]
    assert sum(group["shown"] for group in page["groups"]) == num_images // 4
    assert picture_bytes(page) <= max(max_bytes, 50_000)
    assert sum(blocks for _, blocks, _ in page["evidence"]) == 18 * 48  # the timeline has all groups


def test_page_stays_below_its_limit(store, tmp_path, noisy, make_tokenized, make_encoded, make_run, monkeypatch):
    monkeypatch.setattr(render, "MAX_PAGE_BYTES", 900_000)
    monkeypatch.setattr(render, "_FIXED_BYTES", 100_000)
    tokenized = make_tokenized(num_groups=6, rows=6, columns=8)
    noise = np.random.default_rng(0).integers(0, 256, tokenized.images_NHW3.shape, np.uint8)
    shown = dataclasses.replace(tokenized, images_NHW3=noise)
    make_run(store, tmp_path, [make_encoded(shown, key=f"k{i}", line=i + 1) for i in range(4)])
    assert len(render_report(store, collect_run(store)).encode()) <= 900_000


def test_positions_entry_is_short_for_a_whole_frame_and_full_otherwise(stored):
    page = sample_page(stored, run_root="a b", max_bytes=10**7)
    assert page["command"] == "ov2 inspect 'a b' clip_0"
    assert page["images"][0]["place"] is None
    assert page["images"][0]["t"] == 0
    t_P, h_P, w_P = stored.positions_NP3[1].T
    columns = stored.record.image_width_px // 28
    blocks = [(2 * r) * 2 * columns + 2 * c for r in range(3) for c in range(columns)]
    assert page["images"][1]["t"] == t_P[blocks].tolist()
    assert page["images"][1]["place"] == (h_P[blocks] // 2 * columns + w_P[blocks] // 2).tolist()
