"""Reading ESPnet2 files of our own making: forms, refusals, and files that mean harm."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kdpipe.errors import ConfigError, InputNotFoundError, KdpipeError, ModelFormatError
from kdpipe.features.cmvn import Cmvn
from kdpipe.features.espnet_filterbank import EspnetFilterbank
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.models.config import ModelConfig
from kdpipe.models.foreign import read_espnet
from kdpipe.models.foreign.espnet_config import read_settings

from ...espnet_files import Evil, base_config, experiment, packed, saved, weights_of


def test_folder_zip_and_unpacked_zip_give_the_same_model(tmp_path: Path) -> None:
    config = base_config()
    folder = read_espnet(experiment(tmp_path / "asr_one", config))
    archive = packed(tmp_path / "asr.zip", config)
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "snapshot")
    features = torch.randn(1, 50, 20)
    outputs = []
    for foreign in (folder, read_espnet(archive), read_espnet(tmp_path / "snapshot")):
        assert foreign.name == "asr_one"
        assert isinstance(foreign.cmvn, Cmvn)
        assert abs(float(foreign.cmvn.mean.mean()) - 3.0) < 0.2
        with torch.inference_mode():
            outputs.append(foreign.model.encode(features, torch.tensor([50])).hidden)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_statistics_saved_with_the_weights_come_first(tmp_path: Path) -> None:
    config = base_config()
    more = {"normalize.mean": torch.full((20,), 7.0), "normalize.std": torch.full((20,), 2.0)}
    folder = experiment(
        tmp_path / "e", config, **{"valid.acc.ave.pth": saved({**weights_of(config), **more})}
    )
    foreign = read_espnet(folder)
    assert foreign.cmvn.apply(torch.full((3, 20), 9.0)).eq(1.0).all()


def test_bpe_model_is_found_beside_and_from_the_recipe(tmp_path: Path) -> None:
    config = base_config(token_type="bpe", bpemodel="data/token_list/bpe.model")
    assert read_espnet(packed(tmp_path / "asr.zip", config)).bpe_model == b"pieces"
    folder = experiment(tmp_path / "egs" / "exp" / "asr_one", config)
    with pytest.raises(ModelFormatError, match=r"bpe\.model"):
        read_espnet(folder)
    (tmp_path / "egs" / "data" / "token_list").mkdir(parents=True)
    (tmp_path / "egs" / "data" / "token_list" / "bpe.model").write_bytes(b"recipe")
    assert read_espnet(folder).bpe_model == b"recipe"


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"rel_pos_type": "legacy"}, {"positions": "relative-legacy"}),
        (
            {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
            {"positions": "absolute"},
        ),
        ({"macaron_style": False, "use_cnn_module": False}, {"macaron": False}),
    ],
)
def test_conformer_variants(given: dict[str, Any], fields: dict[str, Any]) -> None:
    model = read_settings(base_config(encoder_conf=given), "config").model
    assert all(getattr(model, name) == value for name, value in fields.items())


def test_conformers_older_than_the_key_have_legacy_positions() -> None:
    config = base_config()
    del config["encoder_conf"]["rel_pos_type"]
    assert read_settings(config, "config").model.positions == "relative-legacy"


def test_given_features_and_no_normalisation() -> None:
    config = base_config(frontend=None, normalize=None, input_size=80)
    settings = read_settings(config, "config")
    assert settings.filterbank == KaldiFilterbank()
    assert settings.assumed_features
    assert settings.model.feature_dim == 80
    assert settings.normalisation == "none"


def test_front_end_defaults_are_the_toolkits() -> None:
    config = base_config()
    del config["frontend_conf"]
    assert read_settings(config, "config").filterbank == EspnetFilterbank(512, 512, 128, 80)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("encoder", {"encoder": "e_branchformer"}),
    ("encoder", {"encoder": "contextual_block_conformer"}),
    ("decoder", {"decoder": "transducer"}),
    ("decoder", {"decoder": "rnn"}),
    ("model", {"model": "pit_espnet"}),
    ("frontend", {"frontend": "s3prl"}),
    ("preencoder", {"preencoder": "sinc"}),
    ("postencoder", {"postencoder": "hugging_face_transformers"}),
    ("input_size", {"frontend": None}),
    ("input_size", {"frontend": None, "input_size": 83}),
    ("speech_volume_normalize", {"speech_volume_normalize": 1.0}),
    ("use_lang_prompt", {"use_lang_prompt": True}),
    ("preprocessor", {"preprocessor": "multi"}),
    ("frontend_conf.window", {"frontend_conf": {"window": None}}),
    ("frontend_conf.center", {"frontend_conf": {"center": 1}}),
    ("frontend_conf.fs", {"frontend_conf": {"fs": "8k"}}),
    ("frontend_conf.htk", {"frontend_conf": {"htk": True}}),
    (
        "frontend_conf.frontend_conf.use_wpe",
        {"frontend_conf": {"frontend_conf": {"use_wpe": True}}},
    ),
    ("encoder_conf.input_layer", {"encoder_conf": {"input_layer": "conv2d6"}}),
    (
        "encoder_conf.interctc_use_conditioning",
        {"encoder_conf": {"interctc_use_conditioning": True}},
    ),
    ("encoder_conf.normalize_before", {"encoder_conf": {"normalize_before": 1}}),
    ("encoder_conf.activation_type", {"encoder_conf": {"activation_type": "gelu"}}),
    ("encoder_conf.output_size", {"encoder_conf": {"output_size": "16"}}),
    ("encoder_conf.block_size", {"encoder_conf": {"block_size": 40}}),
    ("encoder_conf.selfattention_layer_type", {"encoder_conf": {"pos_enc_layer_type": "abs_pos"}}),
    ("decoder_conf.concat_after", {"decoder_conf": {"concat_after": True}}),
    (
        "normalize_conf.norm_means",
        {"normalize": "utterance_mvn", "normalize_conf": {"norm_means": 0}},
    ),
    ("model_conf.ctc_weight", {"model_conf": {"ctc_weight": 1.0}}),
    ("model_conf.ctc_weight", {"model_conf": {"ctc_weight": 0.0}}),
    ("model_conf.lang_token_id", {"model_conf": {"lang_token_id": 5}}),
    ("joint_net_conf", {"joint_net_conf": {"joint_space_size": 3}}),
    ("token_list", {"token_list": None}),
    ("token_list[1]", {"token_list": ["<blank>", "A", "B", "<sos/eos>"]}),
    ("token_list[2]", {"token_list": ["<blank>", "<unk>", "<eos>"]}),
    ("token_type", {"token_type": "hugging_face"}),
    ("token_type", {"token_type": "word"}),
]


@pytest.mark.parametrize(("key", "changes"), REFUSED, ids=[key for key, _ in REFUSED])
def test_what_is_not_supported_is_refused_by_key_and_value(
    key: str, changes: dict[str, Any]
) -> None:
    config = base_config(**changes)
    if changes.get("normalize") == "utterance_mvn":
        del config["normalize_conf"]["stats_file"]
    with pytest.raises(ConfigError) as caught:
        read_settings(config, "config.yaml")
    assert caught.value.key == key
    # A key that is absent has no value to name.
    assert caught.value.value is None or repr(caught.value.value) in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    config = base_config()
    for content in (saved({"encoder.x": Evil(marker)}), pickle.dumps(Evil(marker))):
        folder = experiment(tmp_path / "e", config, **{"valid.acc.ave.pth": content})
        with pytest.raises(ModelFormatError, match=r"valid\.acc\.ave\.pth"):
            read_espnet(folder)
    assert not marker.exists()
    assert pickle.loads(pickle.dumps(Evil(marker))) is None
    assert marker.exists(), "the attack itself must work, or this test shows nothing"


def test_a_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = experiment(tmp_path / "e", base_config())
    attack = f"token_list: !!python/object/apply:os.system ['touch {marker}']\n"
    (folder / "config.yaml").write_text(attack, encoding="utf-8")
    with pytest.raises(ModelFormatError, match=r"config\.yaml"):
        read_espnet(folder)
    assert not marker.exists()


def test_arrays_that_would_run_code_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    np.savez(buffer, count=np.array([Evil(marker)], dtype=object))
    folder = experiment(tmp_path / "e", base_config(), **{"feats_stats.npz": buffer.getvalue()})
    with pytest.raises(ModelFormatError, match=r"feats_stats\.npz"):
        read_espnet(folder)
    assert not marker.exists()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read_espnet(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFormatError, match=r"no config\.yaml"):
        read_espnet(tmp_path / "empty")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with pytest.raises(ModelFormatError, match="not a zip"):
        read_espnet(tmp_path / "broken.zip")
    folder = experiment(tmp_path / "e", base_config(), **{"valid.acc.ave.pth": b"cut off"})
    with pytest.raises(ModelFormatError, match="no plain weights"):
        read_espnet(folder)
    (folder / "feats_stats.npz").unlink()
    (folder / "valid.acc.ave.pth").write_bytes(saved(weights_of(base_config())))
    with pytest.raises(ModelFormatError, match="feats_stats"):
        read_espnet(folder)
    with pytest.raises(ModelFormatError, match="asr_train_config"):
        read_espnet(packed(tmp_path / "lm.zip", base_config(), {"files": {}}))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    config = base_config()
    other = weights_of(base_config(encoder_conf={"linear_units": 8}))
    folder = experiment(tmp_path / "e", config, **{"valid.acc.ave.pth": saved(other)})
    with pytest.raises(ModelFormatError, match="does not fit"):
        read_espnet(folder)
    more = {**weights_of(config), "joint_network.lin.weight": torch.zeros(1)}
    folder = experiment(tmp_path / "e", config, **{"valid.acc.ave.pth": saved(more)})
    with pytest.raises(ModelFormatError, match="joint_network"):
        read_espnet(folder)


@pytest.mark.parametrize("part", ["encoder_conf", "decoder_conf"])
def test_sizes_that_the_weights_cannot_fill_are_never_built(part: str, tmp_path: Path) -> None:
    folder = experiment(tmp_path / "e", base_config())
    config = base_config(**{part: {"num_blocks": 1000}})
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ModelFormatError, match="does not fit its config"):
        read_espnet(folder)


def test_choice_among_several_weights(tmp_path: Path) -> None:
    config = base_config()
    content = saved(weights_of(config))
    others = {"valid.acc.ave_10best.pth": content, "3epoch.pth": b"", "checkpoint.pth": b""}
    folder = experiment(tmp_path / "e", config, **others)
    assert "valid.acc.ave.pth" in read_espnet(folder).files
    (folder / "valid.acc.ave.pth").unlink()
    assert "valid.acc.ave_10best.pth" in read_espnet(folder).files
    (folder / "valid.acc.ave_5best.pth").write_bytes(content)
    with pytest.raises(KdpipeError, match=r"several weights.*\. Give --weights"):
        read_espnet(folder)
    chosen = read_espnet(folder, weights="valid.acc.ave_5best.pth")
    assert "valid.acc.ave_5best.pth" in chosen.files
    with pytest.raises(KdpipeError, match=r"has no best\.pth\. Choose from: 3epoch\.pth"):
        read_espnet(folder, weights="best.pth")


def test_choice_among_several_models(tmp_path: Path) -> None:
    config = base_config()
    for name in ("asr_one", "asr_two"):
        experiment(tmp_path / "exp" / name, config)
    with pytest.raises(KdpipeError, match=r"asr_one/config\.yaml.*Give --config"):
        read_espnet(tmp_path)
    chosen = read_espnet(tmp_path, config="exp/asr_two/config.yaml")
    assert chosen.name == "asr_two"
    assert "exp/asr_two/valid.acc.ave.pth" in chosen.files
    (tmp_path / "exp" / "asr_one" / "config.yaml").unlink()
    assert read_espnet(tmp_path).name == "asr_two"


def test_a_packed_model_may_lie_in_a_folder_of_its_archive(tmp_path: Path) -> None:
    archive = packed(tmp_path / "asr.zip", base_config())
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "again" / "asr")
    foreign = read_espnet(tmp_path / "again")
    assert "asr/exp/asr_one/valid.acc.ave_10best.pth" in foreign.files


def test_the_toolkits_version_is_known(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "e", base_config(version="202301"))
    assert read_espnet(folder).version == "202301"
    assert read_espnet(packed(tmp_path / "asr.zip", base_config())).version == "0.10.3"


def test_names_that_point_outside_lead_nowhere(tmp_path: Path) -> None:
    """Nothing is unpacked, and no path in an archive or config is followed upwards."""
    secret = tmp_path / "secret.model"
    secret.write_bytes(b"private")
    inside = tmp_path / "a" / "b" / "c"
    for given in ("../../secret.model", str(secret)):
        config = base_config(token_type="bpe", bpemodel=given)
        folder = experiment(inside / "exp", config)
        with pytest.raises(ModelFormatError, match=r"has no .*secret\.model"):
            read_espnet(folder)
    meta = {
        "files": {"asr_model_file": "../../valid.pth"},
        "yaml_files": {"asr_train_config": "../../config.yaml"},
    }
    archive = packed(inside / "asr.zip", base_config(), meta)
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr("../../escaped.model", b"x")
    before = sorted(tmp_path.rglob("*"))
    assert read_espnet(archive, "exp/asr_one/config.yaml").name == "asr_one"
    (tmp_path / "a" / "config.yaml").write_text("token_list: []", encoding="utf-8")
    (tmp_path / "a" / "config.yaml").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_model_config_errors_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="heads"):
        read_settings(base_config(encoder_conf={"attention_heads": 3}), "config")


def test_decoder_may_have_a_shape_of_its_own() -> None:
    model = read_settings(base_config(), "config").model
    assert isinstance(model, ModelConfig)
    assert (model.heads, model.decoder_heads) == (2, 4)
    assert (model.inner, model.decoder_inner) == (32, 24)
