"""Answers from a server that speaks the OpenAI chat protocol, such as vLLM: no library needed, bounded in every way.

Enters: questions. Leaves: answers. A video goes as uniform frames with their times written between them (`media="frames"`, which
every server of vision models understands), or as a file:// or http URL (`media="video"`, vLLM's `video_url`; local files need its
--allowed-local-media-path). Requests have a deadline; connection errors, 408, 409, 429 and 5xx are tried again with growing pauses
that honour Retry-After; what the server says otherwise is the question's error.
"""

import base64
import contextlib
import http.client
import io
import json
import math
import mimetypes
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ov2_core.config import recipe, with_overrides
from ov2_core.evals.asking import Answer, Question
from ov2_core.tokenize_video import tokenize_video

RETRIED_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})
MAX_PAUSE_SECONDS = 30.0
MAX_REPLY_BYTES = 16 << 20


@dataclass(kw_only=True)
class ServerAnswerer:
    """A model behind POST base_url/chat/completions."""

    base_url: str
    """Up to and with the version: http://127.0.0.1:8000/v1"""
    model: str
    media: Literal["frames", "video"] = "frames"
    num_frames: int = 32
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Of the recipe uniform-N that samples frames: area_px, jpeg_quality, ..."""
    max_new_tokens: int = 1024
    temperature: float = 0.0
    timeout_seconds: float = 300.0
    """Of one request, connecting and waiting together."""
    max_attempts: int = 4
    max_in_flight: int = 8
    api_key: str | None = None
    first_pause_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"the server must be an http(s) URL such as http://127.0.0.1:8000/v1, got {self.base_url!r}"
            )
        if (
            min(self.max_attempts, self.max_in_flight, self.num_frames, self.max_new_tokens) < 1
            or self.timeout_seconds <= 0
        ):
            raise ValueError("attempts, requests in flight, frames, new tokens and the timeout must be > 0")

    def settings(self) -> dict[str, Any]:
        names = ("base_url", "model", "media", "num_frames", "max_new_tokens", "temperature")
        return {name: getattr(self, name) for name in names} | {"overrides": dict(self.overrides)}

    def answer(self, question: Question) -> Answer:
        """One answer.

        Raises:
            ValueError: the server refuses the request, or its reply holds no answer.
            OSError: it did not answer in max_attempts tries.
            BadItemError: the video cannot be read.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": self._content(question)}],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }
        reply = self._post(json.dumps(body).encode())
        try:
            text = reply["choices"][0]["message"]["content"]
            if isinstance(text, list):  # parts, as in questions
                text = "".join(part["text"] for part in text if part.get("type") == "text")
            if not isinstance(text, str):
                raise TypeError(f"its content is {type(text).__name__}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.base_url}: the reply holds no answer ({error!r})") from None
        return Answer(text=text)

    def _content(self, question: Question) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for path in question.images:
            parts.append(_picture(Path(path).read_bytes(), mimetypes.guess_type(path)[0] or "image/jpeg"))
        if question.video is not None and self.media == "video":
            local = "://" not in question.video
            url = Path(question.video).absolute().as_uri() if local else question.video
            parts.append({"type": "video_url", "video_url": {"url": url}})
        elif question.video is not None:
            config = with_overrides(recipe(f"uniform-{self.num_frames}"), self.overrides).tokenizer
            video = tokenize_video(question.video, config)
            for image_HW3, positions_P3 in zip(video.images_NHW3, video.positions_NP3, strict=True):
                seconds = float(positions_P3[0, 0]) / (video.fps or 1.0)
                parts.append({"type": "text", "text": f"<{seconds:.{question.timestamp_decimal}f} seconds>"})
                buffer = io.BytesIO()
                Image.fromarray(image_HW3).save(buffer, format="JPEG", quality=config.jpeg_quality)
                parts.append(_picture(buffer.getvalue(), "image/jpeg"))
        return [*parts, {"type": "text", "text": question.prompt}]

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = self.base_url.rstrip("/") + "/chat/completions"
        problem = "no attempt was made"
        for attempt in range(self.max_attempts):
            pause = self.first_pause_seconds * 2**attempt * random.uniform(0.75, 1.25)
            try:
                reply = _fetch(urllib.request.Request(url, data=body, headers=headers), self.timeout_seconds)
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                problem = f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}"
            else:
                if reply.status == 200:
                    return _json_of(url, reply.data)
                said = reply.data[:2000].decode("utf-8", "replace").strip()
                problem = f"{url}: {reply.status} {reply.reason}: {said:.300}"
                if reply.status not in RETRIED_STATUS:
                    raise ValueError(problem)
                pause = max(pause, reply.retry_after_seconds)
            if attempt + 1 < self.max_attempts:
                time.sleep(min(pause, MAX_PAUSE_SECONDS))
        raise OSError(f"{problem} ({self.max_attempts} attempts)")


def _json_of(url: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url}: the reply is no JSON: {error}") from None


def key_from_environment(name: str | None) -> str | None:
    """The value of an environment variable; None where no name is given.

    Raises:
        ValueError: it is not set.
    """
    if name is None:
        return None
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set")
    return os.environ[name]


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    reason: str
    retry_after_seconds: float
    data: bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A question is not sent on to another address, nor is the key."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def _fetch(request: urllib.request.Request, timeout_seconds: float) -> _Reply:
    """The whole reply, whatever its status, within the deadline: socket timeouts count from byte to byte, so a watchdog ends a
    reply that trickles.

    Raises:
        OSError, http.client.HTTPException: there is none, or not the whole of it.
    """
    late = threading.Event()
    sockets: list[socket.socket] = []

    def kept(kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        class Connection(kind):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Connection

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(kept(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(kept(http.client.HTTPSConnection), req)

    def cut() -> None:
        late.set()
        for connected in sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    watchdog = threading.Timer(timeout_seconds, cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        opener = urllib.request.build_opener(Http, Https, _NoRedirects)
        try:
            reply: Any = opener.open(request, timeout=timeout_seconds)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            data: bytes = reply.read(MAX_REPLY_BYTES + 1)
            left = getattr(reply.fp if isinstance(reply, urllib.error.HTTPError) else reply, "length", None)
            if len(data) > MAX_REPLY_BYTES:
                raise OSError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
            if left and not late.is_set():
                raise ConnectionError(f"the reply was cut off, {left} bytes before its end")
    except Exception as error:
        raise TimeoutError(f"no whole reply in {timeout_seconds:g} s") if late.is_set() else error from None
    finally:
        watchdog.cancel()
    if late.is_set():
        raise TimeoutError(f"no whole reply in {timeout_seconds:g} s")
    return _Reply(reply.status, str(reply.reason), _seconds_of(reply.headers.get("Retry-After")), data)


def _picture(data: bytes, kind: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def _seconds_of(retry_after: str | None) -> float:
    """0 for none, for a date and for nonsense: then the client's own pause holds."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0
