"""Presets: their flags, flags that override them, and scaling down to the bundled model. No hub is contacted."""

import json
import re

import pytest
from command_line import environment, shared_cache

import main
from analysis.cli import train
from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from harvest.text.windows import token_windows
from sae_jax.cost import plan
from sae_jax.presets import BUNDLED_HELD_OUT, BUNDLED_WINDOWS, PRESETS, SHORT_RUN_STEPS

HUB_NAME = ("--model-name", "gpt2")  # a named model, so nothing is scaled down; parsing does not load it


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path_factory):
    for name, value in environment(shared_cache(tmp_path_factory)).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_flags_of_its_record(name):
    request, config, _, record = train.parse(["--preset", name, *HUB_NAME])
    asked = {**vars(request), **vars(config)}
    assert PRESETS[name].flags.items() <= asked.items()
    assert record == {"name": name, "not_followed": PRESETS[name].not_followed, "scaled_down": []}
    untouched = {**vars(HarvestRequest(model_name="gpt2")), **vars(train.TrainConfig())}
    assert {k: v for k, v in asked.items() if k not in PRESETS[name].flags} == {
        k: v for k, v in untouched.items() if k not in PRESETS[name].flags
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_scaled_down_preset_fits_the_bundled_model(name):
    request, config, _, record = train.parse(["--preset", name])
    flags = PRESETS[name].flags
    assert max(request.layer) < 4 and request.dataset == "bundled" and request.model_name is None
    assert config.hidden_dim == tuple(width // 3 // 16 * 16 for width in flags["hidden_dim"])  # 256 of 768 dimensions
    assert (request.seq_len, request.n_samples, request.held_out) == (64, BUNDLED_WINDOWS, BUNDLED_HELD_OUT)
    assert plan(config, request, 256).steps >= SHORT_RUN_STEPS and config.lr == (1e-3,)
    same = ("hook", "activation", "k", "target_l0", "normalization", "dead_rule", "epochs")
    asked = {**vars(request), **vars(config)}
    assert all(asked[field] == flags[field] for field in same if field in flags)
    changed = {change.split()[0] for change in record["scaled_down"]}
    expected = {field for field in flags if asked[field] != flags[field]} | {"dataset"}
    assert changed == {"--" + field.replace("_", "-") for field in expected}


@pytest.mark.parametrize("name", PRESETS)
def test_a_dry_run_of_each(name, tmp_path, capsys):
    argv = ["--preset", name, "--dry-run", "--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]
    assert main.run_as_command(argv) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"--preset {name} scaled down to the bundled model: --layer")
    assert all(text in said for text in PRESETS[name].not_followed)
    assert "of the bundled model" in said and "gpt2-small" not in said.partition("\n")[0]
    assert "\nmodel: the bundled one, because the hub cannot be reached" in said
    assert re.search(r" members? in ", said) and not list(tmp_path.iterdir())


def test_flags_override_a_preset():
    request, config, _, _ = train.parse(
        ["--preset", "openai-v5-32k", *HUB_NAME, "--k=8", "--layer", "3", "--decay", "0"]
    )
    assert (config.k, request.layer, config.decay) == ((8,), (3,), 0.0)
    assert (config.hidden_dim, request.hook) == ((32768,), ("resid_mid",))


def test_flags_are_not_scaled_down():
    own = ["--layer", "3", "--hidden-dim", "100", "--lr", "5e-4", "--batch-size", "4096", "--seq-len=20"]
    request, config, _, record = train.parse(["--preset", "res-jb", *own])
    assert (request.layer, config.hidden_dim, config.lr, request.seq_len) == ((3,), (100,), (5e-4,), 20)
    assert config.batch_size == 4096
    assert [change.split()[0] for change in record["scaled_down"]] == ["--dataset", "--n-samples", "--held-out"]


def test_flags_are_checked_before_they_are_scaled_down():
    with pytest.raises(InputError, match="^--seq-len 0: must be"):
        train.parse(["--preset", "res-jb", "--seq-len", "0"])


def test_a_text_of_the_user_is_not_scaled_down():
    request, config, _, _ = train.parse(["--preset", "res-jb", "--dataset", "my.txt"])
    assert (request.dataset, request.n_samples, request.layer) == ("my.txt", 300_000_000 // 128, (2,))
    assert config.batch_size == 4096


def test_an_unknown_name_is_refused_with_the_list(capsys):
    assert main.run_as_command(["--preset", "gpt5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --preset gpt5: must be one of ") and all(name in error for name in PRESETS)


def test_the_list_shows_each_with_its_source(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run_as_command(["--preset", "list"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said and preset.source[:40] in said for name, preset in PRESETS.items())
    assert not list(tmp_path.iterdir())
    assert main.run_as_command(["--preset", "list", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == PRESETS.keys()


def test_all_windows_of_the_bundled_text_are_counted():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    windows = token_windows(str(BUNDLED_CORPUS), tokenizer, HarvestRequest(n_samples=10**6, seq_len=64))
    assert sum(len(split.tokens_WxT) for split in windows.values()) == BUNDLED_WINDOWS


def test_the_record_can_be_written():
    _, _, _, record = train.parse(["--preset", "frontier"])
    assert json.loads(json.dumps(record))["scaled_down"][0].startswith("--layer 8 -> 2 (")
