"""Asking a model about a video or a still: a folder, a file and a question in, text out as it is made.

    from ov2_core.model import load

    model = load("path/to/model")
    print(model.ask(video="clip.mp4", prompt="What happens, and when?"))

The one file that composes the model with decoding: a video is tokenized by the recipes that also make shards, so that the model
is asked in the layout that it was trained on. Greedy by default, so answers repeat.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from ov2_core.config import recipe, with_overrides
from ov2_core.model.batch import Batch
from ov2_core.model.chatml import IM_END, VisionRuns, format_seconds
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.processor import LlavaOnevision2Processor, Medium
from ov2_core.model.visual import Visual, attend_alone, split_stills
from ov2_core.model.weights import load_model

log = logging.getLogger(__name__)

InputMode = Literal["codec", "frames", "stills"]
Attend = Literal["group", "image"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question with its media, ready for the model."""

    batch: Batch
    visuals: tuple[Visual, ...]
    runs: tuple[VisionRuns, ...]
    """Source times of each visual."""

    @property
    def num_visual_tokens(self) -> int:
        return sum(visual.num_tokens for visual in self.visuals)

    def timeline(self) -> str:
        """A line for each visual (like ones together): its images, tokens, and first and last source time."""
        lines = []
        for visual, runs in zip(self.visuals, self.runs, strict=True):
            line = f"{visual.kind}: {visual.num_images} images, {visual.num_tokens} tokens"
            times = [seconds for seconds in runs.seconds_R if seconds is not None]
            if times:
                first, last = (format_seconds(seconds, runs.timestamp_decimal) for seconds in (times[0], max(times)))
                line += f", {len(times)} source times {first} .. {last}"
            lines.append(line)
        alike = [(line, len(list(same))) for line, same in groupby(lines)]
        return "\n".join(line if count == 1 else f"{count} x {line}" for line, count in alike)

    def times(self) -> str:
        """A line for each run: its source time and its tokens."""
        return "\n".join(
            f"{'still' if seconds is None else format_seconds(seconds, runs.timestamp_decimal)} {count} tokens"
            for runs in self.runs
            for seconds, count in zip(runs.seconds_R, runs.num_tokens_R, strict=True)
        )


class OneVisionChat:
    """A model with its processor."""

    def __init__(self, model: LlavaOnevision2ForConditionalGeneration, processor: LlavaOnevision2Processor) -> None:
        """
        Raises:
            ValueError: the tokenizer's <|image_pad|> is not the model's image_token_id, or it has more entries than the model.
        """
        config = model.config
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"the tokenizer's <|image_pad|> is {processor.image_token_id}, but config.json says image_token_id "
                f"{config.image_token_id}; this tokenizer is another model's"
            )
        if len(processor.tokenizer) > config.text_config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(processor.tokenizer)} entries, the model's vocabulary {config.text_config.vocab_size}; "
                "this tokenizer is another model's"
            )
        self.model = cast("Any", model).eval()
        self.processor = processor

    def ask(self, prompt: str, *, video: Medium = None, image: Medium = None, **options: Any) -> str:
        """The whole answer; options as `stream`."""
        return "".join(self.stream(prompt, video=video, image=image, **options))

    def stream(
        self,
        prompt: str,
        *,
        video: Medium = None,
        image: Medium = None,
        input: InputMode = "codec",
        budget: int = 32,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """The answer, piece by piece as it is made. Arguments as `prepare` and `generate`."""
        question = self.prepare(prompt, video=video, image=image, input=input, budget=budget)
        return self.generate(question, max_new_tokens=max_new_tokens, temperature=temperature)

    def prepare(
        self,
        prompt: str,
        *,
        video: Medium = None,
        image: Medium = None,
        input: InputMode = "codec",
        budget: int = 32,
        attend: Attend = "group",
        overrides: Mapping[str, str] | None = None,
    ) -> Question:
        """Opens the media and lays the question out.

        Args:
            video: a path, or anything that the processor takes (a TokenizedVideo, a StoredSample); a list asks about several.
            image: a path, a PIL image or uint8 [H, W, 3]; a list asks about several. Stills come before videos.
            input: "codec" (canvases), "frames" (uniform frames) or "stills" (uniform frames without times, each on its own).
            budget: canvases or frames of a video.
            attend: "group": the encoder attends inside each group of canvases; "image": inside each image alone.
            overrides: fields of the recipe, as the command line's --set: {"policy": "evidence"}.

        Raises:
            ValueError: an unknown input, or a medium that does not fit.
            BadItemError: a file that cannot be read; the message names it.
        """
        tokenizer = with_overrides(recipe(_recipe_name(input, budget)), overrides or {}).tokenizer
        visuals = [self.processor.show(medium, recipe="stills") for medium in _several(image)]
        for medium in _several(video):
            visual = self.processor.show(medium, recipe=tokenizer)
            visuals.extend(split_stills(visual) if input == "stills" and visual.kind == "video" else [visual])
        if attend not in get_args(Attend):
            raise ValueError(f"attend must be one of {', '.join(get_args(Attend))}, got {attend!r}")
        if attend == "image":
            visuals = [attend_alone(visual) for visual in visuals]
        batch = self.processor(visuals, prompt=prompt, for_generation=True)
        return Question(batch=batch, visuals=tuple(visuals), runs=tuple(visual.runs() for visual in visuals))

    def generate(self, question: Question, *, max_new_tokens: int = 512, temperature: float = 0.0) -> Iterator[str]:
        """The answer, piece by piece. Leaving the iterator early stops the model after its current token.

        Args:
            temperature: 0 takes the likeliest token; above it, tokens are sampled.

        Raises:
            ValueError: a budget of no tokens, a negative temperature, or a question that is longer than the model's context.
        """
        if max_new_tokens < 1 or temperature < 0:
            raise ValueError(
                f"max_new_tokens must be >= 1 and temperature >= 0, got {max_new_tokens} and {temperature}"
            )
        context, length = self.model.config.text_config.max_position_embeddings, question.batch.input_ids.shape[1]
        if length + max_new_tokens > context:
            raise ValueError(
                f"the question has {length} tokens ({question.num_visual_tokens} visual), which with {max_new_tokens} new ones "
                f"exceeds the model's context of {context}; lower the budget or max_new_tokens"
            )
        return self._stream(question, max_new_tokens=max_new_tokens, temperature=temperature)

    def _stream(self, question: Question, *, max_new_tokens: int, temperature: float) -> Iterator[str]:
        tokenizer = self.processor.tokenizer
        parameter = next(self.model.parameters())
        inputs = question.batch.to(parameter.device, dtype=parameter.dtype).prompt()
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, failures = _StopRequested(), list[BaseException]()
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

        def run() -> None:
            try:
                self.model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=[stop],
                    eos_token_id=_end_ids(tokenizer),
                    pad_token_id=self.processor.pad_token_id,
                )
            except BaseException as error:  # it belongs to the caller, who waits on the streamer
                failures.append(error)
                streamer.end()

        worker = threading.Thread(target=run, name="ov2-generate", daemon=True)
        worker.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.requested = True
            worker.join()
        if failures:
            raise failures[0]


def load(
    folder: str | os.PathLike[str], *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> OneVisionChat:
    """A model of a local folder (config.json, safetensors, tokenizer.json). No code of the folder is run, nothing is fetched.

    Args:
        device: by default the GPU where there is one, else the CPU.
        dtype: by default bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: the folder is not there, or holds no model, no tokenizer or files that do not fit together; a missing, extra
            or misshapen tensor is named.
    """
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; give the local folder of a model")
    target = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    wanted = dtype or (torch.bfloat16 if target.type == "cuda" else torch.float32)
    processor = LlavaOnevision2Processor.from_pretrained(root)
    return OneVisionChat(load_model(root, dtype=wanted, device=target), processor)


class _StopRequested(StoppingCriteria):
    """Stops every sequence once `requested` is set."""

    requested = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.requested, device=input_ids.device)


def _several(media: Medium | Sequence[Medium] | None) -> list[Medium]:
    return [] if media is None else list(media) if isinstance(media, list | tuple) else [media]


def _recipe_name(input: str, budget: int) -> str:
    if input not in get_args(InputMode):
        raise ValueError(f"input must be one of {', '.join(get_args(InputMode))}, got {input!r}")
    return f"codec-{budget}" if input == "codec" else f"uniform-{budget}"


def _end_ids(tokenizer: Any) -> list[int]:
    """<|im_end|>, and the tokenizer's end of text where it has one."""
    found = (tokenizer.convert_tokens_to_ids(token) for token in (IM_END, _END_OF_TEXT))
    return [int(token_id) for token_id in found if token_id is not None]
