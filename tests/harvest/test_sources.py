"""Requests for bundled and local models and texts, which need no hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from command_line import ROOT

from harvest.errors import InputError
from harvest.request import HOOKS, HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL, official_name, resolve
from sae_jax.config import TrainConfig


def ask(**fields):
    return resolve(HarvestRequest(**{"model_name": "bundled", "dataset": "bundled", **fields}))


def test_sites_are_all_hooks_of_all_layers():
    request = HarvestRequest(layer=[3, 1], hook=("mlp_out", "resid_pre"))
    assert request.sites == ((3, "mlp_out"), (3, "resid_pre"), (1, "mlp_out"), (1, "resid_pre"))
    assert [site.hook_name for site in request.sites][:2] == ["blocks.3.hook_mlp_out", "blocks.3.hook_resid_pre"]
    assert HarvestRequest().sites == ((0, "resid_pre"),)
    assert HarvestRequest(layer=2, hook="mlp_out") == HarvestRequest(layer=(2,), hook=("mlp_out",))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"layer": (1, -2)}, "^--layer -2: must be a whole number, 0 to 2147483647$"),
        (
            {"hook": ("mlp_out", "resid_up")},
            f"^--hook resid_up: must be one of {', '.join(HOOKS)}, or a point .*: did you mean resid_pre\\?$",
        ),
        ({"layer": (1, 2, 1)}, "^--layer 1 2 1: give at least one value, and none twice$"),
        ({"hook": ("mlp_out", "mlp_out")}, "^--hook mlp_out mlp_out: give at least one value, and none twice$"),
        ({"layer": ()}, "^--layer : give at least one value"),
    ],
)
def test_invalid_sites_are_refused_with_the_value(fields, says):
    with pytest.raises(InputError, match=says):
        HarvestRequest(**fields)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **values}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_bundled_model_by_name_is_no_fallback():
    model, dataset = ask(layer=3, seq_len=128)
    assert (model.asked, model.location, model.fell_back) == ("bundled", str(BUNDLED_MODEL), False)
    assert (model.n_layers, model.n_positions, model.width(["resid_pre"])) == (4, 128, 256)
    assert (dataset.asked, dataset.location, dataset.fell_back) == ("bundled", str(BUNDLED_CORPUS), False)


def test_local_paths_are_identified_by_their_files(tmp_path, model):
    text = tmp_path / "a.txt"
    text.write_text("one two three")
    had = ask(model_name=str(model), dataset=str(text))
    assert [source.location for source in had] == [str(model), str(text)]
    assert ask(model_name=str(model), dataset=str(text)) == had
    text.write_text("one two four!")
    os.utime(text, ns=(1, 1))
    edit_config(model, n_positions=64)
    changed = ask(model_name=str(model), dataset=str(text))
    assert all(now.fingerprint != before.fingerprint for now, before in zip(changed, had, strict=True))


@pytest.mark.parametrize("name", ["model", "./model", "~/model"])
def test_a_path_is_found_from_the_working_directory_and_from_home(tmp_path, model, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ask(model_name=name)[0].location == str(model)


@pytest.mark.parametrize(
    "alias, official",
    [("gpt2-small", "gpt2"), ("pythia-70m", "EleutherAI/pythia-70m"), ("gpt2", "gpt2"), ("some-org/x", "some-org/x")],
)
def test_aliases_are_those_of_transformer_lens(alias, official):
    assert official_name(alias) == official


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("harvest.sources.find_spec", lambda name: None)
    with pytest.raises(InputError, match="transformer_lens is not installed: run `pip install -e .`"):
        official_name.__wrapped__("gpt2-small")


@pytest.mark.parametrize("field", ["model_name", "dataset"])
@pytest.mark.parametrize("name", ["/missing/one", "./missing", "missing.jsonl", "a/b/c", "what is this"])
def test_unknown_names_are_refused_at_once(field, name):
    with pytest.raises(InputError, match="no such file or directory"):
        ask(**{field: name})


@pytest.mark.parametrize(
    "files, lacks",
    [
        (["config.json"], "config.json"),
        (["model.safetensors"], "weights"),
        (["tokenizer.json"], "a tokenizer"),
        (["model.safetensors", "tokenizer.json"], "weights (model.safetensors), a tokenizer"),
    ],
)
def test_missing_files_of_a_model_directory_are_named(model, files, lacks):
    for file in files:
        (model / file).unlink()
    with pytest.raises(InputError) as error:
        ask(model_name=str(model))
    assert f"--model-name {model}: not a complete model directory: it lacks {lacks}" in str(error.value)


def test_a_shard_of_the_weights_that_is_missing_is_named(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(InputError, match="it lacks model-00002-of-00002.safetensors"):
        ask(model_name=str(model))


@pytest.mark.parametrize("text", ["{", "[]", "null", "3", "", '"gpt2"', "[" * 100_000, "\xff"])
def test_a_config_that_is_not_a_json_object_is_reported(model, text):
    (model / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"^{model}/config.json is damaged .*: get another copy of the model"):
        ask(model_name=str(model))


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": null}'])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_no_shards_is_named(model, name, text):
    (model / name).write_text(text)
    with pytest.raises(InputError, match=f"it lacks a readable {name}"):
        ask(model_name=str(model))


@pytest.mark.parametrize("value", [True, 0, -1, 3.5, "4", [4]])
def test_an_invalid_number_of_layers_is_ignored(model, value):
    edit_config(model, n_layer=value, text_config=[])
    assert ask(model_name=str(model))[0].n_layers is None


def test_layers_and_positions_are_those_of_the_config(model):
    with pytest.raises(InputError, match=r"^--layer 4: must be 0 to 3, the layers of the bundled model$"):
        ask(layer=4)
    with pytest.raises(InputError, match=r"^--layer 9: must be 0 to 3, the layers of the bundled model$"):
        ask(layer=(3, 9, 0))
    with pytest.raises(InputError, match=r"^--seq-len 129: must be at most 128, the context of the bundled model$"):
        ask(seq_len=129)
    edit_config(model, n_layer=None, n_positions=None, num_hidden_layers=7, max_position_embeddings=512)
    source, _ = ask(model_name=str(model), layer=6)
    assert (source.n_layers, source.n_positions) == (7, 512)
    with pytest.raises(InputError, match="must be 0 to 6"):
        ask(model_name=str(model), layer=7)
    edit_config(model, num_hidden_layers=None, max_position_embeddings=None, text_config={"num_hidden_layers": 2})
    source, _ = ask(model_name=str(model), layer=1)
    assert (source.n_layers, source.n_positions) == (2, None)


@pytest.mark.parametrize(
    "name, says",
    [("empty.txt", "is empty"), ("picture.png", "this type of file cannot be read"), ("folder", "no text file")],
)
def test_data_sets_that_hold_no_text_are_refused(tmp_path, name, says):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=says) as error:
        ask(dataset=str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


def test_nothing_heavy_is_imported():
    script = (
        "import sys; from harvest.sources import resolve; from harvest.request import HarvestRequest\n"
        "resolve(HarvestRequest(model_name='bundled', dataset='bundled'))\n"
        "assert not {'torch', 'transformers', 'transformer_lens', 'datasets', 'pyarrow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({"layer": np.int64(3)}, {"layer": 3}),
        ({"layer": np.arange(2)}, {"layer": (0, 1)}),
        ({"layer": [np.int32(1), 0]}, {"layer": (1, 0)}),
        ({"n_samples": np.int32(50), "seq_len": np.uint8(9)}, {"n_samples": 50, "seq_len": 9}),
        (
            {"held_out": np.float64(0.25), "keep_first_position": np.True_},
            {"held_out": 0.25, "keep_first_position": True},
        ),
        ({"model_name": Path("models") / "one"}, {"model_name": "models/one"}),
        ({"held_out": np.float32(0.1), "layer": range(2)}, {"held_out": 0.1, "layer": (0, 1)}),
    ],
    ids=str,
)
def test_numbers_of_numpy_and_paths_mean_the_same_request(given, means):
    request = HarvestRequest(**given)
    assert request == HarvestRequest(**means)
    assert json.dumps(request.to_json()) == json.dumps(HarvestRequest(**means).to_json())


@pytest.mark.parametrize("value", [2.0, "2", True, None, [None], np.ones((2, 2))], ids=str)
def test_numbers_that_are_not_whole_are_refused(value):
    with pytest.raises(InputError, match="--layer .*: must be a whole number"):
        HarvestRequest(layer=value)


@pytest.mark.parametrize(
    "given, means",
    [
        ({"seed": np.arange(3)}, {"seed": (0, 1, 2)}),
        ({"seed": range(3)}, {"seed": (0, 1, 2)}),
        ({"seed": {"a": 2, "b": 5}.values()}, {"seed": (2, 5)}),
        ({"lr": np.array([1e-5, 1e-4])}, {"lr": (1e-5, 1e-4)}),
        ({"lr": np.array([1e-5, 1e-4], np.float32)}, {"lr": (1e-5, 1e-4)}),
        ({"lr": np.float32(1e-5), "warmup": np.float16(0.1)}, {"lr": 1e-5, "warmup": 0.1}),
        ({"lr": torch.tensor([1e-5, 3e-4])}, {"lr": (1e-5, 3e-4)}),
        ({"decay": jnp.float32(0.1)}, {"decay": 0.1}),
        ({"activation": np.array(["topk", "relu"])}, {"activation": ("topk", "relu")}),
    ],
    ids=str,
)
def test_ordered_collections_of_values_span_a_population(given, means):
    assert json.dumps(TrainConfig(**given).to_json()) == json.dumps(TrainConfig(**means).to_json())


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"seed": {1, 2}}, "--seed {1, 2}: has no order"),
        ({"lr": {1e-3: 1}}, "--lr {0.001: 1}: has no order"),
        ({"lr": (1e-3, np.float32(1e-3))}, "--lr 0.001 0.001: give at least one value, and none twice"),
        ({"lr": np.ones((2, 2))}, "--lr [1. 1.]: must be a positive number"),
        ({"hidden_dim": 64.0}, "--hidden-dim 64.0: must be a whole number, 1 or more, and below 2147483648"),
        ({"seed": True}, "--seed True: must be a whole number, 0 to 2147483647"),
        ({"epochs": 2.5}, "--epochs 2.5: must be a whole number, 1 or more"),
        ({"lr": b"1"}, "--lr b'1': must be a positive number"),
    ],
    ids=str,
)
def test_values_that_cannot_be_trained_are_refused_with_what_is_needed(values, reason):
    with pytest.raises(InputError, match=f"^{re.escape(reason)}"):
        TrainConfig(**values)


def test_the_layers_of_a_harvest_come_in_an_order():
    with pytest.raises(InputError, match="^--layer {1, 2}: has no order of its own"):
        HarvestRequest(layer={1, 2})


def test_a_training_configuration_takes_numbers_of_numpy():
    given = TrainConfig(
        hidden_dim=np.int64(32), batch_size=np.int64(64), epochs=np.array(3), unit_norm_decoder=np.False_
    )
    means = TrainConfig(hidden_dim=32, batch_size=64, epochs=3, unit_norm_decoder=False)
    assert json.dumps(given.to_json()) == json.dumps(means.to_json())
