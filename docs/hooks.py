"""What mkdocs calls while it builds the site."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from kdpipe_docs.formulas import formulas_to_mathml
from kdpipe_docs.site import INCLUDED, complete_nav, generated_pages, site_links

__all__ = ["on_config", "on_files", "on_page_content", "on_page_markdown"]

REPOSITORY = Path(__file__).resolve().parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give every page of docs/ a place in the navigation."""
    config.nav = complete_nav(config.nav or [], Path(config.docs_dir))
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for place, content in generated_pages(REPOSITORY):
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links out of docs/ lead to where those files are on the site."""
    uri = page.file.src_uri
    return markdown if uri in INCLUDED.values() else site_links(markdown, f"docs/{uri}", uri)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show formulas."""
    return formulas_to_mathml(html)
