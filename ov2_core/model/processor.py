"""One call for each input: stills, frames, codec canvases, token-shard samples, files -> what the model's forward takes.

    processor = LlavaOnevision2Processor.from_pretrained(DIR)
    batch = processor("clip.mp4", prompt="What happens?", for_generation=True)   # tokenizes the clip first
    batch = processor(stored_sample)                                             # its own messages, labels on the answers
    batch = processor.collate([processor.encode(sample) for sample in samples])
    model(**batch)                                                               # or model.generate(**batch.prompt())

Shapes: batch.py.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL import Image

from ov2_core.config import TokenizerConfig, recipe
from ov2_core.errors import BadItemError
from ov2_core.model.batch import Batch, EncodedSample, VisionInputs, collate
from ov2_core.model.chatml import IMAGE_PAD, VISION_END, VISION_START, TextEncoder, Turn, lay_out
from ov2_core.model.patches import patchify, to_block_order
from ov2_core.model.processor_config import ProcessorConfig
from ov2_core.model.visual import Visual, is_sample, show_sample, show_still, show_tokenized
from ov2_core.tokenized import TokenizedVideo
from schemas.video import Message

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
DEFAULT_RECIPE = "codec-32"

Recipe = str | TokenizerConfig
"""A recipe's name (codec-N, evidence-N, uniform-N, uniform-auto, stills) or a whole tokenizer config."""

Medium = Visual | TokenizedVideo | Image.Image | np.ndarray[Any, Any] | str | os.PathLike[str] | Any
"""A still (PIL, uint8 [H, W, 3], a path), a video's path, a TokenizedVideo, a StoredSample, or a Visual."""


class LlavaOnevision2Processor:
    """Media and text to model inputs. Stateless but for a cache of timestamps."""

    def __init__(self, tokenizer: Any, config: ProcessorConfig | None = None) -> None:
        """
        Args:
            tokenizer: a Hugging Face tokenizer with Qwen's special tokens.

        Raises:
            ValueError: one of them is missing.
        """
        self.tokenizer = tokenizer
        self.config = config or ProcessorConfig()
        self._text = TextEncoder(tokenizer)

    @property
    def image_token_id(self) -> int:
        """Id of <|image_pad|>, from the tokenizer."""
        return self._text.special_ids[IMAGE_PAD]

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's padding id; <|im_end|> where it has none (masked anyway)."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self._text.special_ids["<|im_end|>"])

    def token_ids(self) -> dict[str, int]:
        """The ids that a model's config.json must say for this tokenizer."""
        names = {
            "image_token_id": IMAGE_PAD,
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
        }
        found = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
        return {name: int(token_id) for name, token_id in found.items() if token_id is not None}

    def __call__(
        self,
        media: Medium | Sequence[Medium] | None = None,
        *,
        messages: Sequence[Turn | dict[str, str]] | None = None,
        prompt: str | None = None,
        for_generation: bool = False,
        recipe: Recipe = DEFAULT_RECIPE,
        pixel_dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """`encode`, as a batch of one."""
        sample = self.encode(
            media,
            messages=messages,
            prompt=prompt,
            for_generation=for_generation,
            recipe=recipe,
            pixel_dtype=pixel_dtype,
        )
        return self.collate([sample])

    def encode(
        self,
        media: Medium | Sequence[Medium] | None = None,
        *,
        messages: Sequence[Turn | dict[str, str]] | None = None,
        prompt: str | None = None,
        for_generation: bool = False,
        recipe: Recipe = DEFAULT_RECIPE,
        pixel_dtype: torch.dtype = torch.float32,
        pixels: bool = True,
    ) -> EncodedSample:
        """One sample.

        Args:
            media: one medium, several in the order of their placeholders, or None.
            messages: the conversation; one <video> or <image> in its user turns for each medium. By default that of a
                StoredSample or StoredFeatures.
            prompt: in place of messages: a question, asked after the media.
            for_generation: leave the last answer out and end on an open assistant turn.
            recipe: how a path to a video is tokenized.
            pixel_dtype: of pixel_values; torch.uint8 leaves normalising to the device (patches.normalise).
            pixels: False leaves the encoder's inputs out: the model gets stored features instead, from StoredFeatures'
                `model_inputs()`, and no image is decoded.

        Raises:
            ValueError: placeholders and media differ (both counts are named), no text, or a medium that does not fit.
            BadItemError: a file that holds no readable video or image.
        """
        several = list(media) if isinstance(media, list | tuple) else [] if media is None else [media]
        visuals = [self.show(medium, recipe=recipe) for medium in several]
        turns = self._turns(several, visuals, messages, prompt)
        runs = [visual.runs() for visual in visuals]
        segments = lay_out(turns, runs, default_system=self.config.default_system, for_generation=for_generation)
        ids_L, labels_L = self._text.encode(segments)
        num_visual, num_merged = int((ids_L == self.image_token_id).sum()), sum(v.num_tokens for v in visuals)
        if num_visual != num_merged:
            raise ValueError(
                f"{num_visual} visual tokens in the text, but {num_merged} merged patches; "
                "the tokenizer must map <|image_pad|> alone to its id"
            )
        return EncodedSample(
            input_ids=torch.from_numpy(ids_L),
            labels=torch.from_numpy(labels_L),
            vision=self.encode_vision(visuals, pixel_dtype=pixel_dtype) if visuals and pixels else None,
        )

    def encode_vision(self, visuals: Sequence[Visual], *, pixel_dtype: torch.dtype = torch.float32) -> VisionInputs:
        """The encoder's inputs of at least one visual, without any text.

        Raises:
            ValueError: none given, or one of another patch size than the model's.
        """
        if not visuals:
            raise ValueError("no visuals given; the encoder needs at least one")
        config = self.config
        for visual in visuals:
            if (visual.patch_px, visual.merge) != (config.patch_px, config.merge):
                raise ValueError(
                    f"the medium has patches of {visual.patch_px} px merged {visual.merge} x {visual.merge}, the model "
                    f"{config.patch_px} px and {config.merge} x {config.merge}; tokenize it with the model's"
                )
        positions = [
            to_block_order(v.positions_NP3, rows=v.rows, columns=v.columns, merge=v.merge).reshape(-1, 3)
            for v in visuals
        ]
        pixels = patchify(
            (image for visual in visuals for image in visual.images()),
            num_patches=sum(visual.num_patches for visual in visuals),
            patch_px=config.patch_px,
            merge=config.merge,
            mean=config.pixel_mean,
            std=config.pixel_std,
            dtype=pixel_dtype,
        )
        rows = [row for visual in visuals for row in visual.grid_rows(config.window_images)]
        groups = [length for visual in visuals for length in visual.group_lengths()]
        return VisionInputs(
            pixel_values=pixels,
            image_grid_thw=torch.tensor(rows, dtype=torch.int64),
            patch_positions=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
            patch_group_lengths=torch.tensor(groups, dtype=torch.int64),
        )

    def collate(
        self,
        samples: Sequence[EncodedSample],
        *,
        padding_side: Literal["left", "right"] = "right",
        multiple_of: int = 1,
    ) -> Batch:
        """See batch.collate."""
        return collate(
            samples,
            pad_token_id=self.pad_token_id,
            window_images=self.config.window_images,
            padding_side=padding_side,
            multiple_of=multiple_of,
        )

    def show(self, medium: Medium, *, recipe: Recipe = DEFAULT_RECIPE) -> Visual:
        """Any medium as a Visual; a path is opened, a video tokenized.

        Raises:
            ValueError: none of the known kinds.
            BadItemError: a file that holds no readable video or image.
        """
        if isinstance(medium, Visual):
            return medium
        if isinstance(medium, TokenizedVideo):
            return show_tokenized(medium)
        if is_sample(medium):
            return show_sample(medium)
        if isinstance(medium, np.ndarray):
            medium = Image.fromarray(medium)
        if isinstance(medium, Image.Image):
            return self._still(medium)
        if isinstance(medium, str | os.PathLike):
            return self._file(os.fspath(medium), _tokenizer_config(recipe))
        raise ValueError(
            f"a medium must be a path, an image, a TokenizedVideo, a StoredSample or a Visual, got {type(medium).__name__}"
        )

    def describe(self, sample: EncodedSample) -> str:
        """The sample's text for people: a run of image pads becomes <|image_pad|>*K."""
        ids = sample.input_ids.tolist()
        parts: list[str] = []
        start = 0
        while start < len(ids):
            visual, stop = ids[start] == self.image_token_id, start
            while stop < len(ids) and (ids[stop] == self.image_token_id) == visual:
                stop += 1
            parts.append(f"{IMAGE_PAD}*{stop - start}" if visual else self.tokenizer.decode(ids[start:stop]))
            start = stop
        return "".join(parts)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **_: Any) -> Self:
        """From a local folder: its tokenizer, and sizes from processor_config.json (ours), preprocessor_config.json (released)
        and config.json (the model's). Nothing is fetched and no code of the folder runs.

        Raises:
            ValueError: no folder, no tokenizer in it, or files that contradict each other.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"{folder}: no such folder; give the local folder of a model")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(root), local_files_only=True, trust_remote_code=False)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{folder}: no tokenizer can be loaded from it ({error}); copy tokenizer.json beside config.json"
            ) from error
        return cls(tokenizer, ProcessorConfig.from_pretrained(root))

    def save_pretrained(self, folder: str | os.PathLike[str], **_: Any) -> None:
        """The tokenizer, and what ProcessorConfig.save_pretrained writes."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(root))
        self.config.save_pretrained(root, processor_class=type(self).__name__)

    def _still(self, image: Image.Image) -> Visual:
        from ov2_core.media.image import upright_rgb
        from ov2_core.tokenizer.frames import fit_size

        config, still = self.config, upright_rgb(image)
        block_px = config.patch_px * config.merge
        size = fit_size(still.width, still.height, area_px=TokenizerConfig().still_area_px, multiple_px=block_px)
        return show_still(still.resized(*size), patch_px=config.patch_px, merge=config.merge)

    def _file(self, path: str, tokenizer: TokenizerConfig) -> Visual:
        from ov2_core.tokenize_video import tokenize_image, tokenize_video

        tokenizer = replace(tokenizer, patch_px=self.config.patch_px, merge=self.config.merge)
        still = tokenizer.mode == "still" or Path(path).suffix.lower() in IMAGE_SUFFIXES
        try:
            tokenized = (tokenize_image if still else tokenize_video)(path, tokenizer)
        except BadItemError as error:
            raise BadItemError(error.reason, f"{path}: {error}", stage=error.stage) from error
        return show_tokenized(tokenized, timestamp_decimal=tokenizer.timestamp_decimal)

    def _turns(
        self,
        media: Sequence[Medium],
        visuals: Sequence[Visual],
        messages: Sequence[Turn | dict[str, str]] | None,
        prompt: str | None,
    ) -> list[Turn]:
        if messages is not None and prompt is not None:
            raise ValueError("give messages or a prompt, not both")
        if prompt is not None:
            opening = "".join(f"<{visual.kind}>\n" for visual in visuals)
            return [Message(role="user", content=opening + prompt)]
        if messages is None and len(media) == 1 and is_sample(media[0]):
            messages = cast("Any", media[0]).record.messages
        if not messages:
            raise ValueError("no text: the sample has no messages and neither messages nor a prompt is given")
        return [Message.model_validate(turn) if isinstance(turn, dict) else turn for turn in messages]


def _tokenizer_config(given: Recipe) -> TokenizerConfig:
    return recipe(given).tokenizer if isinstance(given, str) else given
