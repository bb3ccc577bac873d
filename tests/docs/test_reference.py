"""The generated pages say something of everything, and every name in the pages exists."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kdpipe_docs.api import api_page, documented_names, losses_page
from kdpipe_docs.blocks import read_blocks
from kdpipe_docs.cli import cli_page, commands
from kdpipe_docs.config import config_page, recipe_keys
from kdpipe_docs.formulas import formulas_to_mathml
from kdpipe_docs.site import code_names, complete_nav, generated_pages, link_targets, site_links

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *REPOSITORY.glob("*.md"),
    REPOSITORY / "data" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


def resolve(dotted: str) -> object:
    """The object that a dotted name means: a module, or something in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            value = getattr(value, attribute)
        return value
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_code_names_exist(page: Path) -> None:
    for dotted in code_names(page.read_text(encoding="utf-8")):
        resolve(dotted)


def test_the_mathematics_names_what_implements_each_equation() -> None:
    text = (REPOSITORY / "docs" / "mathematics.md").read_text(encoding="utf-8")
    assert len(set(code_names(text))) > 40
    rows = [line for line in text.splitlines() if line.startswith("|")]
    numbered = " ".join(row.split("|")[1] for row in rows)
    assert {"1", "2", "3", "4", "6", "7", "8", "9", "10", "11", "12", "13"} <= set(
        numbered.replace(",", " ").split()
    )


def test_every_option_says_what_it_means() -> None:
    silent = [
        f"{path} {option.opts[0]}"
        for path, command in commands()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []
    page = cli_page()
    for path, _ in commands():
        assert f" {path}\n" in page


def test_every_recipe_key_says_what_it_means() -> None:
    assert [key.name for key in recipe_keys() if not key.meaning] == []
    assert "`beta_frame` | number | `1.0` | 0 to 1,000" in config_page()


def test_sizes_stand_beside_the_papers() -> None:
    page = config_page()
    for row in ("| L | 115.0 M | 116.1 M | 115.0 M |", "| M | 46.2 M | 46.8 M | 46.8 M |"):
        assert row in page


def test_public_names_are_documented() -> None:
    values = {name: resolve(name) for name in documented_names()}
    silent = [
        name
        for name, value in values.items()
        if inspect.isclass(value) or inspect.isfunction(value)
        if not inspect.getdoc(value)
    ]
    assert silent == []
    page = api_page() + losses_page()
    assert [name for name in values if name.rpartition(".")[2] not in page] == []


def test_links_lead_somewhere() -> None:
    made = {REPOSITORY / "docs" / place for place, _ in generated_pages(REPOSITORY)}
    broken = [
        f"{page.relative_to(REPOSITORY)}: {target}"
        for page in PAGES
        for target in link_targets(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists() and (page.parent / target).resolve() not in made
    ]
    assert broken == []


def figures_of(page: Path) -> set[str]:
    """The decimal numbers of a page, each as it is written: 7.6 is not in 17.6."""
    return set(re.findall(r"\d+\.\d+", page.read_text(encoding="utf-8")))


def test_the_readme_has_the_figures_of_the_results_pages() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and "(docs/results/" in line]
    stale = [
        f"{figure}: {page}"
        for row in rows
        for page in link_targets(row)
        for figure in re.findall(r"\d+\.\d+", row.partition("[")[0])
        if page.endswith(".md") and figure not in figures_of(REPOSITORY / page)
    ]
    assert len(rows) > 5
    assert stale == []


def test_links_follow_a_page_to_the_site() -> None:
    text = "[f](pipeline/kdpipe/store/FORMAT.md#table) [s](docs/store.md)\n```\n[x](docs/y.md)\n```"
    moved = site_links(text, "README.md", "index.md")
    assert moved == "[f](reference/store-format.md#table) [s](store.md)\n```\n[x](docs/y.md)\n```"
    assert site_links("[r](../README.md)", "docs/store.md", "store.md") == "[r](index.md)"


def test_new_pages_find_their_place(tmp_path: Path) -> None:
    for page in ("how-to/a.md", "how-to/b.md", "results/c.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).touch()
    nav = ["index.md", {"How to": [{"First": "how-to/b.md"}]}, {"Results": ["results/c.md"]}]
    assert complete_nav(nav, tmp_path) == [
        "index.md", {"How to": [{"First": "how-to/b.md"}, "how-to/a.md"]},
        {"Results": ["results/c.md"]},
    ]  # fmt: skip


def test_formulas_become_mathml() -> None:
    page = formulas_to_mathml(r'<span class="arithmatex">\(a &lt; \frac{1}{2}\)</span>')
    assert page.startswith("<math")
    assert "<mfrac>" in page


def test_blocks_are_closed() -> None:
    for page in PAGES:
        read_blocks(page)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the documentation needs kdpipe[docs]")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for page in ("index.html", "reference/cli.html", "mathematics.html"):
        html = (tmp_path / page).read_text(encoding="utf-8")
        assert "arithmatex" not in html, page
    loaded = re.compile(r'(?:src="|<link [^>]*href=")(?:https?:)?//[^"]*')
    for file in tmp_path.rglob("*.html"):
        assert loaded.findall(file.read_text(encoding="utf-8")) == [], file
