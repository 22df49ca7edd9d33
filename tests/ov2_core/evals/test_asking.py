"""Asking all questions: answers as they come, resumption, failures that stop nothing; and a client against a local server."""

import base64
import http.server
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from ov2_core.evals.answers import read_predictions
from ov2_core.evals.asking import Answer, Question, ask_all, questions_of
from ov2_core.evals.item import TruthItem
from ov2_core.evals.server import ServerAnswerer, key_from_environment
from ov2_core.evals.suites import SUITES


def questions(count=5, video=None):
    return [Question(id=f"q{i}", prompt=f"Question {i}?", video=video) for i in range(count)]


class Fake:
    """Answers with the question's number; fails where told; knows how many it was asked at a time."""

    def __init__(self, *, max_in_flight=1, fails=(), budget=4):
        self.max_in_flight, self.fails, self.budget = max_in_flight, set(fails), budget
        self.asked, self.now, self.most = [], 0, 0
        self._lock = threading.Lock()

    def settings(self):
        return {"model": "fake", "budget": self.budget}

    def answer(self, question):
        with self._lock:
            self.asked.append(question.id)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005 if self.max_in_flight > 1 else 0)
        with self._lock:
            self.now -= 1
        if question.id in self.fails:
            raise ValueError("too long")
        return Answer(text=f"[{question.id[1:]}]", num_visual_tokens=10)


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_failed_questions_are_named_stop_no_other_and_are_asked_again(tmp_path, max_in_flight):
    path = tmp_path / "answers.jsonl"
    first = Fake(max_in_flight=max_in_flight, fails={"q1", "q3"})
    summary = ask_all(questions(), first, path)
    assert (summary.num_answered, summary.num_failed, summary.mean_visual_tokens) == (3, 2, 10)
    found = read_predictions(path)
    assert found.answers == {"q0": "[0]", "q2": "[2]", "q4": "[4]"}
    assert found.bad_lines == []
    assert "too long" in path.read_text()
    assert summary.first_error == "ValueError: too long"
    second = Fake(max_in_flight=max_in_flight)
    assert ask_all(questions(), second, path).num_failed == 0
    assert sorted(second.asked) == ["q1", "q3"]
    assert ask_all(questions(), Fake(), path).num_answered == 5
    assert first.most <= max_in_flight


def test_answers_of_a_run_that_was_cut_off_in_a_line_are_kept(tmp_path):
    path = tmp_path / "answers.jsonl"
    ask_all(questions(), Fake(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = Fake()
    ask_all(questions(), again, path)
    assert again.asked == ["q4"]
    found = read_predictions(path)
    assert len(found.answers) == 5
    assert len(found.bad_lines) == 1


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    ask_all(questions(), Fake(), path)
    with pytest.raises(ValueError, match=r"budget: 4 -> 8"):
        ask_all(questions(), Fake(budget=8), path)
    (tmp_path / "answers.jsonl.run.json").unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        ask_all(questions(), Fake(), path)


def test_many_questions_fly_at_once_but_no_more_than_allowed(tmp_path):
    fake = Fake(max_in_flight=4)
    ask_all(questions(40), fake, tmp_path / "a.jsonl")
    assert 2 <= fake.most <= 4


def test_questions_need_a_prompt_and_media():
    item = TruthItem(id="x", answer=[], row={"id": "x"}, folder="/")
    with pytest.raises(ValueError, match="item x: no `question`"):
        questions_of(SUITES["grounding"], [item])
    with pytest.raises(ValueError, match="item x: no `video`"):
        questions_of(SUITES["jumpscore"], [item])
    stills = TruthItem(
        id="x", answer=[], row={"id": "x", "question": "<image>\nWhere?", "images": ["a.jpg"]}, folder="/data"
    )
    [question] = questions_of(SUITES["spatial"], [stills])
    assert (question.prompt, question.video, question.images) == ("Where?", None, ("/data/a.jpg",))


def test_choices_are_asked_where_the_question_does_not_name_them():
    rows = [
        {"question": "Where?", "choices": ["left", "right"]},
        {"question": "A. left B. right?", "choices": ["left", "right"]},
    ]
    items = [TruthItem(id=str(n), answer=None, row={**row, "image": "a.png"}, folder="/") for n, row in enumerate(rows)]
    found = [question.prompt for question in questions_of(SUITES["spatial"], items)]
    assert found == ["Where?\nA. left\nB. right\nAnswer with the letter.", "A. left B. right?"]


# -------------------------------------------------------------------------------- a server


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        with self.server.lock:
            act = self.server.script.pop(0) if self.server.script else "answer"
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        if act == "slow":
            time.sleep(0.03)
        with self.server.lock:  # before the reply: the client may ask again as soon as it has it
            self.server.now -= 1
        self.reply(act)

    def reply(self, act):
        text = json.dumps({"choices": [{"message": {"role": "assistant", "content": "[0.5]"}}]}).encode()
        status = act if isinstance(act, int) else 200
        if act == "drop":
            self.connection.close()
            return
        if act == "hang":
            self.server.stop.wait(30)
            return
        if act == "junk":
            text = b"<html>"
        if act == "empty":
            text = b'{"choices": []}'
        if act == "parts":
            text = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "[0.5]"}]}}]}).encode()
        if act == "slow head":
            for byte in b"HTTP/1.0 200 OK\r\nX-Padding: " + b"x" * 200:
                if self.server.stop.wait(0.1):
                    return
                self.wfile.write(bytes([byte]))
            return
        if act == "error that hangs":
            status = 500
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) + (100 if act in ("cut off", "error that hangs") else 0)))
        if status == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere")
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        if act == "trickle":
            for byte in text:
                if self.server.stop.wait(0.1):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            return
        self.wfile.write(text)
        if act == "error that hangs":
            self.wfile.flush()
            self.server.stop.wait(30)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.requests, made.script, made.lock, made.now, made.most = [], [], threading.Lock(), 0, 0
    made.stop = threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.stop.set()
    made.shutdown()
    made.server_close()


def client(server, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return ServerAnswerer(base_url=url, model="m", first_pause_seconds=0.005, **{"timeout_seconds": 2.0, **options})


def test_a_server_is_asked_in_the_chat_protocol(server, clip_folder):
    answer = client(server, num_frames=4, api_key="secret").answer(
        Question(id="a", prompt="When?", video=str(clip_folder / "clip_0.mp4"), timestamp_decimal=2)
    )
    assert answer.text == "[0.5]"
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("m", 0.0)
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url"] * 4 + ["text"]
    assert content[0]["text"] == "<0.00 seconds>"
    assert content[-1]["text"] == "When?"
    picture = base64.b64decode(content[1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert np.asarray(Image.open(io.BytesIO(picture))).ndim == 3


def test_videos_may_go_as_urls_and_settings_hold_no_key(server):
    asked = client(server, media="video", api_key="secret")
    asked.answer(Question(id="a", prompt="When?", video="/data/a b.mp4"))
    assert server.requests[0][2]["messages"][0]["content"][0]["video_url"]["url"] == "file:///data/a%20b.mp4"
    assert "secret" not in json.dumps(asked.settings())


@pytest.mark.parametrize("script", [[500, 429, "drop"], [503], ["drop", "drop", "drop"], ["cut off"]])
def test_passing_failures_are_tried_again(server, script):
    server.script = list(script)
    assert client(server).answer(Question(id="a", prompt="?", video=None)).text == "[0.5]"
    assert len(server.requests) == len(script) + 1


@pytest.mark.parametrize(
    ("script", "error", "message", "num_requests"),
    [
        ([400], ValueError, "400", 1),
        ([404], ValueError, "404", 1),
        ([302], ValueError, "302", 1),  # neither the question nor the key goes to another address
        (["junk"], ValueError, "no JSON", 1),
        (["empty"], ValueError, "no answer", 1),
        ([500] * 9, OSError, r"500.*\(4 attempts\)", 4),
    ],
)
def test_what_does_not_pass_is_the_questions_error(server, script, error, message, num_requests):
    server.script = list(script)
    with pytest.raises(error, match=message):
        client(server).answer(Question(id="a", prompt="?", video=None))
    assert len(server.requests) == num_requests


def test_an_answer_in_parts_is_read(server):
    server.script = ["parts"]
    assert client(server).answer(Question(id="a", prompt="?", video=None)).text == "[0.5]"


def test_pictures_are_sent_as_what_they_are(server, tmp_path):
    for name in ("a.webp", "b.PNG", "c"):
        (tmp_path / name).write_bytes(b"x")
    client(server).answer(
        Question(id="a", prompt="?", video=None, images=[str(tmp_path / n) for n in ("a.webp", "b.PNG", "c")])
    )
    urls = [part["image_url"]["url"] for part in server.requests[0][2]["messages"][0]["content"][:3]]
    assert [url.split(";")[0] for url in urls] == ["data:image/webp", "data:image/png", "data:image/jpeg"]


@pytest.mark.parametrize("act", ["hang", "trickle", "slow head", "error that hangs"])
def test_a_server_that_hangs_or_trickles_is_left_at_the_deadline(server, act):
    server.script = [act] * 4
    began = time.perf_counter()
    with pytest.raises(OSError, match="2 attempts"):
        client(server, timeout_seconds=0.3, max_attempts=2).answer(Question(id="a", prompt="?", video=None))
    assert time.perf_counter() - began < 10  # without deadlines it is 20 s and more


def test_no_server_is_an_error_of_each_question(tmp_path):
    answerer = ServerAnswerer(
        base_url="http://127.0.0.1:9/v1", model="m", max_attempts=2, first_pause_seconds=0.001, timeout_seconds=1.0
    )
    summary = ask_all(questions(3), answerer, tmp_path / "a.jsonl")
    assert (summary.num_answered, summary.num_failed) == (0, 3)


def test_requests_in_flight_are_bounded(server, tmp_path):
    server.script = ["slow"] * 30
    summary = ask_all(questions(30), client(server, max_in_flight=3), tmp_path / "a.jsonl")
    assert summary.num_answered == 30
    assert 2 <= server.most <= 3


def test_wrong_options_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="http"):
        ServerAnswerer(base_url="file:///etc", model="m")
    with pytest.raises(ValueError, match="> 0"):
        ServerAnswerer(base_url="http://x/v1", model="m", timeout_seconds=0)
    monkeypatch.delenv("OV2_TEST_KEY", raising=False)
    with pytest.raises(ValueError, match="OV2_TEST_KEY is not set"):
        key_from_environment("OV2_TEST_KEY")
    assert key_from_environment(None) is None
