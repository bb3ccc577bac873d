"""Builds the documentation site: generated reference pages, links, formulas, code blocks."""
