"""LLaVA-OneVision-2: OneVision-Encoder, connector and Qwen3 under the released names.

Enters: token ids with one placeholder for each visual token, pixel rows with their places, and optionally labels. Leaves: logits,
loss and a key-value cache. The language model is transformers' own Qwen3Model, called with nothing changed, so text-only logits
are Qwen3ForCausalLM's bit for bit and every attention implementation of transformers works for it; the encoder chooses its own
(attention.py). Visual tokens take plain 1-D positions, like text.

B sequences, S tokens of a sequence, N patches of all stills and videos of the batch, K visual tokens, E width of the language
model, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen3Model
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ov2_core.model.attention import GroupLayout, group_lengths
from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.patch_order import grid_positions, positions_in_block_order

VISUAL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "patch_positions",
    "patch_group_lengths",
    "visual_features",
    "visual_tokens",
)
"""Arguments of `forward` that belong to the placeholders of a call's own input_ids."""


class LlavaOnevision2PreTrainedModel(PreTrainedModel):
    """What transformers asks of a model: names, tying, capabilities."""

    config_class = LlavaOnevision2Config
    config: LlavaOnevision2Config
    base_model_prefix = "model"
    input_modalities = ["image", "video", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen3DecoderLayer", "EncoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class LlavaOnevision2Model(LlavaOnevision2PreTrainedModel):
    """Encoder, connector and language model without its head: `model.*` of the state dict."""

    def __init__(self, config: LlavaOnevision2Config) -> None:
        super().__init__(config)
        self.visual = OneVisionEncoder(config.vision_config)
        self.language_model = Qwen3Model._from_config(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_visual(
        self,
        pixel_values: Tensor,
        *,
        image_grid_thw: Tensor | None = None,
        patch_positions: Tensor | None = None,
        patch_group_lengths: Tensor | list[int] | None = None,
    ) -> Tensor:
        """Visual tokens `[K, E]`, rows of the grid one after the other. Arguments as `LlavaOnevision2ForConditionalGeneration`.

        Raises:
            ValueError: grid, positions, groups and pixels that do not agree; the numbers are told.
        """
        config = self.config.vision_config
        pixel_values = pixel_values.flatten(1)  # [N, 3, 14, 14] is accepted too
        if image_grid_thw is None and patch_group_lengths is None:
            raise ValueError(
                "pixel_values need image_grid_thw (or patch_group_lengths): which patches attend to each other?"
            )
        grid: list[list[int]] | None = None
        lengths: list[int] = []
        if image_grid_thw is not None:
            grid = torch.as_tensor(image_grid_thw).tolist()
            _check_grid(grid, len(pixel_values), config.spatial_merge_size)
            lengths = group_lengths(grid, frame_windows_size=config.frame_windows_size)
        if patch_group_lengths is not None:
            lengths = [int(length) for length in patch_group_lengths]
        patch_positions = self._positions(patch_positions, grid, len(pixel_values)).to(pixel_values.device)
        tokens: Tensor = self.visual(pixel_values, patch_positions, GroupLayout(lengths))
        return tokens

    def _positions(self, given: Tensor | None, grid: list[list[int]] | None, num_patches: int) -> Tensor:
        merge = self.config.vision_config.spatial_merge_size
        if given is None:
            if grid is None:
                raise ValueError("patch_positions may be left out only where image_grid_thw is given")
            return grid_positions(grid, merge=merge)
        given = given.reshape(-1, 3)
        if len(given) != num_patches:
            raise ValueError(f"patch_positions are for {len(given)} patches, pixel_values for {num_patches}")
        return given if grid is None else positions_in_block_order(given, grid, merge=merge)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        patch_positions: Tensor | None = None,
        patch_group_lengths: Tensor | list[int] | None = None,
        visual_features: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the language model; arguments as `LlavaOnevision2ForConditionalGeneration.forward`."""
        unknown = [
            name for name, value in kwargs.items() if name.startswith(("pixel_", "video_")) and value is not None
        ]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: videos go in as pixel_values with one row of image_grid_thw each, like stills"
            )
        if sum(given is not None for given in (pixel_values, visual_features, visual_tokens)) > 1:
            raise ValueError("give one of pixel_values, visual_features and visual_tokens")
        if pixel_values is not None:
            visual_tokens = self.encode_visual(
                pixel_values,
                image_grid_thw=image_grid_thw,
                patch_positions=patch_positions,
                patch_group_lengths=patch_group_lengths,
            )
        elif visual_features is not None:
            visual_tokens = self.visual.merge(visual_features)
        if visual_tokens is not None or _is_prefill(past_key_values):
            input_ids, inputs_embeds = self._with_visual(input_ids, inputs_embeds, visual_tokens)
        if past_key_values is None and _is_packed(position_ids, attention_mask):
            _check_packed_mask(attention_mask)
            attention_mask, use_cache = None, False
        output: BaseModelOutputWithPast = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return output

    def _with_visual(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, visual_tokens: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Puts visual tokens at their placeholders, in order over the batch; text alone passes untouched."""
        if input_ids is None:
            if visual_tokens is not None:
                raise ValueError("visual tokens need input_ids, whose placeholders say where they go")
            return input_ids, inputs_embeds
        placeholders_BS = input_ids == self.config.image_token_id
        num_placeholders, num_tokens = int(placeholders_BS.sum()), 0 if visual_tokens is None else len(visual_tokens)
        if num_placeholders != num_tokens:
            raise ValueError(
                f"input_ids hold {num_placeholders} image placeholders (id {self.config.image_token_id}), but the pixels make "
                f"{num_tokens} visual tokens; the text must hold one placeholder for each "
                f"{self.config.vision_config.spatial_merge_size} x {self.config.vision_config.spatial_merge_size} patches"
            )
        if visual_tokens is None:
            return input_ids, inputs_embeds
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        filled = inputs_embeds.masked_scatter(placeholders_BS[..., None], visual_tokens.to(inputs_embeds))
        return None, filled


class LlavaOnevision2ForConditionalGeneration(LlavaOnevision2PreTrainedModel, GenerationMixin):
    """The full model. `from_pretrained` reads a released folder, `generate` makes text from ids and pixels."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    accepts_loss_kwargs = False
    model: LlavaOnevision2Model
    lm_head: nn.Linear

    def __init__(self, config: LlavaOnevision2Config) -> None:
        super().__init__(config)
        self.model = LlavaOnevision2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def visual(self) -> OneVisionEncoder:
        return self.model.visual

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        patch_positions: Tensor | None = None,
        patch_group_lengths: Tensor | list[int] | None = None,
        visual_features: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the mean cross entropy of the next token where labels are given.

        Args:
            input_ids: int `[B, S]`; `config.image_token_id` stands once for each visual token.
            attention_mask: `[B, S]` 1 / 0, for padding. Leave it out for packed sequences.
            position_ids: `[B, S]`; where they restart, a new packed sequence begins. An all-ones mask beside them is dropped and
                no cache is made, since with either transformers lets packed sequences see each other without a word.
            pixel_values: float `[N, 3 * 14 * 14]`, block order (patch_order.py), all stills and videos one after the other.
            image_grid_thw: int `[R, 3]`: canvases, patch rows, patch columns of each still or video. Attention is full inside
                windows of `frame_windows_size` canvases of a row.
            patch_positions: int `[N, 3]` (t, h, w), in block order or in the raster order of each canvas (as shards store
                them): which, is read from the blocks. Left out: the canvas's index and the place in it.
            patch_group_lengths: patches of each attention group, where windows of the config are not what is wanted.
            visual_features: `[N, C]` outputs of the encoder (`visual.encode`) in place of pixels.
            visual_tokens: `[K, E]` outputs of the connector in place of pixels.
            labels: int `[B, S]`, -100 where no loss is taken; shifted here.
            logits_to_keep: the last so many positions (0: all), or their indices.

        Returns:
            loss, logits `[B, S, V]`, past_key_values.

        Raises:
            ValueError: placeholders and visual tokens differ in number (both are told), or inputs that do not fit together.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            patch_positions=patch_positions,
            patch_group_lengths=patch_group_lengths,
            visual_features=visual_features,
            visual_tokens=visual_tokens,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Visual inputs go with the step whose tokens hold placeholders: the prefill, or every step without a cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        step_ids = inputs.get("input_ids")
        if step_ids is None or not bool((step_ids == self.config.image_token_id).any()):
            for name in VISUAL_INPUTS:
                inputs[name] = None
        return inputs


def _check_grid(grid: list[list[int]], num_patches: int, merge: int) -> None:
    for i, row in enumerate(grid):
        if row[1] % merge or row[2] % merge:
            raise ValueError(
                f"image_grid_thw row {i} must have h and w in multiples of the merge size {merge}, got {row}"
            )
    in_grid = sum(t * h * w for t, h, w in grid)
    if in_grid != num_patches:
        raise ValueError(f"image_grid_thw describes {in_grid} patches, but pixel_values hold {num_patches}")


def _is_prefill(past_key_values: Any) -> bool:
    return past_key_values is None or past_key_values.get_seq_length() == 0


def _is_packed(position_ids: Tensor | None, attention_mask: Tensor | None) -> bool:
    """True where positions restart among tokens that are not padding."""
    if position_ids is None or position_ids.ndim != 2 or (attention_mask is not None and attention_mask.ndim != 2):
        return False
    restarts = position_ids[:, 1:] <= position_ids[:, :-1]
    if attention_mask is not None:
        restarts = restarts & (attention_mask[:, 1:] != 0) & (attention_mask[:, :-1] != 0)
    return bool(restarts.any())


def _check_packed_mask(attention_mask: Tensor | None) -> None:
    """A mask of ones says nothing and, given, keeps transformers from looking at position_ids; one with padding is an error."""
    if attention_mask is not None and not bool((attention_mask != 0).all()):
        raise ValueError(
            "packed sequences (position_ids restart) with padding in a 2-D attention_mask: leave the mask out and give the padding "
            "position_ids of its own that start at 0"
        )
