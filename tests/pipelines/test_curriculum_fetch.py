"""Images that rows name by URL: fetched where that is allowed, each failure a dropped sample that names its URL."""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from feature_runs import INLINE

from jobs.recipes import stage
from ov2_core.data import measure
from ov2_core.data.measure import Fetching, read_media
from ov2_core.data.read_pack import open_packs
from ov2_core.data.stage import load_stage
from ov2_core.data.stage_config import with_settings
from ov2_core.errors import BadItemError
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.fetch import FetchLimits
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum
from schemas.stage import StageRecord


def picture(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (56, 28), (grey,) * 3).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[str]:
    """host:port of a server of /40.png .. /200.png, a page that is no picture, one that is not there, one that leads inwards."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            body = picture(int(name.removesuffix(".png"))) if name[0].isdigit() else b"<html>no picture</html>"
            self.send_response({"gone": 404, "inwards": 302}.get(name, 200))
            if name == "inwards":
                self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def build(folder: Path, server: str, out: str, **options: object) -> StageRecord:
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    (folder / "local.png").write_bytes(picture(240))
    names = ["40.png", "page", "80.png", "gone", "120.png", "inwards", "160.png"]
    rows = [{"image": f"http://{server}/{name}", "id": name, "caption": f"It is {name}."} for name in names]
    rows += [{"image": str(folder / "local.png"), "id": "local", "caption": "It is local."}]
    rows += [{"image": "s3fs::file:///etc/passwd", "id": "chained", "caption": "?"}]
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sources.yaml").write_text(
        "sources: [{name: image-text, importer: manifest, path: images.jsonl, weight: 1}]"
    )
    chosen = CurriculumOptions(sources=str(folder / "sources.yaml"), model=str(folder / "model"), **options)  # type: ignore[arg-type]
    config = with_settings(stage("stage1"), ["sequence_length=256", "packs_per_block=2"])
    return build_curriculum(Store(folder / out), config, chosen, INLINE)


def dropped(folder: Path) -> dict[str, tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    return {row["id"]: (row["reason"], row["message"]) for row in rows}


def test_what_cannot_be_fetched_is_dropped_by_name_and_nothing_else_is_lost(tmp_path: Path, server: str) -> None:
    record = build(tmp_path, server, "S", fetch=True, fetch_hosts=(server,))
    fallen = dropped(tmp_path / "S")
    assert {id: reason for id, (reason, _) in fallen.items() if id in ("page", "gone", "inwards")} == {
        "page": "not_media",
        "gone": "source_missing",
        "inwards": "refused_uri",
    }
    for name in ("page", "gone", "inwards"):
        assert f"http://{server}/{name}" in fallen[name][1]
    assert set(fallen) == {"page", "gone", "inwards", "chained"}
    packs = open_packs(Store(tmp_path / "S"), load_stage(Store(tmp_path / "S")), moved={})
    greys = {}
    for number in range(len(packs)):
        for sample in packs.load(number, skip_bad=False).samples:
            greys[sample.messages[-1].content] = round(float(sample.media[0].image(0).mean()))
    assert greys == {**{f"It is {n}.png.": n for n in (40, 80, 120, 160)}, "It is local.": 240}
    assert record.sources[0].num_samples == 5


def test_nothing_is_fetched_unless_allowed_and_nothing_inside_a_network_unless_named(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build(tmp_path, server, "inside", fetch=True)
    assert record.sources[0].dropped == {"refused_uri": 7}
    assert f"--fetch-host {server}" in dropped(tmp_path / "inside")["40.png"][1]
    monkeypatch.setattr(measure, "fetch", lambda *_: pytest.fail("fetched"))
    record = build(tmp_path, server, "never")
    assert record.sources[0].dropped == {"refused_uri": 7}
    assert "--fetch" in dropped(tmp_path / "never")["40.png"][1]
    assert record.sources[0].num_samples == 1


def test_options_that_allow_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="give --fetch"):
        CurriculumOptions(sources="x", fetch_hosts=("localhost",))
    with pytest.raises(ValueError, match="host or host:port"):
        CurriculumOptions(sources="x", fetch=True, fetch_hosts=("http://localhost/",))


@pytest.mark.parametrize("uri", ["/dev/zero", "file:///dev/zero"])
def test_what_is_no_regular_file_is_not_read(uri: str) -> None:
    with pytest.raises(BadItemError) as caught:
        read_media(uri, Fetching())
    assert caught.value.reason == "refused_uri"


def test_local_files_and_object_stores_are_read_to_the_limit(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "a").write_bytes(bytes(1000))
    fsspec.filesystem("memory").pipe_file("/fetch/a", bytes(1000))
    for uri in (str(tmp_path / "a"), "memory://fetch/a"):
        assert read_media(uri, Fetching(allowed=True, limits=FetchLimits(max_bytes=1000))) == bytes(1000)
        with pytest.raises(BadItemError, match="more than 999 bytes") as caught:
            read_media(uri, Fetching(allowed=True, limits=FetchLimits(max_bytes=999)))
        assert caught.value.reason == "too_large"
    with pytest.raises(BadItemError) as caught:
        read_media(str(tmp_path / "b"), Fetching())
    assert caught.value.reason == "source_missing"
