"""ESPnet2 experiments and packed models of our own making, small enough to write in a test."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from kdpipe.models.foreign.espnet_config import read_settings
from kdpipe.models.recognition import build_model

TOKENS = ["<blank>", "<unk>", "<space>", "A", "B", "<sos/eos>"]


def base_config(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "token_list": TOKENS,
        "token_type": "char",
        "frontend": "default",
        "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": 20},
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": "exp/stats/train/feats_stats.npz"},
        "encoder": "conformer",
        "encoder_conf": {
            "output_size": 16,
            "attention_heads": 2,
            "linear_units": 32,
            "num_blocks": 1,
            "macaron_style": True,
            "rel_pos_type": "latest",
            "cnn_module_kernel": 7,
        },
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 4, "linear_units": 24, "num_blocks": 1},
        "model_conf": {"ctc_weight": 0.3},
    }
    for key, value in changes.items():
        merged = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        config[key] = merged
    return config


def weights_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_model(read_settings(config, "config").model).state_dict())


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def statistics() -> bytes:
    buffer = io.BytesIO()
    frames = np.random.default_rng(0).normal(3.0, 2.0, (500, 20))
    np.savez(buffer, count=500, sum=frames.sum(0), sum_square=np.square(frames).sum(0))
    return buffer.getvalue()


def experiment(folder: Path, config: dict[str, Any], **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    content = {"valid.acc.ave.pth": saved(weights_of(config)), "feats_stats.npz": statistics()}
    for name, data in {**content, **files}.items():
        (folder / name).write_bytes(data)
    return folder


def packed(path: Path, config: dict[str, Any], meta: dict[str, Any] | None = None) -> Path:
    names = {
        "espnet": "0.10.3",
        "files": {"asr_model_file": "exp/asr_one/valid.acc.ave_10best.pth"},
        "yaml_files": {"asr_train_config": "exp/asr_one/config.yaml"},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(names if meta is None else meta))
        archive.writestr("exp/asr_one/config.yaml", yaml.safe_dump(config))
        archive.writestr("exp/asr_one/valid.acc.ave_10best.pth", saved(weights_of(config)))
        archive.writestr("exp/stats/train/feats_stats.npz", statistics())
        archive.writestr("data/token_list/bpe.model", b"pieces")
    return path


class Evil:
    """Unpickled, this would touch a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.marker,))
