"""Multi-headed attention: plain, with relative positions, and with the older relative form.

Parameter names are ESPnet's (`linear_q`, `linear_k`, `linear_v`, `linear_out`, `linear_pos`,
`pos_bias_u`, `pos_bias_v`). Masks are true where a key may be read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kdpipe.models.lengths import Padding

__all__ = [
    "LegacyRelPositionMultiHeadedAttention",
    "MultiHeadedAttention",
    "RelPositionMultiHeadedAttention",
    "legacy_rel_shift",
    "rel_shift",
]


def rel_shift(scores: Float[Tensor, "B H T R"]) -> Float[Tensor, "B H T T"]:
    """Row i, column j of the result is row i, column T-1-i+j of `scores`; R = 2T - 1.

    A view: a row of the result starts one element earlier than a row of `scores` does.
    """
    length = scores.shape[2]
    if length == 1:
        return scores
    start, row = length - 1, 2 * length - 2
    flat = scores.flatten(2)[..., start : start + length * row]
    return flat.view(*flat.shape[:2], length, row)[..., :length]


def legacy_rel_shift(
    scores: Float[Tensor, "B H T T"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B H T T"]:
    """The older form's shift, as each utterance of length `lengths` alone would have it.

    With L an utterance's length: column j <= i of row i is column L-1-i+j of row i;
    j = i+1 is 0; j > i+1 is column j-i-2 of row i+1 (the older code's wrapping).
    """
    size = scores.shape[2]
    row = torch.arange(size, device=scores.device)[:, None]
    column = torch.arange(size, device=scores.device)[None, :]
    past = row * size + (lengths[:, None, None] - 1 - row + column)
    future = (row + 1) * size + column - row - 2
    index = torch.where(column <= row, past, future).clamp(0, size * size - 1)
    shape = (scores.shape[0], scores.shape[1], size * size)
    moved = scores.flatten(2).gather(2, index.flatten(1)[:, None].expand(shape))
    return moved.view_as(scores).masked_fill(column == row + 1, 0.0)


class MultiHeadedAttention(nn.Module):
    """Scaled dot-product attention over H heads of d = D / H."""

    def __init__(self, heads: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.dropout_rate = dropout

    def split(self, projected: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T d"]:
        """Give every head its part."""
        batch, length = projected.shape[:2]
        return projected.view(batch, length, self.heads, self.head_dim).transpose(1, 2)

    def project_queries(self, inputs: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T d"]:
        return self.split(self.linear_q(inputs))

    def project_memory(
        self, inputs: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B H T d"]]:
        """Keys and values."""
        return self.split(self.linear_k(inputs)), self.split(self.linear_v(inputs))

    def attend(
        self,
        queries: Float[Tensor, "B H Q d"],
        keys: Float[Tensor, "B H T d"],
        values: Float[Tensor, "B H T d"],
        mask: Bool[Tensor, "*m"] | Float[Tensor, "*m"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """Weighted values of all heads, projected; `mask` broadcasts to (B, H, Q, T)."""
        dropout = self.dropout_rate if self.training else 0.0
        heads = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        output: Tensor = self.linear_out(heads.transpose(1, 2).flatten(2))
        return output

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "*m"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Self-attention of `inputs`."""
        keys, values = self.project_memory(inputs)
        return self.attend(self.project_queries(inputs), keys, values, mask, causal)


class RelPositionMultiHeadedAttention(MultiHeadedAttention):
    """Self-attention with relative positions (Transformer-XL, arXiv:1901.02860, 3.3)."""

    def __init__(self, heads: int, dim: int, dropout: float) -> None:
        super().__init__(heads, dim, dropout)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, self.head_dim))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def position_scores(
        self, queries: Float[Tensor, "B H T d"], positions: Float[Tensor, "R D"]
    ) -> Float[Tensor, "B H T R"]:
        """(q + v) . (W p) / sqrt(d) for every row p of `positions`."""
        rows = self.linear_pos(positions).view(-1, self.heads, self.head_dim)
        scaled = (queries + self.pos_bias_v[:, None]) * (1.0 / math.sqrt(self.head_dim))
        return torch.matmul(scaled, rows.permute(1, 2, 0))

    def forward(  # type: ignore[override]
        self,
        inputs: Float[Tensor, "B T D"],
        positions: Float[Tensor, "R D"],
        padding: Padding | None,
    ) -> Float[Tensor, "B T D"]:
        queries = self.project_queries(inputs)
        keys, values = self.project_memory(inputs)
        bias = self.shifted(self.position_scores(queries, positions), padding)
        if padding is not None:
            bias = bias.masked_fill(~padding.keys, -math.inf)
        return self.attend(queries + self.pos_bias_u[:, None], keys, values, bias)

    def shifted(
        self, scores: Float[Tensor, "B H T R"], padding: Padding | None
    ) -> Float[Tensor, "B H T T"]:
        return rel_shift(scores)


class LegacyRelPositionMultiHeadedAttention(RelPositionMultiHeadedAttention):
    """The older relative positions, whose shift depends on the utterance's own length."""

    def shifted(
        self, scores: Float[Tensor, "B H T T"], padding: Padding | None
    ) -> Float[Tensor, "B H T T"]:
        batch, size = scores.shape[0], scores.shape[2]
        if padding is None:
            lengths = torch.full((batch,), size, device=scores.device)
        else:
            lengths = padding.valid.sum(1)
        return legacy_rel_shift(scores, lengths)
