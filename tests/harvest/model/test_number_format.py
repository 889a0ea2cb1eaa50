"""Models in float32, bfloat16 and float16: which format is chosen, recorded and used again by analyses."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import transformers
from command_line import THREE_KINDS, shared_cache, trained
from rows import make_store
from tiny_models import write_model

import analysis
import main
from harvest import placement
from harvest.capture import harvest, harvest_again, store_name
from harvest.errors import InputError
from harvest.identity import difference, identity, meaning
from harvest.model.language_model import LanguageModel
from harvest.model.logit_weights import logit_weights
from harvest.placement import dtype_on
from harvest.request import HarvestRequest, Site
from harvest.sources import BUNDLED_MODEL, Source, resolve
from sae_jax.training.loop import store_facts

SMALL = HarvestRequest("bundled", "bundled", 2, n_samples=60)
HALF = replace(SMALL, model_dtype="bfloat16")


def harvested(request: HarvestRequest, cache, **how):
    (store,) = harvest(request, cache, say=how.pop("say", lambda text: None), **how).values()
    return store


# Which format, which device.


@pytest.mark.parametrize(
    ("device", "asked", "published", "has_cuda", "expected"),
    [
        ("auto", "auto", "bfloat16", False, "float32"),
        ("auto", "auto", "bfloat16", True, "bfloat16"),
        ("auto", "auto", "float16", True, "float16"),
        ("auto", "auto", "float32", True, "float32"),
        ("cpu", "auto", "bfloat16", True, "float32"),
        ("cuda:1", "auto", "bfloat16", True, "bfloat16"),
        ("spread", "auto", "bfloat16", True, "bfloat16"),
        ("spread", "auto", "bfloat16", False, "float32"),
        ("auto", "float32", "bfloat16", True, "float32"),
        ("cpu", "bfloat16", "float32", False, "bfloat16"),
    ],
)
def test_auto_is_as_published_on_an_accelerator_and_float32_on_a_cpu(
    monkeypatch, device, asked, published, has_cuda, expected
):
    monkeypatch.setattr(placement, "has_gpu_driver", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * has_cuda)
    assert dtype_on(device, asked, Source("m", "/m", False, 4, "", published_dtype=published)) == expected


@pytest.mark.parametrize(
    ("family", "saved_in", "published"), [("llama", torch.bfloat16, "bfloat16"), ("gpt2", torch.float32, "float32")]
)
def test_the_published_format_is_that_of_the_config(tmp_path, family, saved_in, published):
    write_model(family, tmp_path)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=saved_in).save_pretrained(tmp_path)
    assert resolve(replace(SMALL, model_name=str(tmp_path)))[0].published_dtype == published
    assert resolve(SMALL)[0].published_dtype == "float16"


@pytest.mark.parametrize(("device", "has"), [("cuda", "no CUDA device on"), ("cuda:7", "2 CUDA devices on")])
def test_a_device_that_the_machine_lacks_is_refused(monkeypatch, tmp_path, device, has):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * (device == "cuda:7"))
    with pytest.raises(InputError, match=f"^--device {device}: torch finds {has} this machine: give another"):
        harvested(SMALL, tmp_path, device=device)


def test_a_word_that_is_no_device_is_refused(capsys):
    assert main.run_as_command(["--device", "gpu"]) == 2
    assert "--device gpu: must be auto, cpu, cuda, the like of cuda:1, or spread" in capsys.readouterr().err


# Rows.


def test_rows_are_those_of_the_model_in_its_format_and_have_a_store_of_their_own(tmp_path):
    said: list[str] = []
    plain, half = harvested(SMALL, tmp_path), harvested(HALF, tmp_path, say=said.append)
    assert plain.directory != half.directory and any("cpu in bfloat16" in text for text in said)
    assert "model_dtype" not in plain.manifest and half.manifest["model_dtype"] == "bfloat16"
    raw = transformers.GPT2LMHeadModel.from_pretrained(BUNDLED_MODEL, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        tokens = torch.from_numpy(half.train.windows.astype(np.int64))
        expected = raw(tokens, output_hidden_states=True).hidden_states[2][:, 1:].float().numpy()
    found = half.train.read(0, len(half.train)).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    apart = np.abs(plain.train.read(0, len(plain.train)).reshape(expected.shape) - expected).max()
    assert apart > 1e-3 * np.abs(expected).max()


def test_float32_keeps_the_names_of_stores_and_runs():
    model, text = (Source(n, f"/{n}", False, 4, f"{w}'s fingerprint") for n, w in (("m", "model"), ("d", "text")))
    names = {
        dtype: store_name(HarvestRequest(model_dtype=dtype, max_norm_ratio=0), Site(0, "resid_pre"), model, text)
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert names["float32"] == "e482736ed612a136f249" and len(set(names.values())) == 3
    assert "model_dtype" not in HarvestRequest().to_json()


def test_rows_of_another_format_are_others_and_rounding_is_that_of_the_format(tmp_path):
    store = make_store(tmp_path / "a", dtype="float32")
    here, plain_meaning = identity(store), meaning(identity(store))
    near = {"rows_crc32": 0, "sums": {**here["sums"], "mean": here["sums"]["mean"] + 0.02 * here["sums"]["length"]}}
    assert "of the mean norm of the rows" in difference(here, here | near)
    half = {"model_dtype": "bfloat16"}
    assert not difference(here | half, here | near | half)
    assert "the model ran in float32, not bfloat16" in difference(here, here | half)
    assert meaning(here | half) != plain_meaning


def test_rows_are_harvested_again_in_the_format_of_the_run(tmp_path):
    store = harvested(HALF, tmp_path / "a")
    asked = replace(SMALL, model_dtype="auto")  # as on an accelerator that has published it so
    (again,) = harvest_again(asked, [store_facts(store)], tmp_path / "b").values()
    assert not difference(identity(store), identity(again)) and again.manifest["model_dtype"] == "bfloat16"


# Analyses.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logit_weights_are_those_of_the_model_in_float32(dtype):
    directions_KxD = np.random.default_rng(0).standard_normal((8, 256))
    exact_KxV, found_KxV = (
        logit_weights(LanguageModel.load(str(BUNDLED_MODEL), "cpu", dtype=d), directions_KxD)
        for d in ("float32", dtype)
    )
    np.testing.assert_allclose(found_KxV, exact_KxV, atol=2**-7 * np.abs(exact_KxV).max())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in bfloat16, with the shapes of the other runs of the tests."""
    flags = (*THREE_KINDS, "--epochs", "1", "--layer", "2", "--model-dtype", "bfloat16", "--device", "cpu")
    return trained(tmp_path_factory.mktemp("run") / "run", shared_cache(tmp_path_factory), *flags)


def test_a_run_is_measured_in_its_format(run, tmp_path, tmp_path_factory):
    assert run.language_model.dtype == torch.bfloat16
    cache, report = str(shared_cache(tmp_path_factory)), tmp_path / "report.json"
    argv = ["evaluate", str(run.path), "--cache-dir", cache, "--json", str(report), "--held-out", "0.1", "--quiet"]
    assert main.run_as_command(argv) == 0
    found = json.loads(report.read_text())
    assert found["request"]["model_dtype"] == "bfloat16"
    for entry in found["dictionaries"]:
        metrics = run.members[entry["name"]]["metrics"]
        assert entry["metrics"]["explained_variance"] == pytest.approx(metrics["explained_variance"], abs=0.05)


def test_a_command_can_spread_the_model_of_a_run(run, tmp_path, tmp_path_factory, monkeypatch):
    argv = ["attribute", run.path, "--member", next(iter(run.members)), "--prompt", "The ships lay in the"]
    argv += ["--target", " sea", "--cache-dir", shared_cache(tmp_path_factory), "--quiet"]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7_000_000, total=7_000_000))
    records = []
    for device in ("cpu", "spread"):
        path = tmp_path / f"{device}.json"
        assert main.run_as_command([*map(str, argv), "--device", device, "--json", str(path)]) == 0
        records.append(path.read_text())
    assert records[0] == records[1]


def test_a_device_that_the_machine_lacks_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: pytest.fail("the model is loaded"))
    commands = [["evaluate", run.path], ["steer", run.path, "--feature", "1"], ["study", run.path]]
    for argv in (*commands, [*THREE_KINDS, "--run-dir", tmp_path / "run"]):
        assert main.run_as_command([*map(str, argv), "--device", "cuda"]) == 2
        assert "--device cuda: torch finds no CUDA device on this machine" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_rows_of_a_run_are_harvested_again_in_its_format(run, tmp_path):
    assert run.store(run.request.sites[0], tmp_path).manifest["model_dtype"] == "bfloat16"


@pytest.mark.slow
def test_analyses_run_in_the_format_of_the_run(run, tmp_path):
    member, cache = list(run.members)[-1], ("--cache-dir", str(tmp_path))
    assert len(analysis.load_features(run, [member], tmp_path, quiet=True)) == 1
    steer = ["steer", str(run.path), "--member", member, "--feature", "0", *cache]
    attribute = ["attribute", str(run.path), "--member", member, "--prompt", "The ships lay in the", "--target", " sea"]
    for command in (steer, attribute):
        assert main.run_as_command(command) == 0
