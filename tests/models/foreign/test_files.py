"""Published files that are damaged, and small ones that stand for much."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from kdpipe.errors import ModelFormatError
from kdpipe.models.foreign.files import open_published, parse_arrays, parse_weights, parse_yaml

LISTS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
TABLES = "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))
BAD_YAML = {
    "no date": "date: 2023-13-45",
    "thousands of digits": f"seed: {'9' * 5000}",
    "a tag that does not fit": "seed: !!timestamp x",
    "deep nesting": "a: " + "[" * 100_000,
    "lists of lists": f"a0: &a0 [laugh]\n{LISTS}",
    "tables of tables": f"a0: &a0 {{laugh: 1}}\n{TABLES}",
    "one long text many times": f"a0: &a0 {'ha' * 5000}\na: [{', '.join(['*a0'] * 5000)}]",
    "a list of itself": "a: &a [*a]",
}


@pytest.mark.parametrize("content", BAD_YAML.values(), ids=BAD_YAML.keys())
def test_a_yaml_of_bad_or_boundless_values_is_named(content: str) -> None:
    with pytest.raises(ModelFormatError, match=r"config\.yaml: no plain YAML \(.+\)"):
        parse_yaml(content.encode(), "config.yaml")


def test_aliases_of_repeated_lists_are_read() -> None:
    """As ESPnet's own dumps have them."""
    shapes = ["exp/stats/train/speech_shape"]
    table = {"train_shape_file": shapes, "valid_shape_file": shapes}
    content = yaml.safe_dump(table)
    assert "&id001" in content
    assert parse_yaml(content.encode(), "config.yaml") == table


def with_a_changed_byte(content: bytes, number: int) -> bytes:
    changed, chance = bytearray(content), random.Random(number)
    changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_changed_byte_of_weights_is_no_traceback(zipped: bool) -> None:
    buffer = io.BytesIO()
    tensors = {"a": torch.ones(3), "b": torch.zeros(2)}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
    damaged = 0
    for number in range(300):
        try:
            parse_weights(with_a_changed_byte(buffer.getvalue(), number), "w.pth")
        except ModelFormatError:
            damaged += 1
    assert damaged > 30


def test_damaged_deflated_data_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.yaml", "token_list: [a, b, c]\n" * 20)
    content = bytearray(buffer.getvalue())
    content[len("config.yaml") + 30] = 0xFF
    (tmp_path / "asr.zip").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"config\.yaml is damaged"):
        open_published(tmp_path / "asr.zip").read("config.yaml")
    with pytest.raises(ModelFormatError, match="plain arrays"):
        parse_arrays(bytes(content), "feats_stats.npz", ["config.yaml"])
