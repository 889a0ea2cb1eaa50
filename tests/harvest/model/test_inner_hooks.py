"""Hooks inside attention and the MLP, whose activations have heads and other widths than the residual stream."""

import json

import numpy as np
import pytest
import torch
from command_line import shared_cache, trained
from plain_hooks import MODULES
from tiny_models import write_model

import main
from analysis.features.statistics import load_or_compute_features
from harvest.capture import harvest
from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.model.logit_weights import logit_weights, residual_directions
from harvest.request import HOOKS, IMPORTED, OUTER, POINTS, HarvestRequest, Site
from harvest.sources import BUNDLED_MODEL, Source, resolve

TOKENS_WxT = np.random.default_rng(0).integers(5, 4096, (2, 9), dtype=np.int32)
SMALL = ("--layer", "2", "--n-samples", "300", "--epochs", "2", "--hidden-dim", "48")


def test_a_site_is_found_again_by_its_hook_point():
    sites = [Site(layer, hook) for layer in (0, 11) for hook in POINTS] + [Site(0, hook) for hook in OUTER]
    sites += [Site(3, "ln1.hook_normalized"), Site(3, "attn.q.hook_out"), Site(0, IMPORTED)]
    assert [Site.named(site.hook_name) for site in sites] == sites
    for name in ("ln_final.hook_scale", "blocks.x.hook_q", "blocks.1.hook_resid_pre!", "blocks.1.attn", ""):
        assert Site.named(name) is None
    assert len({site.tensor for site in sites}) == len(HOOKS) + 3


@pytest.mark.parametrize("family", MODULES)
def test_the_config_of_a_model_tells_the_width_at_each_hook(tmp_path, family):
    directory = write_model(family, tmp_path)
    source, _ = resolve(HarvestRequest(str(directory), "bundled", 1))
    model = LanguageModel.load(str(directory), "cpu")
    sites = [site for hook in HOOKS if (site := Site(1, hook)).hook_name in model.bridge.hook_dict]
    widths = {site.hook: x_WxTxD.shape[-1] for site, x_WxTxD in model.activations(TOKENS_WxT, sites).items()}
    assert widths == {hook: source.widths[hook] for hook in widths}
    assert len(widths) >= 10


NAMES = ("blocks.2.ln1.hook_normalized", "hook_embed", "ln_final.hook_out", "blocks.1.attn.o.hook_out")


@pytest.mark.parametrize("name", NAMES)
def test_any_hook_is_read_by_its_name(name, tmp_path):
    request = HarvestRequest("bundled", "bundled", hook_name=name, n_samples=20, store_dtype="float32")
    site = Site.named(name)
    assert request == HarvestRequest("bundled", "bundled", site.layer, site.hook, n_samples=20, store_dtype="float32")
    store = harvest(request, tmp_path, loss_recovered=True)[site]
    assert (store.manifest["hook_name"], store.manifest["no_loss_recovered"]) == (name, None)
    bridge = LanguageModel.load(str(BUNDLED_MODEL), "cpu").bridge
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(torch.from_numpy(store.held_out.windows.astype(np.int64)))
    rows_NxD = cache[name][:, 1:].flatten(0, 1).numpy()
    np.testing.assert_allclose(store.held_out.read(0, len(store.held_out)), rows_NxD, rtol=1e-5, atol=1e-4)


def test_the_manifest_names_the_module_of_transformers():
    model = LanguageModel.load(str(BUNDLED_MODEL), "cpu")
    expected = {
        "resid_pre": "input of transformer.h.1",
        "resid_mid": "input of transformer.h.1.ln_2",
        "z": "input of transformer.h.1.attn.c_proj",
        "q": "part of the output of transformer.h.1.attn.c_attn",
        "mlp_post": "input of transformer.h.1.mlp.c_proj",
        "embed": "output of transformer.wte",
        "final": "output of transformer.ln_f",
    }
    assert {hook: model.module_of(Site(1, hook)) for hook in expected} == expected


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hook_name": "blocks.2.resid_pre"}, "must be a hook of TransformerLens, such as"),
        ({"hook_name": "hook_embed", "layer": 2}, "--hook-name already gives the layer"),
        ({"hook_name": ("blocks.1.hook_q", "blocks.2.hook_resid_pre")}, "the layers have different hooks"),
        ({"hook": "final", "layer": (1, 2)}, "--hook final: is in no layer"),
    ],
)
def test_names_that_are_no_sites_are_refused(fields, says):
    with pytest.raises(InputError, match=says):
        HarvestRequest(**fields)


def test_a_point_that_is_no_activation_per_token_is_refused():
    model = LanguageModel.load(str(BUNDLED_MODEL), "cpu")
    for hook in ("attn.hook_pattern", "attn.hook_attn_scores"):
        with pytest.raises(InputError, match=f"--hook {hook}: .* choose another hook"):
            model.activations(TOKENS_WxT, [Site(1, hook)])


def test_each_store_has_the_width_of_its_hook(tmp_path):
    directory = write_model("llama", tmp_path / "model")  # 4 heads of width 8, 2 of them with keys
    request = HarvestRequest(str(directory), "bundled", 1, ("k", "mlp_post"), n_samples=20, store_dtype="float32")
    stores = harvest(request, tmp_path / "cache")
    assert {site.hook: store.d_model for site, store in stores.items()} == {"k": 16, "mlp_post": 64}
    k = stores[Site(1, "k")]
    assert k.manifest["tensor"].startswith("the keys of the attention heads")
    model = LanguageModel.load(str(directory), "cpu")
    expected_WxTxD = model.activations(k.train.windows, [Site(1, "k")])[Site(1, "k")][:, 1:]
    np.testing.assert_allclose(k.train.read(0, len(k.train)), expected_WxTxD.reshape(-1, 16), atol=1e-5)


def test_hooks_of_different_widths_do_not_train_together(tmp_path, capsys):
    directory = write_model("llama", tmp_path / "model")
    argv = ["--model-name", str(directory), "--dataset", "bundled", "--hook", "k", "mlp_post", "--dry-run"]
    assert main.run_as_command([*argv, "--cache-dir", str(tmp_path / "cache")]) == 2
    assert "activations of different widths (k: 16, mlp_post: 64)" in capsys.readouterr().err
    cached = Source("m", "m", False, 3, "m@0", widths={"resid_pre": 32})  # of which the cache has one site only
    assert cached.width(["mlp_out", "resid_pre"]) == 32 and cached.width(["z"]) is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize(("hook", "whole"), [("z", "attn_out"), ("mlp_post", "mlp_out")])
def test_a_direction_adds_to_the_residual_stream_what_the_model_makes_of_it(tmp_path, family, hook, whole):
    model, site, out = LanguageModel.load(str(write_model(family, tmp_path)), "cpu"), Site(1, hook), Site(1, whole)
    x_WxTxD = model.activations(TOKENS_WxT, [site])[site]
    direction_D = np.random.default_rng(0).standard_normal(x_WxTxD.shape[-1]).astype(np.float32)
    before_WxTxD = model.activations(TOKENS_WxT, [out])[out]

    def add(x, hook):
        return x + torch.from_numpy(direction_D).view(x.shape[2:])

    with model.bridge.hooks(fwd_hooks=[(site.hook_name, add)]):
        after_WxTxD = model.activations(TOKENS_WxT, [out])[out]
    (added_D,) = residual_directions(model, site, direction_D[None])
    np.testing.assert_allclose(after_WxTxD - before_WxTxD, np.broadcast_to(added_D, before_WxTxD.shape), atol=1e-5)


def test_a_direction_has_no_effect_of_its_own_where_it_is_read_or_normalized(tmp_path):
    model = LanguageModel.load(str(write_model("gemma2", tmp_path)), "cpu")  # with a norm behind attention and the MLP
    for hook, width in (("q", 32), ("mlp_in", 32), ("z", 32), ("mlp_post", 64)):
        assert residual_directions(model, Site(1, hook), np.ones((1, width))) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """({hook: a run on the bundled model}, the cache)."""
    cache, folder = shared_cache(tmp_path_factory), tmp_path_factory.mktemp("runs")
    where = ("--model-name", "bundled", "--dataset", "bundled", *SMALL, "--activation", "topk", "--k", "8")
    return {hook: trained(folder / hook, cache, *where, "--hook", hook) for hook in ("z", "q")}, cache


def test_features_of_heads_promote_tokens_through_the_output_projection(runs):
    by_hook, cache = runs
    run = by_hook["z"]
    (name,) = run.members
    features = load_or_compute_features(run, [name], cache)[name]
    projection = run.language_model.bridge.original_model.transformer.h[2].attn.c_proj.weight.detach().numpy()
    W_dec_FxD = run.dictionary(name).tensors["W_dec"]
    weight_FxV = logit_weights(run.language_model, W_dec_FxD @ projection)
    np.testing.assert_array_equal(features.promoted_FxT[:, 0], weight_FxV.argmax(1))
    assert run.dictionary(name).cfg["reshape_activations"] == "hook_z"


def test_every_analysis_works_where_features_promote_nothing(runs, tmp_path, capsys):
    by_hook, cache = runs
    run = by_hook["q"]
    (name,) = run.members
    features = load_or_compute_features(run, [name], cache)[name]
    assert not features.promotes_tokens and features.logits(0)[0].size == 0
    where = ["--member", name, "--cache-dir", str(cache)]
    assert main.run_as_command(["steer", str(run.path), "--feature", "1", *where]) == 2
    assert "promotes no tokens by itself: give --words to watch" in capsys.readouterr().err
    short = ["--max-new-tokens", "4", "--samples", "1"]
    assert main.run_as_command(["steer", str(run.path), "--feature", "1", "--words", "sea", *short, *where]) == 0
    prompt = ["--prompt", "The ships lay in the", "--target", " sea"]
    assert main.run_as_command(["attribute", str(run.path), *prompt, *where]) == 0
    assert main.run_as_command(["find-feature", str(run.path), "moon", *where]) == 0
    assert "promotes" not in capsys.readouterr().out.split("passages about it")[1]
    to = tmp_path / "pages"
    assert main.run_as_command(["export", str(run.path), "--neuronpedia", "--to", str(to), *where]) == 0
    page = json.loads(next(to.rglob("batch-*.json")).read_text())["features"][0]
    assert page["pos_str"] == page["logits_hist_data_bar_values"] == [] and page["activations"]
