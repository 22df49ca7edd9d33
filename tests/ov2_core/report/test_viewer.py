"""The page in headless Chromium, opened from disk: it draws itself, tells where blocks came from, rebuilds the clip."""

import base64
import dataclasses
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ov2_core.report.rebuild import block_sources, rebuild_frames
from ov2_core.report.render import write_report
from ov2_core.storage.files import Store
from ov2_core.storage.reader import StoredSample
from schemas.shard import QuarantineRow
from schemas.video import Message

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> & <!-- \u2028"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--window-size=1400,1200",
)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra: dev)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    session.set_script_timeout(20)
    yield session
    session.quit()


@pytest.fixture
def open_report(browser, tmp_path, make_run):
    """Write a run of the samples, open its report from disk, wait until the first sample is drawn."""

    def write_and_open(encoded: list[Any], **rows: Any) -> Any:
        store = Store(tmp_path / "run")
        make_run(store, tmp_path, encoded, **rows)
        browser.get_log("browser")  # what an earlier page said is gone after this
        browser.get(Path(write_report(store)).absolute().as_uri())
        wait_for(browser, "return document.querySelector('.sample')?.dataset.ready === 'true'")
        return browser

    return write_and_open


def wait_for(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda page: page.execute_script(script))


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def stage_pixels(browser: Any) -> np.ndarray:
    url = browser.execute_script("return document.querySelector('.stage').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def scrub_to(browser: Any, tick: int) -> None:
    browser.execute_script(
        "const s = document.querySelector('.scrub'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", tick
    )


def point_at(browser: Any, image: int, row: int, column: int, *, rows: int, columns: int) -> None:
    """Move the real pointer over the middle of a block."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    face = browser.find_element(By.CSS_SELECTOR, f".face[data-image='{image}']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", face)
    width, height = face.size["width"], face.size["height"]
    right, down = (column + 0.5) / columns * width - width / 2, (row + 0.5) / rows * height - height / 2
    ActionChains(browser, duration=20).move_to_element_with_offset(face, round(right), round(down)).perform()


def field(browser: Any, name: str) -> str:
    return browser.execute_script("return document.querySelector(`[data-field=${arguments[0]}]`).textContent", name)


def test_report_opens_from_disk_without_an_error(open_report, make_tokenized, make_encoded):
    page = open_report([make_encoded(make_tokenized(), key=f"k{i}", line=i + 1) for i in range(3)])
    assert errors(page) == []
    assert page.execute_script("return document.querySelectorAll('[role=tab]').length") == 3
    assert page.execute_script("return document.querySelectorAll('.face').length") == 8
    assert page.execute_script("return document.querySelectorAll('.band').length") == 2
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.execute_script("document.querySelectorAll('[role=tab]')[2].click()")
    wait_for(page, "return document.querySelector('.sample')?.dataset.ready === 'true'")
    assert errors(page) == []


@pytest.mark.parametrize(("image", "row", "column"), [(1, 0, 2), (3, 2, 3), (4, 1, 1), (6, 1, 0)])
def test_hover_tells_the_source_time_and_place(open_report, make_tokenized, make_encoded, image, row, column):
    encoded = make_encoded(make_tokenized())
    page = open_report([encoded])
    stored = StoredSample(key="k", tar_name="", members=encoded.members)
    sources = block_sources(stored.record, stored.positions_NP3[image])
    t, source_row, source_column = sources[row * 4 + column].tolist()

    point_at(page, image, row, column, rows=3, columns=4)
    assert field(page, "time").split() == [f"{t / 10:.2f}", "s", "(t", "=", f"{t})"]
    assert field(page, "place") == f"row {source_row}, column {source_column}"
    assert field(page, "slot") == f"row {row}, column {column}"
    assert field(page, "image") == f"image {image}, group {image // 4 + 1}"
    mark = page.execute_script("const m = document.querySelector('.mini-mark').style; return [m.left, m.top]")
    assert [float(side.rstrip("%")) for side in mark] == pytest.approx(
        [source_column / 4 * 100, source_row / 3 * 100], abs=0.01
    )
    tick, x, width = page.execute_script(
        "const m = document.querySelector('.mark.on'), box = document.querySelector('.timeline').viewBox.baseVal;"
        "return [m.dataset.t, Number(m.querySelector('line').getAttribute('x1')), box.width]"
    )
    assert int(tick) == t
    assert x / width == pytest.approx(t / 40, abs=0.002)
    held = [
        s[0]
        for p in stored.positions_NP3
        for s in block_sources(stored.record, p).tolist()
        if s[1:] == [source_row, source_column] and s[0] > t
    ]
    assert field(page, "held").startswith(f"{min(held) / 10:.2f} s" if held else "the end")


def test_mini_map_shows_the_frame_of_that_time_with_that_block(open_report, make_tokenized, make_encoded):
    encoded = make_encoded(make_tokenized())
    page = open_report([encoded])
    stored = StoredSample(key="k", tar_name="", members=encoded.members)
    point_at(page, 2, 1, 1, rows=3, columns=4)
    t = int(block_sources(stored.record, stored.positions_NP3[2])[5, 0])
    url = page.execute_script("return document.querySelector('.mini').toDataURL('image/png')")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)
    assert np.abs(shown - rebuild_frames(stored, [t / 10])[0]).max() <= 3


def test_rebuilt_frames_equal_the_reference(open_report, make_tokenized, make_encoded):
    encoded = make_encoded(make_tokenized(seed=3))
    page = open_report([encoded])
    stored = StoredSample(key="k", tar_name="", members=encoded.members)
    ticks = [0, 7, 3, 19, 20, 33, 39, 1]
    expected = rebuild_frames(stored, [tick / 10 for tick in ticks]).astype(int)
    assert len({frame.tobytes() for frame in expected}) == len(ticks)
    for tick, frame in zip(ticks, expected, strict=True):
        scrub_to(page, tick)
        assert np.abs(stage_pixels(page) - frame).max() <= 3, f"tick {tick}"


def test_rebuild_toggle_off_shows_the_latest_whole_frame(open_report, make_tokenized, make_encoded):
    encoded = make_encoded(make_tokenized())
    page = open_report([encoded])
    whole = StoredSample(key="k", tar_name="", members=encoded.members).images_NHW3[[0, 4]].astype(int)
    page.execute_script("document.querySelector('.rebuild').click()")
    for tick, frame in ((0, whole[0]), (19, whole[0]), (20, whole[1]), (39, whole[1])):
        scrub_to(page, tick)
        assert np.abs(stage_pixels(page) - frame).max() <= 3
    page.execute_script("document.querySelector('.rebuild').click()")
    assert np.abs(stage_pixels(page) - whole[1]).max() > 20


def test_play_runs_to_the_end_and_stops(open_report, make_tokenized, make_encoded):
    page = open_report([make_encoded(make_tokenized(frames_per_group=20, fps=40.0))])
    page.execute_script("document.querySelector('.play').click()")
    wait_for(page, "return document.querySelector('.scrub').value === '39'")
    wait_for(page, "return document.querySelector('.play').getAttribute('aria-label') === 'Play'")


def test_overlay_tints_blocks_by_time(open_report, make_tokenized, make_encoded):
    encoded = make_encoded(make_tokenized())
    page = open_report([encoded])
    read = (
        "const c = document.querySelectorAll('.tint')[1]; return [...c.getContext('2d').getImageData(0, 0, 4, 3).data]"
    )
    assert not any(page.execute_script(read))
    page.execute_script("document.querySelector('[data-overlay=group]').click()")
    tint = np.array(page.execute_script(read)).reshape(12, 4)
    assert (tint[:, 3] > 0).all()
    stored = StoredSample(key="k", tar_name="", members=encoded.members)
    times = block_sources(stored.record, stored.positions_NP3[1])[:, 0]
    for i in range(11):
        assert (tint[i] == tint[i + 1]).all() == (times[i] == times[i + 1])
    page.execute_script("document.querySelector('[data-overlay=none]').click()")
    assert not any(page.execute_script(read))


def test_keys_alone_reach_blocks_and_times(open_report, make_tokenized, make_encoded):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    encoded = make_encoded(make_tokenized())
    page = open_report([encoded])
    stored = StoredSample(key="k", tar_name="", members=encoded.members)
    face = page.find_element(By.CSS_SELECTOR, ".face[data-image='2']")
    face.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ENTER)
    t, row, column = block_sources(stored.record, stored.positions_NP3[2])[5].tolist()
    assert field(page, "place") == f"row {row}, column {column}"
    assert page.execute_script("return document.querySelector('.scrub').value") == str(t)
    timeline = page.find_element(By.CSS_SELECTOR, ".timeline")
    timeline.send_keys(Keys.HOME, Keys.PAGE_DOWN)
    assert timeline.get_attribute("aria-valuenow") == "20"  # the start of group 2
    timeline.send_keys(Keys.ARROW_LEFT)
    assert timeline.get_attribute("aria-valuetext") == "1.90 s"
    assert page.execute_script("return document.querySelector('.timeline-line').textContent").startswith("1.90 s")


def test_still_has_no_timeline_and_tells_places(open_report, make_tokenized, make_encoded):
    tokenized = make_tokenized(num_groups=1)
    still = dataclasses.replace(
        tokenized,
        images_NHW3=tokenized.images_NHW3[:1],
        positions_NP3=tokenized.positions_NP3[:1],
        groups=(dataclasses.replace(tokenized.groups[0], num_images=1, t_end=1, num_frames=1),),
        fps=None,
        mode="still",
        policy=None,
        frame_bit_cost=np.zeros(0, np.float32),
    )
    page = open_report([make_encoded(still)])
    assert errors(page) == []
    assert page.execute_script("return document.querySelectorAll('.timeline, .player').length") == 0
    point_at(page, 0, 2, 1, rows=3, columns=4)
    assert field(page, "place") == "row 2, column 1"


def test_hostile_text_is_shown_as_text(open_report, make_tokenized, make_encoded):
    said = [Message(role="user", content=HOSTILE), Message(role="assistant", content=HOSTILE)]
    encoded = make_encoded(make_tokenized(), video_id=HOSTILE, uri=HOSTILE, messages=said)
    row = QuarantineRow(line=2, id=HOSTILE, uri=HOSTILE, reason="not_media", stage="probe", message=HOSTILE)
    page = open_report([encoded], quarantined=(row,))
    assert errors(page) == []
    assert page.title != "owned"
    assert page.execute_script("return document.querySelectorAll('main b').length > 0")
    assert page.execute_script("return [...document.querySelectorAll('b')].every((b) => b.textContent !== 'bold')")
    assert page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    for place in (".sample-id", ".assistant .said", ".user .said", ".ledger .message", ".ledger .id"):
        text = page.execute_script("return document.querySelector(arguments[0]).textContent", place)
        assert HOSTILE in text, place


def test_small_screen_does_not_overflow(open_report, make_tokenized, make_encoded):
    page = open_report([make_encoded(make_tokenized(), video_id="x" * 300, uri="u" * 300)])
    size = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    try:
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.execute_script("return innerWidth") == 420
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
