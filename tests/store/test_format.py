"""FORMAT.md is enough: a reader that follows it alone agrees with ours."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.store.contract import make_header, write_targets
from tests.store.plain_reader import section_table

from kdpipe.store import SparsePosterior, finish, open_store
from kdpipe.store.convert import convert_store

READER = Path(__file__).with_name("plain_reader.py")


def plain_targets(path: Path) -> dict[str, Any]:
    """What the reader of FORMAT.md makes of a store, in a process without kdpipe."""
    block = "import sys; sys.modules['kdpipe'] = None; sys.argv = sys.argv[1:];"
    run = f"{block} import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, str(READER), str(path)]
    answer: dict[str, Any] = json.loads(subprocess.check_output(command))
    return answer


def assert_rows(posterior: SparsePosterior, rows: list[Any]) -> None:
    assert posterior.counts.tolist() == [len(classes) for classes, _, _ in rows]
    assert posterior.ids.tolist() == [c for classes, _, _ in rows for c in classes]
    values = [value for _, values, _ in rows for value in values]
    np.testing.assert_allclose(posterior.log_probs, values, atol=2e-5)
    np.testing.assert_allclose(posterior.tail, [tail for _, _, tail in rows], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("s.zarr", {}),
        ("s.h5", {}),
        ("compact.zarr", {}),
        ("s.h5", {"id_bytes": 2}),
        ("s.zarr", {"codec": "fp32", "top_k": 300, "min_prob": 0.0}),
        ("compact.zarr", {"codec": "fp16", "vocab_size": 70_000, "top_k": 3, "min_prob": 0.0}),
    ],
)
def test_the_page_is_enough(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    header = make_header(**changes)
    source = tmp_path / "source.h5"
    count = 2 if header.tokenizer.vocab_size > 1000 else 12
    write_targets(source, header, range(count))
    finish(source)
    convert_store(source, tmp_path / name, compact=name.startswith("compact"), level=3)
    store, plain = open_store(source), plain_targets(tmp_path / name)
    assert list(plain) == list(store)
    for utterance, theirs in plain.items():
        ours = store[utterance]
        assert_rows(ours.frames, theirs["frames"])
        assert_rows(ours.tokens, theirs["tokens"])
        assert list(ours.reference) == theirs["reference"]
        assert [list(h.tokens) for h in ours.nbest] == [tokens for tokens, _ in theirs["nbest"]]
        assert [[h.attention, h.ctc, h.joint, h.posterior] for h in ours.nbest] == [
            scores for _, scores in theirs["nbest"]
        ]


def test_the_plain_reader_imports_nothing_of_ours() -> None:
    names = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(READER.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not [name for name in names if name.startswith("kdpipe")]


def test_the_digest_is_as_the_page_says(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_targets(path, make_header(), range(5))
    digest = finish(path)
    store = json.loads((path / "zarr.json").read_text())["attributes"]["kdpipe_store"]
    sections = section_table(store["header"])
    for name in ("created", "kdpipe_version", "licence", "expected_utterances"):
        del store["header"][name]
    for name in ("id_bytes", "fidelity", "lineage"):
        del store["header"][name]
    text = json.dumps(store["header"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    total = hashlib.sha256(hashlib.sha256(text.encode()).hexdigest().encode())
    table = np.fromfile(path / "table/c/0/0", "<u4").reshape(-1, 12)
    ids, records = (path / "ids/c/0").read_bytes(), (path / "records/c/0").read_bytes()
    begin = 0
    for row in table:
        utterance, begin = ids[begin : row[11]], int(row[11])
        size = sum(kind.itemsize * count for _, kind, count in sections(row))
        record = records[row[0] : row[0] + size]
        head = len(utterance).to_bytes(4, "little") + row[2:10].tobytes()
        total.update(hashlib.sha256(head + utterance + record).digest())
    assert total.hexdigest() == digest == store["digest"]
