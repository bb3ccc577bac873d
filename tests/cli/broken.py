"""Inputs that a user may give by mistake, each made by the function of its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import soundfile

from kdpipe.store import StoreHeader, StoreWriter, finish, open_store
from kdpipe.store.image import checked_json, sealed_json

__all__ = ["MAKERS"]

World = Mapping[str, Path]
RECORD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "A B"}


def write_tone(path: Path, seconds: float = 1.0) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds))
    soundfile.write(path, samples, 16_000)
    return path


def one_record(folder: Path, name: str, **changes: object) -> Path:
    """A manifest whose second line has `changes`; None takes a key away."""
    write_tone(folder / "a.wav")
    record = {k: v for k, v in {**RECORD, "id": "b", **changes}.items() if v is not None}
    path = folder / f"{name}.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(record)}\n")
    return path


def copied(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def cut(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


# Files of no use.


def text_file(world: World, folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("notes\n")
    return path


def text_audio(world: World, folder: Path) -> Path:
    path = folder / "talk.wav"
    path.write_text("no sound in here\n")
    return path


def text_h5(world: World, folder: Path) -> Path:
    path = folder / "notes.h5"
    path.write_text("notes, and enough of them to be longer than a store's first line\n")
    return path


def plain_h5(world: World, folder: Path) -> Path:
    path = folder / "plain.h5"
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(100)
    return path


def plain_zarr(world: World, folder: Path) -> Path:
    path = folder / "plain.zarr"
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    return path


def full_folder(world: World, folder: Path) -> Path:
    path = folder / "full"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work\n")
    return path


def full_zarr(world: World, folder: Path) -> Path:
    return full_folder(world, folder).rename(folder / "full.zarr")


# Manifests.


def not_json(world: World, folder: Path) -> Path:
    path = one_record(folder, "not_json")
    path.write_text(path.read_text() + "{broken\n")
    return path


def not_object(world: World, folder: Path) -> Path:
    path = folder / "not_object.jsonl"
    path.write_text('["a.wav", 1.0]\n')
    return path


def no_audio_key(world: World, folder: Path) -> Path:
    return one_record(folder, "no_audio_key", audio_filepath=None)


def no_duration(world: World, folder: Path) -> Path:
    return one_record(folder, "no_duration", duration=None)


def duration_text(world: World, folder: Path) -> Path:
    return one_record(folder, "duration_text", duration="1 s")


def duration_nan(world: World, folder: Path) -> Path:
    return one_record(folder, "duration_nan", duration=float("nan"))


def duration_negative(world: World, folder: Path) -> Path:
    return one_record(folder, "duration_negative", duration=-1.0)


def text_number(world: World, folder: Path) -> Path:
    return one_record(folder, "text_number", text=7)


def bad_id(world: World, folder: Path) -> Path:
    return one_record(folder, "bad_id", id=" b\n")


def empty_manifest(world: World, folder: Path) -> Path:
    path = folder / "empty.jsonl"
    path.write_text("\n")
    return path


def same_ids(world: World, folder: Path) -> Path:
    return one_record(folder, "same_ids", id="a")


def missing_audio(world: World, folder: Path) -> Path:
    return one_record(folder, "missing_audio", audio_filepath="gone.wav")


def fake_audio(world: World, folder: Path) -> Path:
    text_audio(world, folder)
    return one_record(folder, "fake_audio", audio_filepath="talk.wav")


def no_samples(world: World, folder: Path) -> Path:
    write_tone(folder / "nothing.wav", 0.0)
    return one_record(folder, "no_samples", audio_filepath="nothing.wav", duration=0.0)


def no_text(world: World, folder: Path) -> Path:
    path = one_record(folder, "no_text")
    path.write_text('{"audio_filepath": "a.wav", "duration": 1.0}\n')
    return path


def nothing_wav(world: World, folder: Path) -> Path:
    return write_tone(folder / "nothing.wav", 0.0)


def same_stem(world: World, folder: Path) -> Path:
    """Another file of the name of the world's audio."""
    (folder / "twin").mkdir()
    return write_tone(folder / "twin" / world["audio"].name)


def kaldi(world: World, folder: Path) -> Path:
    path = folder / "kaldi"
    (path / "train").mkdir(parents=True)
    (path / "train" / "wav.scp").write_text(f"a {write_tone(folder / 'a.wav')}\n")
    return path


# Recipes.


def broken_toml(world: World, folder: Path) -> Path:
    path = folder / "broken.toml"
    path.write_text('name = "x\n')
    return path


def short_toml(world: World, folder: Path) -> Path:
    path = folder / "short.toml"
    path.write_text('name = "x"\ndescription = "no models"\n')
    return path


# Prepared data.


def unfinished_data(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    (path / "data.json").unlink()
    return path


def newer_data(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    content = json.loads((path / "data.json").read_text())
    (path / "data.json").write_text(json.dumps({**content, "format_version": 99}))
    return path


def garbled_data(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    cut(path / "data.json")
    return path


def keyless_data(world: World, folder: Path) -> Path:
    """data.json by hand: of the right version, with the rest forgotten."""
    path = copied(world["data"], folder)
    (path / "data.json").write_text('{"format_version": 1}')
    return path


def short_features(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    cut(path / "train" / "features.npy")
    return path


def lost_features(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    (path / "train" / "features.npy").unlink()
    return path


def bad_tokenizer(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    (path / "tokenizer.model").write_text("no model")
    return path


def bad_cmvn(world: World, folder: Path) -> Path:
    path = copied(world["data"], folder)
    cut(path / "cmvn.safetensors")
    return path


# Models.


def no_weights(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    (path / "weights.safetensors").unlink()
    return path


def cut_weights(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    cut(path / "weights.safetensors")
    return path


def other_weights(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    shutil.copy(world["student"] / "weights.safetensors", path / "weights.safetensors")
    return path


def garbled_model(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    (path / "model.toml").write_bytes(b"\x00\xff garbage = [")
    return path


def newer_model(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    text = (path / "model.toml").read_text()
    (path / "model.toml").write_text(text.replace("format_version = 1", "format_version = 9"))
    return path


def impossible_model(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    text = (path / "model.toml").read_text()
    (path / "model.toml").write_text(text.replace("heads = 2", "heads = 5"))
    return path


def other_models_tokenizer(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    shutil.copy(world["other_tokens"] / "tokenizer.model", path / "tokenizer.model")
    return path


def cut_checkpoint(world: World, folder: Path) -> Path:
    """A teacher whose training goes on from a checkpoint that is only half there."""
    path = copied(world["teacher"], folder)
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**record, "complete": False}))
    cut(path / "checkpoints" / "last.safetensors")
    return path


def garbled_run(world: World, folder: Path) -> Path:
    path = copied(world["teacher"], folder)
    (path / "run.json").write_text("{}")
    return path


# Stores.


def cut_store(world: World, folder: Path) -> Path:
    path = copied(world["store"], folder)
    cut(path / "records" / "c" / "0")
    return path


def cut_h5(world: World, folder: Path) -> Path:
    path = copied(world["store_h5"], folder)
    cut(path)
    return path


def lost_chunk(world: World, folder: Path) -> Path:
    path = copied(world["store"], folder)
    (path / "records" / "c" / "0").unlink()
    return path


def lost_table(world: World, folder: Path) -> Path:
    path = copied(world["store"], folder)
    shutil.rmtree(path / "table" / "c")
    return path


def flipped_store(world: World, folder: Path) -> Path:
    path = copied(world["store"], folder)
    shard = path / "records" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    return path


def newer_store(world: World, folder: Path) -> Path:
    path = copied(world["store"], folder)
    text = (path / "zarr.json").read_bytes()
    newer = text.replace(b'"format_version": 1', b'"format_version": 99')
    before, _, after = newer.partition(b'"checksum": "')
    sealed = sealed_json(before + b'"checksum": "00000000"' + after[9:])
    assert newer != text
    assert checked_json(sealed) is not None
    (path / "zarr.json").write_bytes(sealed)
    return path


def rewritten(world: World, path: Path, change: Callable[[StoreHeader], StoreHeader]) -> Path:
    """The world's store with another header."""
    store = open_store(world["store"])
    with StoreWriter(path, change(store.header)) as writer:
        for utterance in store:
            writer.add(store[utterance])
    finish(path)
    return path


def subsampled_store(world: World, folder: Path) -> Path:
    return rewritten(world, folder / "sub8.zarr", lambda header: replace(header, subsampling=8))


def foreign_store(world: World, folder: Path) -> Path:
    """Targets of a teacher with another tokenizer."""
    return rewritten(
        world,
        folder / "foreign.zarr",
        lambda h: replace(h, tokenizer=replace(h.tokenizer, fingerprint="ab" * 32)),
    )


def other_features_store(world: World, folder: Path) -> Path:
    return rewritten(
        world, folder / "features.zarr", lambda header: replace(header, feature_digest="cd" * 32)
    )


def partial_copy(world: World, folder: Path) -> Path:
    return copied(world["partial"], folder)


MAKERS: dict[str, Callable[[World, Path], Path]] = {
    maker.__name__: maker
    for maker in (
        text_file, text_audio, text_h5, plain_h5, plain_zarr, full_folder, full_zarr, not_json,
        not_object, no_audio_key, no_duration, duration_text, duration_nan, duration_negative,
        text_number, bad_id, empty_manifest, same_ids, missing_audio, fake_audio, no_samples,
        no_text, nothing_wav, same_stem, kaldi, broken_toml, short_toml, unfinished_data,
        newer_data, garbled_data, keyless_data, short_features, lost_features, bad_tokenizer,
        bad_cmvn, no_weights, cut_weights, other_weights, garbled_model, newer_model,
        impossible_model, other_models_tokenizer, cut_checkpoint, garbled_run, cut_store, cut_h5,
        lost_chunk, lost_table, flipped_store, newer_store, subsampled_store, foreign_store,
        other_features_store, partial_copy,
    )
}  # fmt: skip
