"""A model that is spread over several devices. The second one is the disk, which weights leave only while they run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import transformers
from tiny_models import write_model

from harvest.capture import harvest
from harvest.errors import InputError
from harvest.interventions.attribution import Output
from harvest.interventions.loss_recovered import losses
from harvest.interventions.splicing import spliced
from harvest.interventions.steering import Change, write_texts
from harvest.model.language_model import LanguageModel
from harvest.model.logit_weights import logit_weights, residual_directions
from harvest.request import HarvestRequest, Site
from harvest.sources import BUNDLED_MODEL
from sae_jax.formats import Dictionary
from sae_jax.formats.saelens import new_cfg
from sae_jax.loading import LoadedSAE

TOKENS_WxT = np.random.default_rng(0).integers(5, 100, (4, 16), dtype=np.int32)
HOOKS = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "mlp_in", "mlp_post", "z", "q")
LAST = Site(2, "resid_pre")
SITES = [Site(layer, hook) for layer in (0, 1) for hook in HOOKS]
MEMORY = {"gpt2": 14_000_000, "llama": 1_240_000}  # bytes: too few for all layers, enough for the embedding


def with_memory(monkeypatch, size: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size, total=size))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request, tmp_path_factory):
    """(a model on the CPU, the same model with most of its layers on disk)."""
    location = BUNDLED_MODEL
    if request.param == "llama":
        location = write_model("llama", tmp_path_factory.mktemp("model"))
    plain = LanguageModel.load(str(location), "cpu")
    with pytest.MonkeyPatch.context() as patch:
        with_memory(patch, MEMORY[request.param])
        return plain, LanguageModel.load(str(location), "spread")


def test_layers_are_on_disk_and_leave_it_only_while_they_run(models):
    plain, spread = models
    on_disk = [name for name, weight in spread.bridge.original_model.named_parameters() if weight.is_meta]
    assert len(on_disk) > 10 and spread.places == "cpu and disk"
    spread.activations(TOKENS_WxT, SITES)
    assert [name for name, weight in spread.bridge.original_model.named_parameters() if weight.is_meta] == on_disk


def test_a_spread_model_has_the_same_hash(models):
    plain, spread = models
    assert spread.weights_hash() == plain.weights_hash()


def test_activations_are_the_same_at_every_hook(models):
    plain, spread = models
    expected, found = plain.activations(TOKENS_WxT, SITES), spread.activations(TOKENS_WxT, SITES)
    for site in SITES:
        np.testing.assert_array_equal(found[site], expected[site])


@pytest.mark.parametrize("hook", HOOKS)
def test_losses_and_gradients_are_the_same(models, hook):
    site, changes = Site(1, hook), {"half": lambda x_NxD: x_NxD / 2}
    (clean, changed), (clean_spread, changed_spread) = (losses(m, TOKENS_WxT, site, changes) for m in models)
    np.testing.assert_array_equal(clean_spread, clean)
    np.testing.assert_array_equal(changed_spread["half"], changed["half"])
    contrast_V = np.eye(models[0].vocabulary, dtype=np.float32)[7]
    outputs = [Output(model, TOKENS_WxT[0], site, contrast_V) for model in models]
    plain_1xTxD, spread_1xTxD = (output.gradients(output.activation_TxD[None]) for output in outputs)
    np.testing.assert_array_equal(spread_1xTxD, plain_1xTxD)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "z"])
def test_a_spliced_dictionary_gives_the_same_output_and_gradients(models, hook):
    site, rng = Site(1, hook), np.random.default_rng(0)
    width = models[0].d_z if hook == "z" else models[0].d_model
    shapes = {"W_enc": (width, 64), "W_dec": (64, width), "b_enc": (64,), "b_dec": (width,)}
    tensors = {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    cfg = new_cfg("topk", width, 64, {"hook_name": site.hook_name}, 8)
    results = []
    for model in models:
        sae = LoadedSAE(Dictionary("random", "saelens", cfg, tensors), Path("nowhere")).to_torch()
        with spliced(model, sae):
            logits_WxTxV = model.bridge(torch.tensor(TOKENS_WxT), return_type="logits", use_cache=False)
        logits_WxTxV.log_softmax(-1)[..., 7].sum().backward()
        results.append([logits_WxTxV.detach(), *(weight.grad for weight in sae.parameters())])
    assert len(results[0]) == 5
    for plain, spread in zip(*results, strict=True):
        torch.testing.assert_close(spread, plain, rtol=0, atol=0)


def test_texts_and_logit_weights_are_the_same(models):
    change = Change(Site(1, "resid_mid"), lambda x_NxD: 1.5 * x_NxD, 0)
    plain, spread = (write_texts(model, TOKENS_WxT, change, 4, temperature=1.0) for model in models)
    np.testing.assert_array_equal(spread.tokens_SxN, plain.tokens_SxN)
    rng = np.random.default_rng(0)
    directions_KxD, heads_KxD = (rng.standard_normal((3, width)) for width in (models[0].d_model, models[0].d_z))
    plain_KxV, spread_KxV = (logit_weights(model, directions_KxD) for model in models)
    np.testing.assert_array_equal(spread_KxV, plain_KxV)
    plain_KxD, spread_KxD = (residual_directions(model, Site(1, "z"), heads_KxD) for model in models)
    np.testing.assert_array_equal(spread_KxD, plain_KxD)


def test_a_spread_model_can_run_in_several_threads(models):
    """As in the dashboard, where each visitor has one."""
    expected = models[0].activations(TOKENS_WxT, [LAST])[LAST]
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: models[1].activations(TOKENS_WxT, [LAST]), range(40)):
            np.testing.assert_array_equal(found[LAST], expected)


def test_weights_in_another_format_than_safetensors_are_spread(tmp_path, monkeypatch):
    write_model("llama", tmp_path)
    weights = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    plain = LanguageModel.load(str(tmp_path), "cpu", dtype="bfloat16")
    with_memory(monkeypatch, MEMORY["llama"] // 2)
    spread = LanguageModel.load(str(tmp_path), "spread", dtype="bfloat16")
    assert spread.places == "cpu and disk" and spread.weights_hash() == plain.weights_hash()


def test_a_control_is_refused_if_its_weights_are_on_disk(monkeypatch):
    assert LanguageModel.load(str(BUNDLED_MODEL), "spread", "random-weights").places == "cpu"
    with_memory(monkeypatch, MEMORY["gpt2"])
    with pytest.raises(InputError, match="^--control with --device spread: the model is larger than the memory"):
        LanguageModel.load(str(BUNDLED_MODEL), "spread", "random-weights")


def test_a_model_that_is_only_partly_on_gpus_is_refused(monkeypatch):
    load = transformers.GPT2LMHeadModel.from_pretrained

    def as_with_a_small_gpu(*args, device_map, **settings):  # there is none here
        model, facts = load(*args, **settings)
        model.hf_device_map = {"transformer": 0, "lm_head": "cpu"}
        return model, facts

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", as_with_a_small_gpu)
    with pytest.raises(InputError, match="^--device spread: the model is larger than the free memory of the GPUs"):
        LanguageModel.load(str(BUNDLED_MODEL), "spread")


def test_rows_of_a_spread_model_are_those_of_the_same_store(tmp_path, monkeypatch):
    request = HarvestRequest("bundled", "bundled", layer=(1,), hook=("resid_mid",), n_samples=8, seq_len=16)
    (plain,) = harvest(request, tmp_path / "plain", device="cpu").values()
    said: list[str] = []
    with_memory(monkeypatch, MEMORY["gpt2"])
    (spread,) = harvest(request, tmp_path / "spread", device="spread", say=said.append).values()
    assert any("harvest runs on cpu and disk in float32" in text for text in said)
    assert spread.directory.name == plain.directory.name
    np.testing.assert_array_equal(spread.train.read(0, len(spread.train)), plain.train.read(0, len(plain.train)))
