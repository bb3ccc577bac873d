"""Relative shifts and attention against loops written for clarity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.models import attention as module
from kdpipe.models.attention import (
    LegacyRelPositionMultiHeadedAttention,
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
    legacy_rel_shift,
    rel_shift,
)
from kdpipe.models.lengths import find_padding
from kdpipe.models.positions import (
    absolute_positions,
    legacy_positions,
    relative_positions,
    sinusoids,
)


@given(st.integers(1, 9), st.integers(1, 9))
def test_rel_shift_moves_every_row(queries: int, length: int) -> None:
    scores = torch.randn(2, queries, length + queries - 1)
    shifted = rel_shift(scores, length)
    for row in range(queries):
        for column in range(length):
            expected = scores[:, row, queries - 1 - row + column]
            assert torch.equal(shifted[:, row, column], expected)


def old_shift(scores: Tensor) -> Tensor:
    """The older form as first published: pad a column, reshape, drop a row."""
    heads, size = scores.shape[0], scores.shape[1]
    padded = torch.cat([scores.new_zeros(heads, size, 1), scores], 2)
    return padded.view(heads, size + 1, size)[:, 1:].reshape(heads, size, size)


@given(st.integers(1, 8), st.integers(0, 4))
def test_legacy_shift_is_the_old_one_of_each_utterance_alone(length: int, padding: int) -> None:
    size = length + padding
    scores = torch.randn(3, 2, size, size)
    lengths = torch.tensor([length, size])
    shifted = legacy_rel_shift(scores, lengths)
    alone = old_shift(scores[:, 0, :length, :length].contiguous())
    assert torch.equal(shifted[:, 0, :length, :length], alone)
    assert torch.equal(shifted[:, 1], old_shift(scores[:, 1].contiguous()))


def test_sinusoids_are_sines_and_cosines() -> None:
    table = sinusoids(torch.tensor([0.0, 3.0]), 4)
    rates = [1.0, 10000.0**-0.5]
    expected = [[f(3.0 * rate) for rate in rates for f in (math.sin, math.cos)]]
    assert torch.allclose(table[1:], torch.tensor(expected))
    assert table[0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_position_tables_hold_what_they_say() -> None:
    like = torch.zeros(1, 6)
    count = torch.arange(400.0)
    assert torch.allclose(absolute_positions(3, 300, like), sinusoids(count[3:303], 6))
    assert torch.allclose(relative_positions(4, like), sinusoids(3 - count[:7], 6))
    wide = relative_positions(4, like, exact=False)
    middle = wide.shape[0] // 2
    assert torch.allclose(wide[middle - 3 : middle + 4], relative_positions(4, like))
    assert torch.allclose(legacy_positions(3, like), sinusoids(4999 - count[:3], 6))


def relative_reference(
    attention: RelPositionMultiHeadedAttention, inputs: Tensor, length: int
) -> Tensor:
    """One utterance by loops: score(i, j) = ((q_i + u) k_j + (q_i + v) W p(i-j)) / sqrt(d)."""
    heads, width = attention.heads, attention.head_dim
    project = [attention.linear_q, attention.linear_k, attention.linear_v]
    q, k, v = (layer(inputs[:length]).view(length, heads, width) for layer in project)
    output = torch.zeros(length, heads, width)
    for h in range(heads):
        for i in range(length):
            scores = torch.zeros(length)
            for j in range(length):
                place = sinusoids(torch.tensor([float(i - j)]), heads * width)
                p = attention.linear_pos(place).view(heads, width)[h]
                content = (q[i, h] + attention.pos_bias_u[h]) @ k[j, h]
                scores[j] = content + (q[i, h] + attention.pos_bias_v[h]) @ p
            output[i, h] = (scores / math.sqrt(width)).softmax(0) @ v[:, h]
    result: Tensor = attention.linear_out(output.flatten(1))
    return result


def seeded(kind: type[MultiHeadedAttention]) -> MultiHeadedAttention:
    torch.manual_seed(1)
    attention = kind(2, 8, 0.0).eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("exact", [True, False])
def test_relative_attention_matches_loops(
    monkeypatch: pytest.MonkeyPatch, block: int, exact: bool
) -> None:
    monkeypatch.setattr(RelPositionMultiHeadedAttention, "block", block)
    attention = seeded(RelPositionMultiHeadedAttention)
    assert isinstance(attention, RelPositionMultiHeadedAttention)
    inputs, lengths = torch.randn(2, 7, 8), torch.tensor([7, 4])
    positions = relative_positions(7, inputs, exact)
    with torch.no_grad():
        output = attention(inputs, positions, find_padding(lengths, 7))
        for b, length in enumerate(lengths.tolist()):
            expected = relative_reference(attention, inputs[b], length)
            assert torch.allclose(output[b, :length], expected, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [RelPositionMultiHeadedAttention, LegacyRelPositionMultiHeadedAttention]
)
def test_padding_does_not_reach_relative_attention(
    kind: type[RelPositionMultiHeadedAttention],
) -> None:
    attention = seeded(kind)
    inputs, lengths = torch.randn(2, 9, 8), torch.tensor([9, 5])
    table = legacy_positions if "Legacy" in kind.__name__ else relative_positions
    with torch.no_grad():
        together = attention(inputs, table(9, inputs), find_padding(lengths, 9))
        alone = attention(inputs[1:, :5], table(5, inputs), None)
    assert torch.allclose(together[1, :5], alone[0], atol=1e-6)


def test_plain_attention_matches_pytorch() -> None:
    ours = seeded(MultiHeadedAttention)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    layers = [ours.linear_q, ours.linear_k, ours.linear_v]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(ours.linear_out.state_dict())
        inputs = torch.randn(2, 5, 8)
        mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
        output = ours(inputs, mask[:, None, None])
        expected, _ = theirs(inputs, inputs, inputs, key_padding_mask=~mask)
    assert torch.allclose(output, expected, atol=1e-6)


def test_long_utterances_are_taken_in_blocks() -> None:
    assert module.QUERY_BLOCK < 1024
    assert LegacyRelPositionMultiHeadedAttention.block is None
