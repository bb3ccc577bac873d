"""Alternatives side by side: tabs where scripts run, one after the other where they do not."""

from __future__ import annotations

from collections.abc import Mapping

from kdpipe.scoring.page.markup import Html, el, join

__all__ = ["tabs"]


def tabs(group: str, panels: Mapping[str, Html]) -> Html:
    """One panel a name; a single one needs no tab."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    parts = [
        el(
            "section", el("h3", name, class_="tab-title"), body,
            class_="panel", id=f"{group}-{i}", data_tab=name,
        )
        for i, (name, body) in enumerate(panels.items())
    ]  # fmt: skip
    return el("div", join(parts), class_="tabs", data_tabs=group)
