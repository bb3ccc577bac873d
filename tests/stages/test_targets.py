"""Targets from a store are the teacher's own, and a store that does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdpipe.batching import Batch, collate
from kdpipe.checkpoint import load_model, weights_digest
from kdpipe.config import load_recipe
from kdpipe.errors import ConfigError, MismatchError, OutputConflictError, StoreIncompleteError
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.models import RecognitionModel
from kdpipe.stages.build import fresh_model
from kdpipe.stages.cached_targets import cached_targets, open_targets, store_lineage
from kdpipe.stages.targets import TargetSource, online_targets
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import (
    _equal_rows,
    _spread,
    stage_weights,
    student_losses,
    train_student,
)
from kdpipe.store import open_store
from kdpipe.testing import TINY_RECIPE, random_model, tiny_recipe
from kdpipe.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
# Every class kept, in single precision: the store then holds the whole distribution.
EXACT = DumpSettings(top_k=100, min_prob=0.0, codec="fp32", nbest=4, beam=4, batch_frames=2000)


@pytest.fixture(scope="module")
def teacher(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tiny_data, tmp_path_factory.mktemp("models") / "teacher", "ar")


@pytest.fixture(scope="module")
def exact_store(
    tiny_data: PreparedData, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("stores") / "exact.zarr"
    assert teacher_dump(tiny_data.folder, "train", teacher, out, EXACT, Shard(), "cpu")
    return out


def test_cached_equals_online(tiny_data: PreparedData, teacher: Path, exact_store: Path) -> None:
    cached = cached_targets(open_store(exact_store), 4, CPU)
    online = online_targets(load_model(teacher).model, nbest=4, beam=4)
    first, second = (_losses_and_gradient(tiny_data, source) for source in (cached, online))
    assert {"encoder_frame", "encoder_sequence", "decoder_frame", "decoder_sequence"} <= set(
        first[0]
    )
    for name, value in first[0].items():
        torch.testing.assert_close(value, second[0][name], rtol=1e-3, atol=1e-3)
    cosine = torch.cosine_similarity(first[1], second[1], dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize(("codec", "limit"), [("fp16", 0.9999), ("log8", 0.999)])
def test_a_compact_store_gives_nearly_the_same_gradient(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path, codec: str, limit: float
) -> None:
    settings = replace(EXACT, codec=codec, top_k=8, min_prob=1e-3)
    teacher_dump(tiny_data.folder, "train", teacher, tmp_path / "s.zarr", settings, Shard(), "cpu")
    cached = cached_targets(open_store(tmp_path / "s.zarr"), 4, CPU)
    online = online_targets(load_model(teacher).model, nbest=4, beam=4)
    (_, ours), (_, theirs) = (_losses_and_gradient(tiny_data, s) for s in (cached, online))
    assert torch.cosine_similarity(ours, theirs, dim=0) > limit


def _losses_and_gradient(
    data: PreparedData, source: TargetSource
) -> tuple[Mapping[str, Tensor], Tensor]:
    """All loss terms of one batch in the last stage, and the gradient of their total."""
    model = _student(data)
    batch = _batch(data)
    recipe = tiny_recipe("specaugment.time_masks=0", "specaugment.frequency_masks=0")
    terms = student_losses(model, recipe, source)(batch, 1, torch.Generator().manual_seed(5))
    torch.autograd.backward(terms["total"])
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {k: v.detach() for k, v in terms.items()}, torch.cat(gradients)


def _student(data: PreparedData) -> RecognitionModel:
    tokenizer = Tokenizer.load(data.tokenizer)
    return fresh_model(tiny_recipe().student.model, "mask-ctc", tokenizer, 1, CPU).eval()


def _batch(data: PreparedData) -> Batch:
    return collate(data.split("train"), data.cmvn, [0, 5, 7])


def test_two_maskings_are_the_batch_seen_twice(tiny_data: PreparedData, exact_store: Path) -> None:
    source = cached_targets(open_store(exact_store), 4, CPU)
    model, split = _student(tiny_data), tiny_data.split("train")
    found = []
    for copies, rows in ((2, [0, 5, 7]), (1, [0, 0, 5, 5, 7, 7])):
        recipe = tiny_recipe(
            "specaugment.time_masks=0", "specaugment.frequency_masks=0",
            f"student.masks_per_utterance={copies}",
        )  # fmt: skip
        batch = collate(split, tiny_data.cmvn, rows)
        losses = student_losses(model, recipe, source)
        found.append(losses(batch, 0, torch.Generator().manual_seed(5)))
    assert {"mlm", "decoder_frame"} <= set(found[0])
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_the_temperature_reaches_the_frame_losses_alone(
    tiny_data: PreparedData, exact_store: Path
) -> None:
    source, model = cached_targets(open_store(exact_store), 4, CPU), _student(tiny_data)
    plain, flat = (
        student_losses(
            model, tiny_recipe("specaugment.time_masks=0", f"distillation.temperature={value}"),
            source,
        )(_batch(tiny_data), 1, torch.Generator().manual_seed(5))
        for value in (1, 4)
    )  # fmt: skip
    changed = {name for name in plain if not torch.equal(plain[name], flat[name])}
    assert changed == {"encoder_frame", "decoder_frame", "total"}


def test_hypotheses_are_laid_out_as_equally_many_rows_an_utterance() -> None:
    slots, rows = _equal_rows(torch.tensor([0, 0, 0, 2, 2]), 3)
    assert (slots.tolist(), rows) == ([0, 1, 2, 6, 7], 9)
    spread = _spread(torch.tensor([[5], [6], [7], [8], [9]]), slots, rows)
    assert spread.flatten().tolist() == [5, 6, 7, 0, 0, 0, 8, 9, 0]


def test_without_targets_only_the_joint_loss_is_left(tiny_data: PreparedData) -> None:
    losses = student_losses(_student(tiny_data), tiny_recipe(), None)
    terms = losses(_batch(tiny_data), 1, torch.Generator().manual_seed(0))
    assert set(terms) == {"ctc", "mlm", "total"}
    expected = 0.3 * terms["ctc"] + 0.7 * terms["mlm"]
    torch.testing.assert_close(terms["total"], expected)


def test_the_schedule_changes_at_the_stage() -> None:
    stages = load_recipe("aishell1").student.stages
    found = [stage_weights(stages, epoch, 0.3, sequence=True) for epoch in (0, 79, 80, 99)]
    assert [w.beta_sequence for w in found] == [0.0, 0.0, 1.0, 1.0]
    assert [w.gamma_decoder for w in found] == [0.3, 0.3, 0.5, 0.5]
    assert stage_weights(stages, 90, 0.3, sequence=False).beta_sequence == 0.0


def test_the_first_stage_asks_for_no_nbest(tiny_data: PreparedData, exact_store: Path) -> None:
    asked = []
    source = cached_targets(open_store(exact_store), 4, CPU)

    def spy(batch: Batch, sequences: bool) -> object:
        asked.append(sequences)
        return source(batch, sequences)

    losses = student_losses(_student(tiny_data), tiny_recipe(), spy)  # type: ignore[arg-type]
    for epoch in (0, 1):
        terms = losses(_batch(tiny_data), epoch, torch.Generator().manual_seed(0))
        assert ("encoder_sequence" in terms) is (epoch == 1)
    assert asked == [False, True]


def test_another_teacher_of_the_same_tokenizer_is_welcome(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    other = random_model(tiny_data, tmp_path / "other", "ar", seed=9)
    teacher_dump(tiny_data.folder, "train", other, tmp_path / "o.h5", EXACT, Shard(), "cpu")
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    store = open_targets(str(tmp_path / "o.h5"), tiny_data, tokenizer, allow_partial=False)
    assert store_lineage(store).teacher_name == "other"


def test_a_store_that_lacks_utterances_is_refused_before_training(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    teacher_dump(tiny_data.folder, "dev", teacher, tmp_path / "d.zarr", EXACT, Shard(), "cpu")
    with pytest.raises(MismatchError, match="lacks 24"):
        train_student(
            tiny_data.folder, tiny_recipe(), tmp_path / "out", str(tmp_path / "d.zarr"), 0, "cpu"
        )
    assert not (tmp_path / "out").exists()


def test_a_store_under_construction_needs_leave(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    store = tmp_path / "p.zarr"
    done = teacher_dump(tiny_data.folder, "train", teacher, store, EXACT, Shard(0, 2), "cpu")
    assert not done
    with pytest.raises(StoreIncompleteError):
        train_student(tiny_data.folder, tiny_recipe(), tmp_path / "out", str(store), 0, "cpu")
    out, told, held = tmp_path / "early", list[str](), set(open_store(store, allow_partial=True))
    for trained in (True, False):
        arguments = (tiny_data.folder, tiny_recipe(), out, str(store), 0, "cpu", True)
        assert train_student(*arguments, tell=told.append) is trained
    left_out = {
        str(record["id"]): record["reason"] for record in read_jsonl(out / "left_out.jsonl")
    }
    assert left_out == dict.fromkeys(set(tiny_data.split("train").ids) - held, "not-in-store")
    assert told == [f"{len(left_out)} left out, not-in-store {len(left_out)}"]
    found = load_model(out).card.lineage[0]
    other = tmp_path / "other.zarr"  # As many utterances of the same teacher, but others.
    teacher_dump(tiny_data.folder, "train", teacher, other, EXACT, Shard(1, 2), "cpu")
    lineages = [store_lineage(open_store(path, allow_partial=True)) for path in (store, other)]
    assert found.store_digest == lineages[0].store_digest
    assert found.store_digest.startswith(f"partial, {len(held)} utterances, ")
    assert found.store_digest != lineages[1].store_digest
    assert teacher_dump(tiny_data.folder, "train", teacher, store, EXACT, Shard(1, 2), "cpu")
    assert len(open_store(store)) == 24
    with pytest.raises(OutputConflictError, match="targets"):
        train_student(*arguments)


def test_an_unfinished_store_without_any_of_the_utterances_is_refused(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    store = tmp_path / "d.zarr"
    teacher_dump(tiny_data.folder, "dev", teacher, store, EXACT, Shard(0, 2), "cpu")
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    with pytest.raises(MismatchError, match="lacks 24"):
        open_targets(str(store), tiny_data, tokenizer, allow_partial=True)


def test_shards_and_one_writer_give_the_same_content(
    tiny_data: PreparedData, teacher: Path, exact_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "sharded.h5"
    for index in (2, 0, 1):
        teacher_dump(tiny_data.folder, "train", teacher, store, EXACT, Shard(index, 3), "cpu")
    assert open_store(store).digest == open_store(exact_store).digest


def test_a_complete_store_of_other_settings_is_not_overwritten(
    tiny_data: PreparedData, teacher: Path, exact_store: Path
) -> None:
    with pytest.raises(OutputConflictError, match="top_k"):
        teacher_dump(
            tiny_data.folder, "train", teacher, exact_store, replace(EXACT, top_k=2), Shard(),
            "cpu",
        )  # fmt: skip


def test_a_student_is_no_teacher(tiny_data: PreparedData, tmp_path: Path) -> None:
    student = random_model(tiny_data, tmp_path / "student", "mask-ctc")
    with pytest.raises(ConfigError, match="not an autoregressive teacher"):
        teacher_dump(tiny_data.folder, "train", student, tmp_path / "x.zarr", EXACT, Shard(), "cpu")


def test_time_warp_and_cached_frames_do_not_mix(
    tiny_data: PreparedData, exact_store: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("demo", [*TINY_RECIPE, "specaugment.time_warp=5"])
    with pytest.raises(ConfigError, match="time warp"):
        train_student(tiny_data.folder, recipe, tmp_path / "out", str(exact_store), 0, "cpu")


def test_a_teacher_in_the_loop_trains_as_its_store_does(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    teacher_dump(tiny_data.folder, "train", teacher, store, DumpSettings(), Shard(), "cpu")
    cached, online = tmp_path / "cached", tmp_path / "online"
    recipe = tiny_recipe("student.training.precision=float32")
    train_student(tiny_data.folder, recipe, cached, str(store), 0, "cpu")
    train_student(tiny_data.folder, recipe, online, None, 0, "cpu", online_teacher=teacher)
    assert load_model(online).card.lineage[0].teacher_sha256 == weights_digest(teacher)
    totals = [
        [float(str(line["total"])) for line in read_jsonl(out / "train.jsonl")]
        for out in (cached, online)
    ]
    torch.testing.assert_close(torch.tensor(totals[0]), torch.tensor(totals[1]), rtol=0.02, atol=0)


def test_a_student_in_the_loop_is_no_teacher(tiny_data: PreparedData, tmp_path: Path) -> None:
    student = random_model(tiny_data, tmp_path / "student", "mask-ctc")
    with pytest.raises(ConfigError, match="--online-teacher"):
        train_student(
            tiny_data.folder, tiny_recipe(), tmp_path / "out", None, 0, "cpu",
            online_teacher=student,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
