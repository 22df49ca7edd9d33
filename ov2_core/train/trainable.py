"""The model as the trainer drives it: a row of packed sequences in, a loss out; frozen, checkpointed, compiled, sharded as told.

Enters: a LlavaOnevision2ForConditionalGeneration, `PackInputs`. Leaves: the step's share of the loss, and each scored token's.
The loss is computed inside this module's forward, so that FSDP has the output layer's weight gathered when it is needed.

FSDP asks all ranks for the same modules in the same order. A rank whose pack has no picture therefore sends one grey window through
the encoder and adds nothing of it to the text.

P patches, R scored tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ov2_core.model.attention import GroupLayout
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.packed_attention import use_packed_attention
from ov2_core.train.config import LoraConfig, TrainConfig
from ov2_core.train.cross_entropy import linear_cross_entropy
from ov2_core.train.optimizer import freeze
from ov2_core.train.pack_inputs import PackInputs
from ov2_core.train.tensor_parallel import head_norm_parameters, parallelize_layers, sum_partial_gradients

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFIX = "model."
"""Of this module's parameter names before those of the model itself."""


class Trainable(nn.Module):
    """`trainable(inputs, row_weight)` -> (loss, losses [R])."""

    def __init__(
        self,
        model: LlavaOnevision2ForConditionalGeneration,
        *,
        always_see: bool = False,
        from_features: bool = False,
        pixel_mean: tuple[float, ...] | None = None,
        pixel_std: tuple[float, ...] | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        """
        Args:
            always_see: run the encoder for rows without pictures too, as sharded models must.
            from_features: rows bring the encoder's outputs; the encoder itself is never run.
            pixel_mean, pixel_std: the processor's; None: the released ones.
            chunk_rows: of the cross entropy; None: by size.
        """
        super().__init__()
        self.model = model
        self.always_see, self.from_features = always_see, from_features
        self.chunk_rows = chunk_rows
        self.tensor_group: Any = None
        self._normalisation: dict[str, Any] = {}
        if pixel_mean is not None and pixel_std is not None:
            self._normalisation = {"mean": pixel_mean, "std": pixel_std}
        use_packed_attention(model.model.language_model)

    def finish_gradients(self) -> None:
        """After the last backward pass of a step: sums what ranks that share layers hold in parts."""
        if self.tensor_group is not None:
            layers = self.model.model.language_model.layers
            sum_partial_gradients(head_norm_parameters(layers), self.tensor_group)

    @property
    def dtype(self) -> torch.dtype:
        """What the computation runs in."""
        return self.model.lm_head.weight.dtype

    def forward(self, inputs: PackInputs, row_weight: float) -> tuple[Tensor, Tensor]:
        """The sum of the scored tokens' losses times row_weight, and each one's."""
        embeds = self.model.get_input_embeddings()(inputs.input_ids)
        tokens = self._visual_tokens(inputs)
        if inputs.num_patches:
            assert tokens is not None
            placeholders = inputs.input_ids == self.model.config.image_token_id
            _check_placeholders(placeholders, tokens, inputs)
            embeds = embeds.masked_scatter(placeholders[..., None], tokens.to(embeds.dtype))
        elif tokens is not None:
            embeds = embeds + 0 * tokens.sum().to(embeds.dtype)
        hidden_1TE = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=inputs.position_ids, use_cache=False, segments=inputs.segments
        ).last_hidden_state
        hidden_RE = hidden_1TE[0].index_select(0, inputs.rows)
        weights_R = torch.full((inputs.num_targets,), row_weight, dtype=torch.float32, device=hidden_RE.device)
        loss, losses_R = linear_cross_entropy(
            hidden_RE, self.model.lm_head.weight, inputs.targets, weights_R, chunk_rows=self.chunk_rows
        )
        if not inputs.num_targets:  # keeps every layer in the graph, for the ranks that have targets
            loss = loss + 0 * hidden_1TE.float().sum()
        return loss, losses_R

    def _visual_tokens(self, inputs: PackInputs) -> Tensor | None:
        visual, dtype = self.model.visual, self.dtype
        if inputs.visual_features is not None:
            return visual.merge(inputs.visual_features.to(dtype))
        pixels = inputs.pixels(dtype, **self._normalisation)
        if pixels is not None:
            assert inputs.patch_positions is not None
            assert inputs.patch_group_lengths is not None
            tokens: Tensor = visual(pixels, inputs.patch_positions, GroupLayout(inputs.patch_group_lengths))
            return tokens
        if not self.always_see:
            return None
        config = self.model.config.vision_config
        num, device = config.spatial_merge_size**2, inputs.input_ids.device
        if self.from_features:
            return visual.merge(torch.zeros(num, config.hidden_size, dtype=dtype, device=device))
        grey = torch.zeros(num, config.patch_values, dtype=dtype, device=device)
        places = torch.zeros(num, 3, dtype=torch.int64, device=device)
        seen: Tensor = visual(grey, places, GroupLayout([num]))
        return seen


def make_trainable(
    model: LlavaOnevision2ForConditionalGeneration,
    config: TrainConfig,
    *,
    device: torch.device,
    mesh: Any = None,
    compute_dtype: torch.dtype = torch.float32,
    from_features: bool = False,
    pixel_mean: tuple[float, ...] | None = None,
    pixel_std: tuple[float, ...] | None = None,
) -> Trainable:
    """Adds low-rank updates, freezes, and prepares the layers as the config says.

    Args:
        model: float32 weights on any device.
        mesh: DeviceMesh with dimensions "data", to shard over, and "tensor", to share layers over; None: whole on one device, in
            float32.
        compute_dtype: of sharded models' computation; weights, gradient sums and the optimizer stay float32.

    Raises:
        ValueError: another dtype than float32 without a mesh.
    """
    if mesh is None and compute_dtype != torch.float32:
        raise ValueError(f"{compute_dtype} needs a mesh, of one device too: sharding keeps the float32 weights")
    if config.lora.rank:
        add_lora(model, config.lora)
    trainable = Trainable(
        model,
        always_see=mesh is not None and mesh["data"].size() > 1,
        from_features=from_features,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    )
    freeze(trainable, config)
    encoder_layers = list(model.visual.encoder.layers)
    layers = [*encoder_layers, *model.model.language_model.layers]
    if config.activation_checkpointing:
        _checkpoint_layers(model)
    if config.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    if mesh is None:
        return trainable.to(device)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    data, tensor = mesh["data"], mesh["tensor"]
    if tensor.size() > 1:
        text = model.config.text_config
        parallelize_layers(
            model.model.language_model.layers,
            tensor,
            num_heads=text.num_attention_heads,
            num_key_heads=text.num_key_value_heads or text.num_attention_heads,
        )
        trainable.tensor_group = tensor.get_group()
    if data.size() > 1:  # the frozen encoder takes its groups in parts, whose number differs between ranks
        model.visual.chunk_patches = 1 << 60
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=data, mp_policy=policy)
    fully_shard(trainable, mesh=data, mp_policy=policy)
    return trainable


def add_lora(model: LlavaOnevision2ForConditionalGeneration, lora: LoraConfig) -> None:
    """Low-rank updates in the language model's projections, in place (peft).

    Raises:
        ValueError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError("lora.rank needs peft: pip install 'ov2-pipeline[train]'") from error
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(LORA_TARGETS), bias="none"
    )
    peft.inject_adapter_in_model(config, model.model.language_model)


def merge_lora(model: nn.Module) -> None:
    """Adds the low-rank updates to the weights and removes them, so that names are the released ones again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in found:
        module.merge()
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], module.get_base_layer())


def _checkpoint_layers(model: LlavaOnevision2ForConditionalGeneration) -> None:
    """Every layer is computed again in the backward pass. transformers also makes embeddings ask for gradients, for reentrant
    checkpoints; a frozen language model would then go backward for nothing."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]


def _check_placeholders(placeholders: Tensor, tokens: Tensor, inputs: PackInputs) -> None:
    """On a CPU, where asking costs nothing; packs of a verified stage always agree."""
    if placeholders.device.type == "cpu" and int(placeholders.sum()) != len(tokens):
        packs = ", ".join(dict.fromkeys(sample.pack for sample in inputs.samples))
        raise ValueError(f"packs {packs}: {int(placeholders.sum())} placeholders, {len(tokens)} visual tokens")
