"""Decoders: causality, the incremental form, shared memory, the Mask-CTC form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.models import (
    CausalDecoder,
    Encoded,
    MaskedDecoder,
    RecognitionModel,
    linear,
    reorder,
)

TinyModel = Callable[..., RecognitionModel]


def encoded_batch(model: RecognitionModel, lengths: list[int]) -> Encoded:
    torch.manual_seed(3)
    features = torch.randn(len(lengths), max(lengths), 20)
    with torch.inference_mode():
        return model.encode(features, torch.tensor(lengths))


def causal(model: RecognitionModel) -> CausalDecoder:
    assert isinstance(model.decoder, CausalDecoder)
    return model.decoder


def masked(model: RecognitionModel) -> MaskedDecoder:
    assert isinstance(model.decoder, MaskedDecoder)
    return model.decoder


def test_later_tokens_never_reach_earlier_outputs(tiny_model: TinyModel) -> None:
    model = tiny_model()
    encoded = encoded_batch(model, [40])
    tokens = torch.randint(0, 11, (1, 8))
    for position in range(8):
        changed = tokens.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 11
        with torch.inference_mode():
            logits = [
                model.decoder_logits(encoded, t, torch.tensor([8]))[:, :position]
                for t in (tokens, changed)
            ]
        assert torch.equal(logits[0], logits[1])


def test_rows_of_an_utterance_share_its_memory(tiny_model: TinyModel) -> None:
    model = tiny_model("mask-ctc")
    encoded = encoded_batch(model, [60, 30])
    lengths = torch.tensor([3, 7, 1, 2, 5, 4])
    tokens = torch.randint(0, 11, (6, 7))
    with torch.inference_mode():
        memory = model.decoder.project_memory(encoded.hidden, encoded.lengths)
        together = model.decoder(tokens, lengths, memory)
        copied = model.decoder(tokens, lengths, memory.select(torch.tensor([0, 0, 0, 1, 1, 1])))
    inside = torch.arange(7) < lengths[:, None]
    assert torch.allclose(together[inside], copied[inside], atol=1e-6)


@pytest.mark.parametrize("kind", ["ar", "mask-ctc"])
def test_sequence_alone_equals_itself_in_a_batch(tiny_model: TinyModel, kind: str) -> None:
    model = tiny_model(kind)
    encoded = encoded_batch(model, [60, 8, 30, 4])
    lengths = torch.tensor([3, 7, 1, 2])
    tokens = torch.randint(0, 11, (4, 7))
    tokens[torch.arange(7) >= lengths[:, None]] = -1
    with torch.inference_mode():
        together = model.decoder_logits(encoded, tokens, lengths)
        for row, length in enumerate(lengths.tolist()):
            frames = int(encoded.lengths[row])
            own = Encoded(encoded.hidden[row : row + 1, :frames], encoded.lengths[row : row + 1])
            alone = model.decoder_logits(
                own, tokens[row : row + 1, :length], lengths[row : row + 1]
            )
            assert torch.allclose(together[row, :length], alone[0], atol=1e-5)
    assert together.shape[2] == 11 + (kind == "mask-ctc")


def teacher_forced(model: RecognitionModel, encoded: Encoded, tokens: Tensor) -> Tensor:
    """Log-probs of the next token, one hypothesis after the other."""
    size = tokens.shape[2]
    lengths = torch.full((tokens.shape[0],), size)
    rows = [model.decoder_logits(encoded, tokens[:, k], lengths) for k in range(tokens.shape[1])]
    return torch.stack(rows, 1)[:, :, -1].log_softmax(2)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_step_equals_teacher_forcing_through_any_reordering(
    tiny_model: TinyModel, data: st.DataObject
) -> None:
    model = tiny_model()
    encoded = encoded_batch(model, data.draw(st.lists(st.integers(7, 50), min_size=1, max_size=3)))
    batch = encoded.hidden.shape[0]
    decoder, beams = causal(model), 1
    with torch.inference_mode():
        memory = decoder.project_memory(encoded.hidden, encoded.lengths)
        cache = decoder.start(memory, beams)
        tokens = torch.full((batch, 1, 1), 10)
        for _ in range(5):
            log_probs, cache = decoder.step(tokens[:, :, -1], cache, memory)
            expected = teacher_forced(model, encoded, tokens)
            assert torch.allclose(log_probs, expected, atol=1e-5)
            beams_next = data.draw(st.integers(1, 4))
            parents = torch.randint(0, beams, (batch, beams_next))
            cache = reorder(cache, parents)
            index = parents.unsqueeze(2).expand(-1, -1, tokens.shape[2])
            fresh = torch.randint(0, 11, (batch, beams_next, 1))
            tokens, beams = torch.cat([tokens.gather(1, index), fresh], 2), beams_next


def test_finished_utterances_can_be_dropped(tiny_model: TinyModel) -> None:
    model = tiny_model()
    encoded = encoded_batch(model, [50, 20, 35])
    decoder, keep = causal(model), torch.tensor([2, 0])
    tokens = torch.randint(0, 11, (3, 2, 4))
    with torch.inference_mode():
        memory = decoder.project_memory(encoded.hidden, encoded.lengths)
        cache = decoder.start(memory, 2)
        for position in range(3):
            _, cache = decoder.step(tokens[:, :, position], cache, memory)
        memory, cache = memory.select(keep), cache.select(keep)
        log_probs, _ = decoder.step(tokens[keep, :, 3], cache, memory)
        expected = teacher_forced(model, encoded, tokens)[keep]
    assert memory.size == 2
    assert torch.allclose(log_probs, expected, atol=1e-5)


def test_mask_ctc_decoder_reads_both_sides(tiny_model: TinyModel) -> None:
    model = tiny_model("mask-ctc")
    encoded = encoded_batch(model, [40])
    tokens = torch.randint(0, 11, (1, 6))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    with torch.inference_mode():
        logits = [model.decoder_logits(encoded, t, torch.tensor([6])) for t in (tokens, changed)]
    assert not torch.allclose(logits[0][:, 0], logits[1][:, 0], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    beams=st.integers(1, 3),
    seed=st.integers(0, 99),
    layers=st.integers(1, 2),
)
def test_memory_form_equals_plain_form(
    tiny_model: TinyModel, lengths: list[int], beams: int, seed: int, layers: int
) -> None:
    model = tiny_model("mask-ctc", decoder_layers=layers)
    encoded = encoded_batch(model, [20 + 9 * row for row in range(len(lengths))])
    torch.manual_seed(seed)
    shape = (len(lengths), beams, max(lengths))
    tokens, sizes = torch.randint(0, 12, shape), torch.tensor(lengths)
    wanted = (torch.rand(shape) < 0.4) & (torch.arange(shape[2]) < sizes[:, None, None])
    with torch.inference_mode():
        decoder = masked(model)
        memory = decoder.project_memory(encoded.hidden, encoded.lengths)
        found = decoder.forward_with_memory(tokens, sizes, memory, wanted)
        plain = [model.decoder_logits(encoded, tokens[:, k], sizes) for k in range(beams)]
        expected = torch.stack(plain, 1).log_softmax(3)[wanted]
    assert found.shape == (int(wanted.sum()), 12)
    assert torch.allclose(found, expected, atol=1e-5)


def test_packed_weights_change_nothing(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    encoded, tokens = encoded_batch(model, [50, 20]), torch.randint(0, 11, (2, 1, 4))
    with torch.inference_mode():
        expected = teacher_forced(model, encoded, tokens)
        monkeypatch.setattr(linear, "SMALL_PRODUCT", 1)
        decoder = causal(model)
        memory = decoder.project_memory(encoded.hidden, encoded.lengths)
        cache = decoder.start(memory, 1)
        for position in range(4):
            log_probs, cache = decoder.step(tokens[:, :, position], cache, memory)
    assert torch.allclose(log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ar", "mask-ctc"])
def test_no_frames_at_all_stays_finite(tiny_model: TinyModel, kind: str) -> None:
    model = tiny_model(kind)
    encoded = encoded_batch(model, [5, 3])
    tokens = torch.ones(2, 3, dtype=torch.long)
    logits = model.decoder_logits(encoded, tokens, torch.tensor([3, 1]))
    assert logits.isfinite().all()
