"""Several stores into one: disjoint utterances joined, or several teachers averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdpipe.errors import MismatchError, StoreFormatError
from kdpipe.store.blocks import checked
from kdpipe.store.convert import all_blocks, open_any
from kdpipe.store.finish import finish
from kdpipe.store.journal import read_working_header
from kdpipe.store.layout import Widths
from kdpipe.store.pairs import mean_posterior
from kdpipe.store.paths import store_state, working_folder
from kdpipe.store.reader import TeacherStore, open_store
from kdpipe.store.repair import record_at
from kdpipe.store.schema import (
    StoredHypothesis,
    StoreHeader,
    TeacherIdentity,
    UtteranceTargets,
)
from kdpipe.store.writer import StoreWriter

__all__ = ["AVERAGE_DEFINITIONS", "average_stores", "join_stores", "mean_targets"]

BATCH = 64
Advance = Callable[[int], object]

FREE_WHEN_JOINING = {"manifest_digest", "split"}
FREE_WHEN_AVERAGING = {"id_bytes", "teacher", "cmvn_digest", "decode", "score_definitions", "nbest"}

AVERAGE_DEFINITIONS = {
    "attention": "mean over the teachers that have the hypothesis, nats",
    "ctc": "mean over the teachers that have the hypothesis, nats",
    "joint": "log of the mean over all teachers of the posterior (Eq. 9), nats",
    "posterior": "exp(joint) over the sum of exp(joint) of the stored n-best (Eq. 9)",
}


def join_stores(
    sources: Sequence[Path], target: Path, advance: Advance = lambda utterances: None
) -> str:
    """Join stores of one teacher over different utterances; returns the digest.

    Records are moved as they are. An utterance in several stores must be the same in all. The
    stores may be of different splits; all other settings must agree. Resumes when run again;
    what is complete stays. Raises `MismatchError` naming both sides.
    """
    images = [open_any(source) for source in sources]
    headers = [image.header for image in images]
    headers = [replace(h, id_bytes=Widths.of(h).id.itemsize) for h in headers]
    _require_equal(sources, headers, FREE_WHEN_JOINING)
    splits = list(dict.fromkeys(header.split for header in headers))
    header = replace(
        headers[0],
        split="+".join(splits),
        manifest_digest=_joint_digest([h.manifest_digest for h in headers]),
        lineage=tuple(str(image.digest) for image in images),
        licence=_joint_licence(headers),
        created="",
        kdpipe_version="",
        expected_utterances=0,
        fidelity=None,
    )
    _require_same_overlap(sources)
    if digest := _made_before(target, header):
        return digest
    with StoreWriter(target, header, "join", flush_bytes=1 << 23) as writer:
        for image in images:
            for block in checked(all_blocks(image), image.path, image.header, image.digest):
                for position in range(len(block.rows)):
                    writer.add_record(record_at(block, position))
                advance(len(block.rows))
    return finish(target)


def _require_same_overlap(sources: Sequence[Path]) -> None:
    """What several stores hold must be the same record as in the first of them."""
    holders: dict[str, TeacherStore] = {}
    for other in map(open_store, sources):
        for utterance in other:
            store = holders.setdefault(utterance, other)
            if store is not other and not store.same_record(other, utterance):
                raise MismatchError(
                    f"utterance {utterance}",
                    store.path,
                    other.path,
                    "Join stores of different utterances, or average them with --average",
                )


def average_stores(
    sources: Sequence[Path], target: Path, advance: Advance = lambda utterances: None
) -> str:
    """Average several teachers over the same utterances; returns the digest.

    Posteriors are averaged as probabilities and cut again by the settings all stores share.
    Hypotheses are those of all teachers by the mean of their posteriors. Resumes when run again;
    what is complete stays. Raises `MismatchError` naming both sides when utterances, frames or
    references differ.
    """
    stores = [open_store(source) for source in sources]
    headers = [store.header for store in stores]
    _require_equal(sources, headers, FREE_WHEN_AVERAGING)
    header = _average_header(stores)
    ids = stores[0].ids
    for store, source in zip(stores[1:], sources[1:], strict=True):
        if store.ids != ids:
            what = f"the set of utterances of {sources[0]} and {source}"
            raise MismatchError(what, len(ids), len(store), "Average the same utterances")
    if digest := _made_before(target, header):
        return digest
    with StoreWriter(target, header, "average", flush_bytes=1 << 23) as writer:
        done = writer.done_ids()
        for start in range(0, len(ids), BATCH):
            for utterance in ids[start : start + BATCH]:
                if utterance not in done:
                    versions = [store[utterance] for store in stores]
                    writer.add(mean_targets(versions, header))
            advance(min(BATCH, len(ids) - start))
    return finish(target)


def _made_before(target: Path, header: StoreHeader) -> str | None:
    """The digest of `target` where it is complete and of these sources; None where it is not.

    Raises `StoreFormatError` for a store of others, complete or begun.
    """
    state = store_state(target)
    if state == "partial":
        begun, _ = read_working_header(working_folder(target))
        if begun.lineage != header.lineage:
            problem = "was begun with other stores"
            raise StoreFormatError(target, problem, "Remove it, or give another --out")
    if state != "complete":
        return None
    made = open_any(target)
    ours, theirs = ((h.lineage, h.score_definitions) for h in (header, made.header))
    if ours != theirs:
        problem = "is complete, and of other stores"
        raise StoreFormatError(target, problem, "Remove it, or give another --out")
    return made.digest


def _average_header(stores: Sequence[TeacherStore]) -> StoreHeader:
    headers = [store.header for store in stores]
    name = "average of " + ", ".join(header.teacher.name for header in headers)
    teacher = TeacherIdentity(name, _joint_digest([h.teacher.sha256 for h in headers]))
    cmvn = list(dict.fromkeys(header.cmvn_digest for header in headers))
    return replace(
        headers[0],
        teacher=teacher,
        cmvn_digest=cmvn[0] if len(cmvn) == 1 else _joint_digest(cmvn),
        decode={str(number): header.decode for number, header in enumerate(headers)},
        nbest=max(header.nbest for header in headers),
        id_bytes=0,
        score_definitions=dict(AVERAGE_DEFINITIONS),
        lineage=tuple(str(store.digest) for store in stores),
        licence=_joint_licence(headers),
        created="",
        kdpipe_version="",
        expected_utterances=0,
        fidelity=None,
    )


def mean_targets(versions: Sequence[UtteranceTargets], header: StoreHeader) -> UtteranceTargets:
    """The mean of what several teachers said about one utterance.

    Raises `MismatchError` when frames, references or token rows differ.
    """
    first = versions[0]
    for other in versions[1:]:
        pairs = {
            "frames": (len(first.frames), len(other.frames)),
            "token rows": (len(first.tokens), len(other.tokens)),
            "reference": (first.reference, other.reference),
        }
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                remedy = "Average teachers over the same data and tokenizer"
                raise MismatchError(f"the {what} of {first.id}", ours, theirs, remedy)
    vocab_size, settings = header.tokenizer.vocab_size, (header.top_k, header.min_prob)
    return UtteranceTargets(
        first.id,
        mean_posterior(tuple(v.frames for v in versions), vocab_size, *settings),
        mean_posterior(tuple(v.tokens for v in versions), vocab_size, *settings),
        first.reference,
        _mean_nbest(versions, header.nbest),
        _joint_status(versions),
    )


def _joint_status(versions: Sequence[UtteranceTargets]) -> str:
    """The first teacher's that is not ok, of those that have hypotheses where any has."""
    telling = [version for version in versions if version.nbest] or versions
    return next((version.status for version in telling if version.status != "ok"), "ok")


def _mean_nbest(versions: Sequence[UtteranceTargets], nbest: int) -> tuple[StoredHypothesis, ...]:
    """All teachers' hypotheses by the mean of their posteriors, 0 where a teacher lacks one."""
    found: dict[tuple[int, ...], list[StoredHypothesis]] = {}
    for version in versions:
        for hypothesis in version.nbest:
            found.setdefault(hypothesis.tokens, []).append(hypothesis)
    mass = {tokens: sum(h.posterior for h in same) for tokens, same in found.items()}
    best = sorted(found, key=lambda tokens: (-mass[tokens], tokens))[:nbest]
    total = sum(mass[tokens] for tokens in best)
    return tuple(
        StoredHypothesis(
            tokens,
            float(np.mean([h.attention for h in found[tokens]])),
            float(np.mean([h.ctc for h in found[tokens]])),
            float(np.log(max(mass[tokens] / len(versions), 1e-38))),
            mass[tokens] / total if total else 1 / len(best),
        )
        for tokens in best
    )


def _require_equal(sources: Sequence[Path], headers: Sequence[StoreHeader], free: set[str]) -> None:
    """All headers must agree but for the fields in `free`."""
    ours = {**headers[0].settings(), "id_bytes": headers[0].id_bytes}
    for source, header in zip(sources[1:], headers[1:], strict=True):
        theirs = {**header.settings(), "id_bytes": header.id_bytes}
        for name in ours:
            if name not in free and ours[name] != theirs[name]:
                raise MismatchError(
                    f"{name} of {sources[0]} and {source}",
                    ours[name],
                    theirs[name],
                    "Merge stores that were dumped with the same settings",
                )


def _joint_licence(headers: Sequence[StoreHeader]) -> str:
    """Every source's licence binds whoever takes the merged store."""
    distinct = list(dict.fromkeys(header.licence for header in headers))
    return distinct[0] if len(distinct) == 1 else " + ".join(x or "not stated" for x in distinct)


def _joint_digest(digests: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(digests))
    if len(distinct) == 1:
        return distinct[0]
    return hashlib.sha256("\n".join(distinct).encode()).hexdigest()
