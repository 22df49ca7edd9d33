"""Connector between encoder and language model: LayerNorm of each patch, m x m patches to a row, a two-layer MLP.

Enters: encoder outputs in block order, so that m x m consecutive rows are a block. Leaves: one token a block, in the width of the
language model. N patches, C width, m merge size, K = N / m^2 tokens, E width of the language model.
"""

from torch import Tensor, nn

from ov2_core.model.config import OneVisionEncoderConfig


class PatchMerger(nn.Module):
    """Names of the released state dict: `ln_q`, `mlp.0`, `mlp.2`."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.patches_per_token = config.spatial_merge_size**2
        width = config.hidden_size * self.patches_per_token
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.out_hidden_size))

    def forward(self, hidden_NC: Tensor) -> Tensor:
        """`[N, C]` to `[K, E]`.

        Raises:
            ValueError: N is no multiple of m^2.
        """
        if len(hidden_NC) % self.patches_per_token:
            raise ValueError(
                f"{len(hidden_NC)} patches do not fill blocks of {self.patches_per_token}; canvases must be whole "
                "multiples of the merge size on both sides"
            )
        merged: Tensor = self.mlp(self.ln_q(hidden_NC).view(-1, self.mlp[0].in_features))
        return merged
