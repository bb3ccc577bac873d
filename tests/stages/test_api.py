"""The public functions check what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kdpipe
from kdpipe.errors import ConfigError, DataError
from kdpipe.features.prepared import PreparedData
from kdpipe.testing import random_model, tone_waveform


def test_waveforms_are_decoded_or_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    model = kdpipe.load_model(random_model(tiny_data, tmp_path / "model", "mask-ctc"))
    waveform = tone_waveform("AB", np.random.default_rng(0))
    assert kdpipe.decode(model, []) == []
    texts = kdpipe.decode(model, [waveform, waveform[:800]], beam=2, nbest=2)
    assert len(texts) == 2
    assert texts[1] == [""]
    assert kdpipe.decode(model, [waveform.astype(np.float64)], beam=2, nbest=2) == texts[:1]
    with pytest.raises(DataError, match=r"shape \(2, 100\)"):
        kdpipe.decode(model, [np.zeros((2, 100), np.float32)])
    with pytest.raises(DataError, match="finite"):
        kdpipe.decode(model, [np.full(16_000, np.nan, np.float32)])
    with pytest.raises(ConfigError, match="ar"):
        kdpipe.decode(model, [waveform], mode="ar")


def test_the_mask_threshold_reaches_the_search(tiny_data: PreparedData, tmp_path: Path) -> None:
    model = kdpipe.load_model(random_model(tiny_data, tmp_path / "model", "mask-ctc"))
    waveforms = [tone_waveform("ABBA", np.random.default_rng(0))]
    greedy = kdpipe.decode(model, waveforms, mode="ctc")
    assert kdpipe.decode(model, waveforms, mask_threshold=0.0) == greedy
    assert kdpipe.decode(model, waveforms, mask_threshold=1.0) != greedy
    with pytest.raises(ConfigError, match="mask_threshold"):
        kdpipe.decode(model, waveforms, mask_threshold=-0.5)


def test_manifests_are_read_from_strings_too(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio_filepath": "a.flac", "duration": 1.5}\n')
    (utterance,) = kdpipe.read_manifest(str(manifest))
    assert (utterance.id, utterance.duration, utterance.text) == ("a", 1.5, None)
