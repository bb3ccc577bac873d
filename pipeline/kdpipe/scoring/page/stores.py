"""The teacher store: what it holds, where its bytes go, and what it lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.material import Material, Section, StoreRun

__all__ = ["stores_section"]

PARTS = {
    "CTC posteriors, per frame": ("frame_rows", "frame_ids", "frame_codes", "frame_tails"),
    "decoder posteriors, per token": ("token_rows", "token_ids", "token_codes", "token_tails"),
    "reference tokens": ("reference",),
    "n-best hypotheses and scores": ("spans", "middles", "scores"),
}
"""Sections of a record (FORMAT.md) under the names that people know."""
HALF_BYTES = 2


def stores_section(material: Material) -> Section:
    """Size and fidelity of every store."""
    title = "Teacher store"
    if not material.stores:
        return Section(
            "store", title,
            missing="No teacher store among the runs: name the .zarr or .h5 that"
            " `kdpipe teacher-dump` wrote.",
        )  # fmt: skip
    lead = (
        "Fidelity is KL(teacher \u2016 store) in nats, the mean over a sample of utterances that"
        " the teacher was run on when the store was written; 0 would be lossless. The dense"
        " figure is what all posteriors of all classes would take at two bytes each."
    )
    return Section("store", title, lead, join(_store(store) for store in material.stores))


def _store(store: StoreRun) -> Html:
    info = store.info
    state = "" if info["complete"] else " (still being written)"
    return join(
        [
            el("h3", store.name + state),
            el("div", *_tiles(info), class_="tiles"),
            el("div", _bytes_chart(store), _facts(info), class_="grid two"),
        ]
    )


def _tiles(info: Mapping[str, Any]) -> list[Html]:
    if info["hours"] is None:
        content = f"{info['hypotheses']:,} hypotheses of {info['utterances']:,} utterances"
        return [tile(f"{info['bytes'] / 1e6:.2f} MB", f"of text alone: {content}")]
    dense = HALF_BYTES * (info["frames"] + info["tokens"]) * info["tokenizer"]["vocab_size"]
    fidelity = info["fidelity"]
    tiles = [
        tile(f"{info['bytes'] / 1e6:.2f} MB", f"for {info['hours']:.2f} hours of speech"),
        tile(f"{info['mb_per_hour']:.2f} MB/h", "MB (10\u2076 bytes) per hour of speech"),
        tile(
            f"1 : {dense / max(info['bytes'], 1):.1f}",
            f"of {dense / 1e6:.2f} MB dense 16-bit posteriors of {info['tokenizer']['vocab_size']}"
            " classes, without n-best",
        ),
    ]
    if fidelity is None:
        return [*tiles, tile("not measured", "fidelity: no utterance was sampled")]
    text = f"nats a frame; {fidelity['token_kl']:.2g} a token ({fidelity['utterances']} utterances)"
    return [*tiles, tile(f"{fidelity['frame_kl']:.2g}", f"fidelity KL, {text}")]


def tile(figure: str, text: str) -> Html:
    """A figure with what it is."""
    return el("div", el("b", figure), el("span", text), class_="tile")


def _bytes_chart(store: StoreRun) -> Html:
    """Where a record's bytes go, on percentages of the width."""
    totals = {name: sum(store.section_bytes.get(part, 0) for part in parts)
              for name, parts in PARTS.items()}  # fmt: skip
    whole = sum(totals.values()) or 1
    title = f"Mean bytes of an utterance by part ({store.sampled} utterances)"
    parts = [el("text", title, x="0", y="13", class_="title")]
    top = max(totals.values()) or 1
    for i, (name, size) in enumerate(totals.items()):
        y = 26 + 40 * i
        text = f"{100 * size / whole:.0f}%, {size / max(store.sampled, 1):,.0f} bytes"
        parts += [
            el("text", name, x="0", y=y + 12, class_="row"),
            el("rect", x="0", y=y + 17, width=f"{55 * size / top:.2f}%", height=14, rx=2,
               class_="fill k0", data_tip=f"{name}: {text}"),
            el("text", text, x=f"{55 * size / top:.2f}%", dx=7, y=y + 28, class_="value"),
        ]  # fmt: skip
    return el("svg", *parts, class_="chart fluid", width="100%", height=26 + 40 * len(totals),
              role="img", aria_label="Bars of where the bytes of a record go")  # fmt: skip


def _facts(info: Mapping[str, Any]) -> Html:
    search = ", ".join(f"{key} {value}" for key, value in info["decode"].items())
    rows = {
        "teacher": f"{info['teacher']['name']} ({info['teacher']['sha256'][:12]})",
        "split": info["split"],
        "utterances": f"{info['utterances']:,}",
        "frames, tokens": f"{info['frames']:,} of {1000 * info['frame_shift_seconds']:g} ms,"
        f" {info['tokens']:,}",
        "kept classes": f"{info['classes_per_frame']:.2f} a frame,"
        f" {info['classes_per_token']:.2f} a token, of {info['tokenizer']['vocab_size']}",
        "rule": f"p \u2265 {info['min_prob']:g}, at most {info['top_k']}, and the rest's mass",
        "n-best": f"{info['nbest']} ({info['hypotheses']:,} in all); {search}",
        "codec": f"{info['codec']}, {info['backend']}, {info['profile']}",
        "digest": str(info["digest"] or "none yet")[:16],
    }
    listed = [el("tr", el("th", name, scope="row"), el("td", str(text)))
              for name, text in rows.items()]  # fmt: skip
    return el("div", el("table", el("tbody", *listed), class_="facts"), class_="scroll")
