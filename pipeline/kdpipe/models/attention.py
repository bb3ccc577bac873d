"""Multi-headed attention: plain, with relative positions, and with the older relative form.

Parameter names are ESPnet's (`linear_q`, `linear_k`, `linear_v`, `linear_out`, `linear_pos`,
`pos_bias_u`, `pos_bias_v`). Masks are true where a key may be read. Queries are projected
with 1/sqrt(d) already in their weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kdpipe.models.derived import DerivedWeights, packed_linear
from kdpipe.models.dropout import dropout
from kdpipe.models.lengths import Padding
from kdpipe.models.linear import linear, pack, pays_to_pack
from kdpipe.models.positions import KEPT_REACH

__all__ = [
    "LegacyRelPositionMultiHeadedAttention",
    "MultiHeadedAttention",
    "RelPositionMultiHeadedAttention",
    "legacy_rel_shift",
    "rel_shift",
]

QUERY_BLOCK = 256


def rel_shift(scores: Float[Tensor, "N Q R"], length: int) -> Float[Tensor, "N Q T"]:
    """Row i, column j of the result is row i, column Q-1-i+j of `scores`; R = T + Q - 1.

    Q consecutive queries against all T = `length` keys; Q = T gives the usual shift of
    2T - 1 positions. A view: each row of the result starts one column earlier than the last.
    """
    queries = scores.shape[1]
    if queries == 1:
        return scores
    start, row = queries - 1, length + queries - 2
    flat = scores.flatten(1)[:, start : start + queries * row]
    return flat.view(-1, queries, row)[..., :length]


def legacy_rel_shift(
    scores: Float[Tensor, "H B T T"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "H B T T"]:
    """The older form's shift, as each utterance of length `lengths` alone would have it.

    With L an utterance's length: column j <= i of row i is column L-1-i+j of row i;
    j = i+1 is 0; j > i+1 is column j-i-2 of row i+1 (the older code's wrapping).
    """
    size = scores.shape[2]
    row = torch.arange(size, device=scores.device)[:, None]
    column = torch.arange(size, device=scores.device)[None, :]
    past = row * size + (lengths[:, None, None] - 1 - row + column)
    future = (row + 1) * size + column - row - 2
    index = torch.where(column <= row, past, future).clamp(0, size * size - 1).flatten(1)
    moved = scores.flatten(2).gather(2, index.expand(scores.shape[0], -1, -1))
    return moved.view_as(scores).masked_fill(column == row + 1, 0.0)


def _weighted_values(
    queries: Float[Tensor, "B H Q d"],
    keys: Float[Tensor, "B H T d"],
    values: Float[Tensor, "B H T d"],
    mask: Bool[Tensor, "*m"] | None,
    dropout_rate: float,
    causal: bool,
) -> Float[Tensor, "B H Q d"]:
    """softmax(queries keys^T) values. A CPU's kernels train faster in float32 than in bf16."""
    if queries.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            single = queries.float(), keys.float(), values.float()
            return _weighted_values(*single, mask, dropout_rate, causal)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=dropout_rate, is_causal=causal, scale=1.0
    )


class MultiHeadedAttention(nn.Module):
    """Scaled dot-product attention over H heads of d = D / H.

    `few_rows`: inference brings few rows a call, so weights are kept packed for them.
    """

    def __init__(self, heads: int, dim: int, dropout_rate: float, few_rows: bool = False) -> None:
        super().__init__()
        self.few_rows = few_rows
        self.heads = heads
        self.head_dim = dim // heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.dropout_rate = dropout_rate
        self._derived = DerivedWeights()

    def project(self, inputs: Float[Tensor, "B T D"], names: str) -> Float[Tensor, "n B H T d"]:
        """Queries (scaled by 1/sqrt(d)), keys and values, as `names` ("q", "kv", "qkv") asks.

        One matrix product for all of them.
        """
        layers = [getattr(self, f"linear_{name}") for name in names]
        sources = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        packed = self.few_rows and pays_to_pack(inputs, len(names) * inputs.shape[2])

        def compute() -> tuple[Tensor, Tensor]:
            weight, bias = self._join(names, layers)
            return pack(weight) if packed else weight, bias

        weight, bias = self._derived.get(f"{names} {packed}", sources, compute)
        batch, length = inputs.shape[:2]
        joined = linear(inputs, weight, bias)
        return joined.view(batch, length, len(names), self.heads, -1).permute(2, 0, 3, 1, 4)

    def _join(self, names: str, layers: list[nn.Linear]) -> tuple[Tensor, Tensor]:
        scales = [1.0 / math.sqrt(self.head_dim) if name == "q" else 1.0 for name in names]
        weights = [layer.weight * scale for layer, scale in zip(layers, scales, strict=True)]
        biases = [layer.bias * scale for layer, scale in zip(layers, scales, strict=True)]
        return torch.cat(weights), torch.cat(biases)

    def merge(self, heads: Float[Tensor, "B T H d"]) -> Float[Tensor, "B T D"]:
        """The output projection of all heads."""
        merged = heads.flatten(2)
        if self.few_rows:
            return packed_linear(self._derived, self.linear_out, merged)
        return linear(merged, self.linear_out.weight, self.linear_out.bias)

    def attend(
        self,
        queries: Float[Tensor, "B H Q d"],
        keys: Float[Tensor, "B H T d"],
        values: Float[Tensor, "B H T d"],
        mask: Bool[Tensor, "*m"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """Weighted values of all heads, projected; `mask` broadcasts to (B, H, Q, T)."""
        rate = self.dropout_rate if self.training else 0.0
        heads = _weighted_values(queries, keys, values, mask, rate, causal)
        return self.merge(heads.transpose(1, 2))

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "*m"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Self-attention of `inputs`."""
        queries, keys, values = self.project(inputs, "qkv").unbind(0)
        return self.attend(queries, keys, values, mask, causal)


class RelPositionMultiHeadedAttention(MultiHeadedAttention):
    """Self-attention with relative positions (Transformer-XL, arXiv:1901.02860, 3.3).

    The position scores have to be laid out in full, so a fused attention kernel saves
    nothing: plain products, one matrix a head and utterance (N = H * B, head-major), for
    `QUERY_BLOCK` queries at a time, which bounds the memory of long utterances.
    """

    block: int | None = QUERY_BLOCK

    def __init__(self, heads: int, dim: int, dropout_rate: float) -> None:
        super().__init__(heads, dim, dropout_rate)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, self.head_dim))

    def forward(  # type: ignore[override]
        self,
        inputs: Float[Tensor, "B T D"],
        positions: Float[Tensor, "R D"],
        padding: Padding | None,
    ) -> Float[Tensor, "B T D"]:
        """Self-attention; `positions` are centred on distance 0 and reach T - 1 or further."""
        batch, length = inputs.shape[:2]
        parts = self.project(inputs, "qkv").transpose(1, 2).reshape(3, -1, length, self.head_dim)
        queries, keys, values = parts.unbind(0)
        rows, block = self._position_rows(positions), self.block or length
        outputs = [
            self._attend_block(
                queries[:, start : start + block], start, keys, values, rows, padding
            )
            for start in range(0, length, block)
        ]
        heads = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return self.merge(heads.view(self.heads, batch, length, -1).permute(1, 2, 0, 3))

    def _position_rows(self, positions: Float[Tensor, "R D"]) -> Float[Tensor, "H d R"]:
        """W p of every head and position; kept in inference, where few tables are in use."""

        def compute() -> tuple[Tensor]:
            rows = linear(positions, self.linear_pos.weight, None).view(
                -1, self.heads, self.head_dim
            )
            return (rows.permute(1, 2, 0),)

        if positions.shape[0] > 2 * KEPT_REACH:
            return compute()[0]
        extra = (positions.data_ptr(), positions.shape[0])
        return self._derived.get("positions", [self.linear_pos.weight], compute, extra)[0]

    def _attend_block(
        self,
        queries: Float[Tensor, "N Q d"],
        start: int,
        keys: Float[Tensor, "N T d"],
        values: Float[Tensor, "N T d"],
        rows: Float[Tensor, "H d R"],
        padding: Padding | None,
    ) -> Float[Tensor, "N Q d"]:
        """Q queries, the first at frame `start`, against all T frames."""
        scale = 1.0 / math.sqrt(self.head_dim)
        by_head = queries.reshape(self.heads, -1, self.head_dim)
        content = (by_head + scale * self.pos_bias_u[:, None]).view_as(queries)
        place = (by_head + scale * self.pos_bias_v[:, None]).view_as(queries)
        shifted = self._position_scores(place, rows, start, keys.shape[1], padding)
        scores = torch.baddbmm(shifted, content, keys.transpose(1, 2))
        if padding is not None:
            by_utterance = scores.view(self.heads, -1, *scores.shape[1:])
            by_utterance.masked_fill_(~padding.keys.transpose(0, 1), -math.inf)
        weights = dropout(scores.softmax(2), self.dropout_rate, self.training)
        return torch.bmm(weights, values)

    def _product(
        self, queries: Float[Tensor, "N Q d"], rows: Float[Tensor, "H d R"]
    ) -> Float[Tensor, "N Q R"]:
        """Every query times every position row of its head."""
        by_head = queries.view(self.heads, -1, self.head_dim)
        return torch.bmm(by_head, rows).view(*queries.shape[:2], -1)

    def _position_scores(
        self,
        queries: Float[Tensor, "N Q d"],
        rows: Float[Tensor, "H d R"],
        start: int,
        length: int,
        padding: Padding | None,
    ) -> Float[Tensor, "N Q T"]:
        """Row 0 of the part of the table used is the distance of the last query to key 0."""
        count = queries.shape[1]
        first = rows.shape[2] // 2 - (start + count - 1)
        return rel_shift(
            self._product(queries, rows[:, :, first : first + length + count - 1]), length
        )


class LegacyRelPositionMultiHeadedAttention(RelPositionMultiHeadedAttention):
    """The older relative positions, whose shift depends on the utterance's own length."""

    block = None

    def _position_scores(
        self,
        queries: Float[Tensor, "N T d"],
        rows: Float[Tensor, "H d T"],
        start: int,
        length: int,
        padding: Padding | None,
    ) -> Float[Tensor, "N T T"]:
        scores = self._product(queries, rows).view(self.heads, -1, length, length)
        if padding is None:
            lengths = torch.full((scores.shape[1],), length, device=scores.device)
        else:
            lengths = padding.valid.sum(1)
        return legacy_rel_shift(scores, lengths).flatten(0, 1)
