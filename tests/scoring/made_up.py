"""Material for a page with every part, whose strings are all chosen by the caller."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdpipe.scoring import ScoreReport, align_pairs, score_report
from kdpipe.scoring.page import (
    DataSummary,
    DecodeRun,
    FrameAgreement,
    Material,
    ModelRun,
    PosteriorPicture,
    PosteriorRow,
    StoreRun,
)

__all__ = ["made_up", "made_up_report", "store_facts"]

Name = Callable[[str], str]


def made_up(name: Name = str) -> Material:
    """A teacher, a plain and a distilled student, decoded on two splits; one store.

    Every string that could come from a user goes through `name`.
    """
    models = (_model(name, "teacher", "ar"), _model(name, "plain", "mask-ctc"),
              _model(name, "student", "mask-ctc", taught=True))  # fmt: skip
    decodes = tuple(
        _decode(name, model, split, mode, beam, wrong)
        for split in ("test", "dev")
        for model, mode, beam, wrong in (
            ("teacher", "ar", 10, 1), ("plain", "ctc", 1, 4), ("student", "ctc", 1, 2),
            ("plain", "mask-ctc", 10, 5), ("student", "mask-ctc", 10, 3),
            ("student", "mask-ctc", 1, 3),
        )
    )  # fmt: skip
    agreements = tuple(
        FrameAgreement(name("store"), name(student), 8, 400, 100, 0.9, 0.8, 0.2, (0,) * 19 + (100,),
                       (5,) * 20, ((0.4, 0.5, 100), (0.9, 0.95, 300)))
        for student in ("plain", "student")
    )  # fmt: skip
    return Material(
        title=name("runs"),
        models=models,
        decodes=decodes,
        stores=(StoreRun(name("store"), store_facts(name), {"frame_ids": 10, "scores": 5}, 8),),
        data=(DataSummary(name("data"), name("30 classes"), {name("test"): (6, 12.0)}),),
        agreements=agreements,
        pictures=(_picture(name),),
        notes=(name("a note"),),
    )


def _model(name: Name, model: str, kind: str, taught: bool = False) -> ModelRun:
    terms = ("total", "ctc", name("strange_term"), *(("encoder_frame",) if taught else ()))
    epochs = tuple(
        {"type": "epoch", "epoch": e, "dev_cer": 1.0 / e, **dict.fromkeys(terms, 3.0 / e)}
        for e in range(1, 6)
    )
    teachers = (name("teacher"),) if taught else ()
    return ModelRun(name(model), kind, 1_000_000, teachers, epochs, (4,) if taught else ())


def _decode(name: Name, model: str, split: str, mode: str, beam: int, wrong: int) -> DecodeRun:
    """Six utterances of 2 to 7 words, of which the first `wrong` words are other ones."""
    texts = {}
    for i in range(6):
        words = [f"{name('word')}{j}" for j in range(2 + i)]
        heard = [name("other")] * min(wrong, len(words)) + words[wrong:] + [name("more")] * (i == 5)
        texts[f"{name('utt')}{i}"] = (" ".join(words), " ".join(heard))
    references = {key: pair[0] for key, pair in texts.items()}
    hypotheses = {key: pair[1] for key, pair in texts.items()}
    report = made_up_report(references, hypotheses, name(split), mode, beam)
    errors = align_pairs(references, hypotheses)
    folder = name(f"{model}-{split}-{mode}-{beam}")
    search = {"beam": beam, "mask_threshold": 0.99, "ctc_weight": 0.3}
    return DecodeRun(folder, name(model), report, search, "word", errors, texts)


def made_up_report(
    references: dict[str, str], hypotheses: dict[str, str], split: str, mode: str, beam: int
) -> ScoreReport:
    """Scored as `kdpipe decode` would."""
    return score_report(
        references, hypotheses, split=split, mode=mode, beam=beam, utterances=len(hypotheses),
        skipped=1, audio_seconds=12.0, decode_seconds=0.01 * beam + 0.02, threads=1, device="cpu",
    )  # fmt: skip


def store_facts(name: Name) -> dict[str, object]:
    """What `store_info` says of a store, as far as the page reads it."""
    return {
        "complete": False, "utterances": 8, "hours": 0.01, "bytes": 20_000, "mb_per_hour": 2.0,
        "digest": None, "teacher": {"name": name("teacher"), "sha256": name("5ea5")},
        "tokenizer": {"vocab_size": 30}, "split": name("train"), "frame_shift_seconds": 0.04,
        "decode": {name("beam"): name("10")}, "nbest": 10, "hypotheses": 80, "top_k": 32,
        "min_prob": 1e-3, "codec": "log8", "backend": "zarr", "profile": "mapped", "frames": 400,
        "tokens": 90, "classes_per_frame": 1.9, "classes_per_token": 4.0,
        "fidelity": {"frame_kl": 8e-4, "token_kl": 4e-4, "utterances": 8},
    }  # fmt: skip


def _picture(name: Name) -> PosteriorPicture:
    random = np.random.default_rng(0)
    rows = tuple(
        PosteriorRow(name(model), name("greedy"), name("text"), random.dirichlet([0.1] * 3, 12))
        for model in ("teacher", "student")
    )
    pieces = (name("A"), name("B"), "blank")
    return PosteriorPicture(name("utt1"), name("why"), name("reference"), 0.04, pieces, rows)
