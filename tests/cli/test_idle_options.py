"""An option that would change nothing is refused where it is given, and only there."""

from __future__ import annotations

import pytest

from kdpipe_cli.main import run

DECODE = "decode --model none --out out"
STUDENT = "train-student --data none --recipe an4 --out out --allow-partial"


@pytest.mark.parametrize(
    ("command", "option", "why"),
    [
        (f"{DECODE} a.wav --split dev", "--split", "audio files"),
        (f"{DECODE} a.wav --mode ctc --beam 10", "--beam", "--mode ctc"),
        (f"{DECODE} --data d --mode ctc --ctc-weight 0.5", "--ctc-weight", "--mode ctc"),
        (f"{DECODE} a.wav --mode ctc --mask-threshold 1", "--mask-threshold", "--mode ctc"),
        (f"{DECODE} a.wav --mode ctc --ctc-rescoring 1", "--ctc-rescoring", "--mode ctc"),
        (
            f"{DECODE} a.wav --mode ctc --tokens-per-iteration 3",
            "--tokens-per-iteration",
            "--mode ctc",
        ),
        (f"{DECODE} a.wav --mode ar --mask-threshold 0.5", "--mask-threshold", "--mode ar"),
        (f"{DECODE} a.wav --mode ar --ctc-rescoring 0.5", "--ctc-rescoring", "--mode ar"),
        (f"{DECODE} a.wav --mode mask-ctc --ctc-weight 0.5", "--ctc-weight", "--mode mask-ctc"),
        ("store verify none.zarr --threshold 1", "--threshold", "--recompute"),
        (
            "store verify none.zarr --repair --teacher none --data none --threshold 1",
            "--threshold",
            "--recompute",
        ),
        ("store verify none.zarr --teacher none", "--teacher", "--recompute or --repair"),
        ("store verify none.zarr --data none", "--data", "--recompute or --repair"),
        ("store convert none.zarr out.h5 --level 3", "--level", "--compact"),
        (STUDENT, "--allow-partial", "--targets"),
        (f"{STUDENT} --online-teacher none", "--allow-partial", "--targets"),
    ],
)
def test_what_would_change_nothing_is_refused(
    command: str, option: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.split()) == 2
    said = capsys.readouterr().err
    assert f"{option} does nothing with" in said
    assert why in said


@pytest.mark.parametrize(
    "command",
    [
        f"{DECODE} none.wav --mode ctc",
        f"{DECODE} none.wav --mode mask-ctc --beam 10",
        f"{DECODE} none.wav --mode ar --ctc-weight 0.5",
        f"{DECODE} none.wav --mode mask-ctc --mask-threshold 0.5",
        f"{DECODE} none.wav --mask-threshold 0.5 --ctc-weight 0.5",
        f"{DECODE} --data none --split dev --mode ctc",
        "store convert none.zarr out.zarr --compact --level 3",
        "store convert none.zarr out.h5",
        f"{STUDENT} --targets none.zarr",
    ],
)
def test_what_changes_something_is_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command.split()) == 1
    assert "none" in capsys.readouterr().err
