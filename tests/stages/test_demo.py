"""The demo on a handful of synthetic sentences: every stage, and the table it ends in."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.files import read_json
from kdpipe.stages.demo import demo_table, run_demo
from kdpipe.testing import tiny_recipe

pytest.importorskip("espeakng_loader", reason="the demo's speech needs the package espeakng-loader")


@pytest.mark.usefixtures("threads")
def test_the_demo_ends_in_its_table(tmp_path: Path) -> None:
    recipe = tiny_recipe("student.stages.0.epochs=1", "student.stages.1.epochs=1")
    said: list[str] = []
    rows = run_demo(tmp_path, recipe, 0, "cpu", said.append, utterances=(80, 4, 4))
    results = read_json(tmp_path / "results.json")
    assert isinstance(results, dict)
    assert [row["name"] for row in results["rows"]] == ["teacher", "plain", "f-kd", "fs-kd"]
    for row in results["rows"]:
        assert {"name", "params", "train_seconds", "dev", "test", "rtf"} == set(row)
        assert row["params"] > 1000
        assert row["train_seconds"] > 0
        assert row["test"]["cer"]["reference"] > 50
        assert row["rtf"] > 0
    assert results["store"]["complete"] is True
    assert results["store"]["utterances"] <= 80
    assert results["seconds"] > 0
    table = demo_table(rows, tmp_path)
    for name in ("teacher", "plain", "f-kd", "fs-kd", "MB per hour"):
        assert name in table
    assert [line[0] for line in said] == list("123456")
    run_demo(tmp_path, recipe, 0, "cpu", said.append, utterances=(80, 4, 4))
    again = read_json(tmp_path / "results.json")
    assert isinstance(again, dict)
    assert again["rows"] == results["rows"]
    assert again["seconds"] == results["seconds"]
