from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from kdpipe.search.topk import best_columns, top_tokens

rows = st.lists(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=7, max_size=7),
    min_size=1,
    max_size=4,
)


@given(rows, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_ties_go_to_the_lower_columns(values: list[list[float]], count: int) -> None:
    scores, columns = top_tokens(torch.tensor(values), count)
    for row, found, ours in zip(values, columns.tolist(), scores.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda column: (-row[column], column))[:count]
        assert found == sorted(best)
        assert ours == [row[column] for column in found]


@given(rows)
def test_best_columns_are_stable(values: list[list[float]]) -> None:
    for row, found in zip(values, best_columns(torch.tensor(values), 5).tolist(), strict=True):
        assert found == sorted(range(7), key=lambda column: (-row[column], column))[:5]
