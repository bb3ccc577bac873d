"""The report's page: drawing and HTML from plain records, with no torch and no network."""

from __future__ import annotations

from kdpipe.scoring.page.material import (
    DataSummary,
    DecodeRun,
    FrameAgreement,
    Material,
    ModelRun,
    PosteriorPicture,
    PosteriorRow,
    Section,
    StoreRun,
)
from kdpipe.scoring.page.page import page_sections, render_page

__all__ = [
    "DataSummary",
    "DecodeRun",
    "FrameAgreement",
    "Material",
    "ModelRun",
    "PosteriorPicture",
    "PosteriorRow",
    "Section",
    "StoreRun",
    "page_sections",
    "render_page",
]
