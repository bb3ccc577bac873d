"""Pages that are made at build time, and links that work on GitHub and on the site alike."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdpipe_docs.api import api_page, losses_page
from kdpipe_docs.cli import cli_page
from kdpipe_docs.config import config_page

__all__ = [
    "INCLUDED",
    "code_names",
    "complete_nav",
    "generated_pages",
    "link_targets",
    "site_links",
]

INCLUDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "data/README.md": "how-to/corpora.md",
    "pipeline/kdpipe/store/FORMAT.md": "reference/store-format.md",
}
"""Pages that live elsewhere in the repository, and where they are on the site."""

LINK = re.compile(r"(?<=\]\()[^()\s]+(?=\))|(?<=src=\")[^\"]+(?=\")")
CODE_NAME = re.compile(r"`(kdpipe(?:\.\w+)+)`")


def generated_pages(repository: Path) -> Iterator[tuple[str, str]]:
    """(path on the site, Markdown) of every page that is not a file of docs/."""
    yield "reference/cli.md", cli_page()
    yield "reference/recipes.md", config_page()
    yield "reference/python.md", api_page()
    yield "reference/losses.md", losses_page()
    for source, place in INCLUDED.items():
        text = (repository / source).read_text(encoding="utf-8")
        yield place, site_links(text, source, place)


def site_links(markdown: str, source: str, place: str) -> str:
    """Point a page's relative links at where their targets are on the site.

    `source` is the page's path in the repository, `place` its path on the site. Links to files
    that are on no page of the site are left as they are, and so found by a strict build.
    """

    def move(match: re.Match[str]) -> str:
        target, hash_mark, anchor = match[0].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = INCLUDED.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if uri is None:
            return match[0]
        return posixpath.relpath(uri, posixpath.dirname(place) or ".") + hash_mark + anchor

    return _outside_fences(markdown, lambda line: LINK.sub(move, line))


def complete_nav(nav: list[Any], docs: Path) -> list[Any]:
    """Add the pages that `nav` does not name to the section that has others of their folder."""
    named = set(_leaves(nav))
    extended = []
    for entry in nav:
        section = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(section, list):
            folders = {posixpath.dirname(page) for page in _leaves(section)}
            found = [f"{folder}/{file.name}" for folder in sorted(folders)
                     for file in sorted((docs / folder).glob("*.md"))]  # fmt: skip
            title = next(iter(entry))
            extended.append({title: [*section, *(page for page in found if page not in named)]})
        else:
            extended.append(entry)
    return extended


def _leaves(nav: Any) -> Iterator[str]:
    """The pages that a part of the nav names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(entry)


def link_targets(markdown: str) -> list[str]:
    """Relative link targets of a page, without anchors."""
    found: list[str] = []

    def note(line: str) -> str:
        found.extend(target.partition("#")[0] for target in LINK.findall(line))
        return line

    _outside_fences(markdown, note)
    return [target for target in found if target and "://" not in target]


def code_names(markdown: str) -> list[str]:
    """Dotted names in backticks: `kdpipe.losses.ctc_loss`."""
    return CODE_NAME.findall(markdown)


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    inside, lines = False, []
    for line in markdown.split("\n"):
        if line.lstrip().startswith("```"):
            inside = not inside
        lines.append(line if inside else change(line))
    return "\n".join(lines)
