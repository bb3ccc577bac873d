"""teacher-dump: run a teacher once over a split and write its targets to a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kdpipe.errors import BusyOutputError, OutputConflictError, StoreFormatError
from kdpipe.features.prepared import PreparedData
from kdpipe.progress import progress_bar
from kdpipe.stages.claim import settings_changes
from kdpipe.stages.device import keep_freed_memory, pick_device
from kdpipe.stages.hf_card import is_hf_teacher
from kdpipe.stages.hf_teacher import check_nbest, hf_speaker
from kdpipe.stages.own_teacher import own_speaker, teacher_targets
from kdpipe.stages.speaker import DumpSettings, Speaker
from kdpipe.store import StoreHeader, StoreWriter, finish, open_store, store_state

__all__ = ["DumpSettings", "Shard", "open_speaker", "teacher_dump", "teacher_targets"]

T = TypeVar("T")

FINISHING = 1800.0
"""Seconds a shard waits for another that finishes the store: an HDF5 file of hundreds of hours."""
LEAVING = 10.0
"""Seconds it waits, with nothing left to do, for the others to leave."""


@dataclass(frozen=True)
class Shard:
    """This process's part of the work: batches whose number is `index` modulo `count`.

    The cut into batches depends on the split alone, and a batch that is broken off is computed
    again as a whole: so shards, kills and resumes change no bit of what is stored.
    """

    index: int = 0
    count: int = 1


def teacher_dump(
    data: Path,
    split: str,
    teacher: Path,
    out: Path,
    settings: DumpSettings,
    shard: Shard,
    device: str,
    fidelity_sample: int = 100,
    licence: str = "",
    tell: Callable[[str], object] = lambda line: None,
) -> bool:
    """Write the targets of `split` to the store `out` (.zarr or .h5); resumes.

    The writer that finds every utterance acknowledged finishes the store. Returns True when
    the store is complete, False while other shards are still to come. `tell` gets lines about
    what was left out. Raises `MismatchError` where the teacher was trained on another tokenizer
    or other features than the data has, `OutputConflictError` for another licence than the store
    was begun with, and the writer's errors.
    """
    keep_freed_memory()
    prepared = PreparedData.open(data)
    chosen = prepared.split(split)
    if is_hf_teacher(teacher) and store_state(out) == "absent":
        check_nbest(settings)
    speaker = open_speaker(teacher, prepared, split, settings, device, licence)
    if store_state(out) == "complete":
        return _check_complete(out, speaker.header, licence)
    ids = list(chosen.ids)
    begun = _writer(out, speaker.header, shard)
    if begun is None:
        return _check_complete(out, speaker.header, licence)
    with begun as writer:
        _check_licence(out, writer.header, licence)
        batches = speaker.batches[shard.index :: shard.count]
        _dump(speaker, ids, batches, writer, set(_sample(ids, fidelity_sample)))
        writer.flush()
        missing = len(set(ids) - writer.done_ids())
    for line in speaker.remarks():
        tell(line)
    if missing:
        return False
    return _finish(out, ids)


def open_speaker(
    teacher: Path,
    prepared: PreparedData,
    split: str,
    settings: DumpSettings,
    device: str,
    licence: str = "",
) -> Speaker:
    """The teacher of a directory, of whichever kind, in front of a split."""
    make = hf_speaker if is_hf_teacher(teacher) else own_speaker
    return make(teacher, prepared, prepared.split(split), settings, pick_device(device), licence)


def _writer(out: Path, header: StoreHeader, shard: Shard) -> StoreWriter | None:
    """A writer of the store; None where another shard has finished it meanwhile.

    One shard of several waits while another finishes the store, and does not fail: whoever
    starts them together would stop them all.
    """
    name = f"{shard.index}of{shard.count}"
    wait = FINISHING if shard.count > 1 else 0.0
    try:
        return _patiently(lambda: StoreWriter(out, header, writer=name), wait)
    except StoreFormatError:
        if store_state(out) != "complete":
            raise
        return None


def _finish(out: Path, ids: Sequence[str]) -> bool:
    """Finish the store unless another writer, seeing it whole too, is about to.

    Two that end together see each other: one of them must try again.
    """
    try:
        _patiently(lambda: finish(out, expected=ids), LEAVING)
    except BusyOutputError:
        return False
    return True


def _patiently(attempt: Callable[[], T], seconds: float) -> T:
    """What `attempt` gives, tried again for so long while other writers hold the store."""
    until = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except BusyOutputError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.1)


def _check_complete(out: Path, header: StoreHeader, licence: str) -> bool:
    """A complete store must be the one that was asked for.

    What a killed or late writer has left beside it is taken away.
    """
    finish(out)
    made = open_store(out).header
    changes = settings_changes(made.identity(), header.identity())
    if changes:
        raise OutputConflictError(out, changes)
    _check_licence(out, made, licence)
    return True


def _check_licence(out: Path, begun: StoreHeader, licence: str) -> None:
    """A header is not written again: a licence that would be lost is refused, none is not."""
    if licence and licence != begun.licence:
        raise OutputConflictError(
            out, settings_changes(begun.licence, licence, "licence"),
            "keeps the licence that it was begun with; another can be written into its card",
        )  # fmt: skip


def _dump(
    speaker: Speaker,
    ids: Sequence[str],
    batches: Sequence[Sequence[int]],
    writer: StoreWriter,
    sample: set[str],
) -> None:
    """Run the teacher over every batch that is not wholly acknowledged."""
    done = writer.done_ids()
    todo = [batch for batch in batches if any(ids[i] not in done for i in batch)]
    every = sum(map(len, batches))
    with progress_bar(every, f"dump {speaker.name}", done=every - sum(map(len, todo))) as bar:
        for batch, spoken in zip(todo, speaker.speak(todo), strict=True):
            for targets, dense in spoken:
                writer.add(targets, dense if targets.id in sample else None)
            bar.update(len(batch))


def _sample(ids: Sequence[str], size: int) -> list[str]:
    """A fixed spread of utterances, whichever writer meets them."""
    step = max(1, len(ids) // max(1, size))
    return list(ids[::step][:size]) if size else []
