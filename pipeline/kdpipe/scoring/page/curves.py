"""Training curves: every loss term and dev error, all runs in one panel each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.material import Material, ModelRun, Section
from kdpipe.scoring.page.names import colours, legend, model_order
from kdpipe.scoring.page.plot import (
    Axis,
    Panel,
    end_names,
    line_mark,
    linear_axis,
    log_axis,
    rule,
    shorten,
    svg,
)

__all__ = ["curves_section"]

TITLES = {
    "dev_cer": "dev CER, greedy CTC, %",
    "dev_wer": "dev WER, greedy CTC, %",
    "total": "total loss",
    "ctc": "CTC loss",
    "attention": "attention decoder loss",
    "mlm": "masked LM loss",
    "encoder_frame": "F-KD after the encoder (Eq. 7)",
    "decoder_frame": "F-KD after the decoder (Eq. 11)",
    "encoder_sequence": "S-KD after the encoder (Eq. 8)",
    "decoder_sequence": "S-KD after the decoder (Eq. 12)",
}
"""Curves that are known by name, in their order on the page; others follow as they are called."""
NO_LOSS = {
    "type", "epoch", "step", "learning_rate", "gradient_norm", "audio_seconds_per_second",
    "seconds", "dev_seconds",
}  # fmt: skip
WIDTH, HEIGHT = 340, 232
LEFT, RIGHT, TOP, BOTTOM = 40, 74, 26, 36
LINES_NAMED = 6
Points = list[tuple[float, float]]


def curves_section(material: Material) -> Section:
    """One panel a term, over epochs, on a logarithmic scale."""
    title = "Training"
    trained = [model for model in model_order(material.models) if model.epochs]
    if not trained:
        return Section(
            "training", title,
            missing="No model directory with a training log among the runs: name the folder that"
            " `kdpipe train-teacher` or `kdpipe train-student` wrote.",
        )  # fmt: skip
    lead = (
        "Means over each epoch, in nats as train.jsonl logs them; both axes of a panel are shared"
        " by all models, upwards logarithmic. Dotted: a further stage of a student's schedule"
        " begins. The total of a distilled student has more terms than a plain one's, so compare"
        " totals within a model and single terms between models."
    )
    chosen = colours(material.models)
    panels = [_panel(trained, term, chosen) for term in _terms(trained)]
    body = join([legend(trained, chosen), el("div", *panels, class_="grid three")])
    return Section("training", title, lead, body)


def _terms(models: Sequence[ModelRun]) -> list[str]:
    """Every curve that some model has: the known ones first."""
    found = {key for model in models for record in model.epochs for key in record} - NO_LOSS
    known = [term for term in TITLES if term in found]
    return [term for term in [*known, *sorted(found - set(TITLES))]
            if any(_points(model, term) for model in models)]  # fmt: skip


def _points(model: ModelRun, term: str) -> Points:
    """(epoch, value) of a term; rates in percent; what is not finite is left out."""
    factor = 100.0 if term in ("dev_cer", "dev_wer") else 1.0
    pairs = [(record.get("epoch"), record.get(term)) for record in model.epochs]
    return [
        (float(epoch), factor * float(value))
        for epoch, value in pairs
        if isinstance(epoch, int) and isinstance(value, int | float) and math.isfinite(float(value))
    ]


def _panel(models: Sequence[ModelRun], term: str, chosen: dict[str, str]) -> Html:
    curves = [(model, points) for model in models if (points := _points(model, term))]
    values = [value for _, points in curves for _, value in points]
    last = max(epoch for model in models for epoch, _ in _points(model, "total") or [(1.0, 0.0)])
    end = max(last, *(epoch for _, points in curves for epoch, _ in points))
    bottom = HEIGHT - BOTTOM
    y = log_axis(values, bottom, TOP) if min(values) > 0 else linear_axis(values, bottom, TOP)
    panel = Panel(WIDTH, HEIGHT, Axis(min(1.0, end), max(end, 2.0), LEFT, WIDTH - RIGHT), y)
    title = TITLES.get(term, term.replace("_", " "))
    starts = sorted({start for model, _ in curves for start in model.stage_starts if start <= end})
    parts = [
        panel.frame(title, "epoch", lambda v: f"{v:g}", lambda v: f"{v:g}"),
        *(rule(panel.x.at(s), TOP, panel.x.at(s), bottom, "stage") for s in starts),
        *(_curve(panel, model, points, chosen[model.name]) for model, points in curves),
        *_line_names(panel, curves, chosen),
    ]
    return svg(WIDTH, HEIGHT, f"Curves of {title}", *parts)


def _curve(panel: Panel, model: ModelRun, points: Points, colour: str) -> Html:
    epoch, value = points[-1]
    return line_mark(panel, points, colour, f"{model.name}, epoch {epoch:g}: {value:.4g}")


def _line_names(
    panel: Panel, curves: Sequence[tuple[ModelRun, Points]], chosen: dict[str, str]
) -> list[Html]:
    """Each line's name and last value beside its end, where there are few enough to tell apart."""
    if len(curves) > LINES_NAMED:
        return []
    return end_names(
        panel,
        [
            (*points[-1], f"{shorten(model.name, 8)} {points[-1][1]:.3g}", chosen[model.name])
            for model, points in curves
        ],
    )
