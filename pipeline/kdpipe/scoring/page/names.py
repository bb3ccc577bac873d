"""How models, searches and splits are called and coloured, the same all over the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdpipe.scoring.page.markup import Html, el
from kdpipe.scoring.page.material import DecodeRun, Material, ModelRun

__all__ = [
    "colours",
    "decode_order",
    "legend",
    "model_order",
    "percent",
    "plain_labels",
    "search_labels",
    "short_search",
    "splits",
]

STUDENT_COLOURS = 6
TEACHER_COLOURS = 2
SEARCHES = {"ar": "joint CTC/attention", "ctc": "greedy CTC", "mask-ctc": "Mask-CTC"}
SHORT = {"ar": "joint", "ctc": "greedy", "mask-ctc": "Mask-CTC"}
# Settings that a search reads, and how to write one where outputs differ in it.
SETTINGS = {
    "mask_threshold": ("mask-ctc", "p_thr {}"),
    "tokens_per_iteration": ("mask-ctc", "K {}"),
    "ctc_rescoring": ("mask-ctc", "CTC rescoring {}"),
    "ctc_weight": ("ar", "CTC weight {}"),
}
ROLES = (
    "autoregressive teacher", "plain student", "distilled student", "student", "model",
)  # fmt: skip


def model_order(models: Sequence[ModelRun]) -> list[ModelRun]:
    """Teachers, plain students, distilled students; by name inside each."""
    return sorted(models, key=lambda model: (ROLES.index(model.role), model.name))


def colours(models: Sequence[ModelRun]) -> dict[str, str]:
    """The colour class of each model: ink for teachers, hues for the others."""
    ordered = model_order(models)
    teachers = [model.name for model in ordered if model.kind == "ar"]
    others = [model.name for model in ordered if model.kind != "ar"]
    return {
        **{name: f"t{i % TEACHER_COLOURS}" for i, name in enumerate(teachers)},
        **{name: f"k{i % STUDENT_COLOURS}" for i, name in enumerate(others)},
    }


def legend(models: Sequence[ModelRun], chosen: Mapping[str, str]) -> Html:
    """Each of `models` with what it is and its colour: `chosen` is that of all on the page."""
    items = [
        el(
            "li",
            el("span", "", class_=f"swatch {chosen[model.name]}"),
            el("b", model.name),
            el("span", f" {_describe(model)}", class_="muted"),
        )
        for model in model_order(models)
    ]
    return el("ul", *items, class_="legend")


def _describe(model: ModelRun) -> str:
    size = "" if model.parameters is None else f", {model.parameters / 1e6:.2f} M parameters"
    return model.role + size


def splits(decodes: Sequence[DecodeRun]) -> list[str]:
    """Splits that were decoded, test sets first, dev and train last."""
    names = {decode.report.split for decode in decodes}
    return sorted(names, key=lambda name: (_split_rank(name), name))


def _split_rank(name: str) -> int:
    starts = ("test", "eval", "", "dev", "valid", "train")
    return next(
        (i for i, start in enumerate(starts) if start and name.startswith(start)), starts.index("")
    )


def decode_order(material: Material, split: str) -> list[DecodeRun]:
    """Decode outputs of a split: by model, then search, then beam."""
    order = {model.name: i for i, model in enumerate(model_order(material.models))}
    chosen = [decode for decode in material.decodes if decode.report.split == split]
    return sorted(chosen, key=lambda d: (
        order.get(d.model, len(order)), d.report.mode, d.report.beam,
        float(d.search.get("mask_threshold", 0.0)), d.name,
    ))  # fmt: skip


def plain_labels(decodes: Sequence[DecodeRun]) -> list[str]:
    """The search of each output, with those settings in which the outputs differ."""
    varied = {
        key: {d.search.get(key) for d in decodes if d.report.mode == mode}
        for key, (mode, _) in SETTINGS.items()
    }
    return [_search_label(decode, varied) for decode in decodes]


def search_labels(decodes: Sequence[DecodeRun]) -> list[str]:
    """Those, and the output's name where one model has several of a search."""
    labels = plain_labels(decodes)
    named = list(zip((d.model for d in decodes), labels, strict=True))
    return [
        f"{text} ({decode.name})" if named.count((decode.model, text)) > 1 else text
        for decode, text in zip(decodes, labels, strict=True)
    ]


def _search_label(decode: DecodeRun, varied: dict[str, set[object]]) -> str:
    mode = decode.report.mode
    beam = [] if mode == "ctc" else [f"beam {decode.report.beam}"]
    settings = [
        pattern.format(decode.search[key])
        for key, (wanted, pattern) in SETTINGS.items()
        if mode == wanted and len(varied[key]) > 1 and key in decode.search
    ]
    return ", ".join([SEARCHES.get(mode, mode), *beam, *settings])


def short_search(text: str) -> str:
    """A search label for the inside of a chart."""
    for mode, long in SEARCHES.items():
        text = text.replace(long, SHORT[mode])
    return text


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a number of percent, without the sign."""
    return f"{100 * fraction:.{digits}f}"
