"""Named sizes, their parameter counts beside the paper's, and refused configs."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from kdpipe.errors import ConfigError
from kdpipe.models import ModelConfig, build_model, count_parameters, size_by_name, size_table


@pytest.mark.parametrize("vocab_size", [4233, 5000])
def test_counts_agree_with_the_paper_at_its_vocabulary(vocab_size: int) -> None:
    rows = size_table(vocab_size)
    assert [row.name for row in rows] == ["L", "M", "S", "XS"]
    for row in rows:
        assert round(row.at_paper_vocab / 1e6, 1) == row.paper_millions
        if row.paper_vocab == vocab_size:
            assert row.parameters == row.at_paper_vocab


def test_mask_class_adds_a_row_to_embedding_and_output() -> None:
    teacher, student = size_table(4233)[1], size_table(4233, "mask-ctc")[1]
    assert student.parameters - teacher.parameters == 256 + 256 + 1


def test_count_is_that_of_the_built_model() -> None:
    for row in size_table(30):
        with torch.device("meta"):
            model = build_model(size_by_name(row.name, 30))
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert row.parameters == count_parameters(model)


def test_size_by_name_takes_changes() -> None:
    config = size_by_name("XS", 100, "mask-ctc", kernel=15)
    assert (config.dim, config.inner, config.kernel) == (128, 256, 15)
    assert config.output_classes == 101
    assert ModelConfig(**asdict(config)) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 2),
        ("dim", 130),
        ("dim", 0),
        ("kernel", 30),
        ("dropout", 1.0),
        ("feature_dim", 6),
        ("encoder_layers", 10**9),
        ("decoder_layers", 1001),
        ("decoder_heads", 3),
        ("decoder_inner", -1),
    ],
)
def test_impossible_values_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(size_by_name("XS", 100), **{key: value})  # type: ignore[arg-type]
    assert caught.value.key in (key, "heads", "decoder_heads")


def test_unknown_kinds_are_refused_by_name() -> None:
    shape = {"vocab_size": 10, "dim": 8, "heads": 2, "inner": 8}
    for key in ("kind", "encoder", "positions", "activation"):
        given = {"kind": "ar", **shape, key: "other"}
        # A plain call would be stopped by the type checks of the test run itself.
        with pytest.raises((ConfigError, TypeError)) as caught:
            ModelConfig(**given)  # type: ignore[arg-type]
        assert key in str(caught.value)


def test_transformer_takes_absolute_positions_only() -> None:
    with pytest.raises(ConfigError):
        size_by_name("XS", 100, encoder="transformer")


def test_unknown_size_and_key_are_refused() -> None:
    with pytest.raises(ConfigError, match="XXL"):
        size_by_name("XXL", 100)
    with pytest.raises(ConfigError, match="width"):
        size_by_name("XS", 100, width=3)


def test_initial_weights_are_sane_and_follow_the_seed() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(4)
        models.append(build_model(size_by_name("XS", 50, encoder_layers=1, decoder_layers=1)))
    first, second = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    layer = "encoder.encoders.0."
    assert first[layer + "conv_module.norm.weight"].eq(1).all()
    assert first[layer + "norm_ff.weight"].eq(1).all()
    assert first[layer + "feed_forward.w_1.bias"].abs().sum() > 0
    assert first[layer + "self_attn.pos_bias_u"].std() > 0
