"""Attributions: exact if the rest of the model is linear, complete if integrated, and in agreement with ablation."""

import json

import numpy as np
import pytest
import torch
from command_line import BUNDLED, environment, shared_cache

import main
from analysis.cli import attribute
from analysis.cli.attribute import METHODS
from analysis.interventions import attribution
from harvest.errors import InputError
from harvest.interventions.attribution import Output
from harvest.interventions.steering import changing
from harvest.request import Site
from sae_jax.models.registry import KINDS

SITES = (Site(2, "resid_pre"), Site(1, "resid_mid"), Site(2, "mlp_out"), Site(1, "attn_out"), Site(0, "resid_pre"))
LAST, F = Site(3, "resid_post"), 64


@pytest.fixture(scope="module")
def prompt_T(model):
    return model.tokenizer("The ships lay in the harbour until the wind", add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def sae():
    W_FxD = np.random.default_rng(0).standard_normal((F, 256)).astype(np.float32) / 16
    zeros = {"b_enc": np.zeros(F, np.float32), "b_dec": np.full(256, 0.1, np.float32)}
    return KINDS["relu"]({"W_encT": W_FxD, "W_dec": W_FxD, **zeros})


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.hook_name)
def test_gradients_are_the_outputs_slope(model, prompt_T, site):
    """Gradients equal finite differences, for which a hook changes the activation in a whole run of the model."""
    rng = np.random.default_rng(1)
    contrast_V = rng.standard_normal(4096).astype(np.float32)
    output = Output(model, prompt_T, site, contrast_V)
    g_TxD = output.gradients(output.activation_TxD[None])[0]
    step_TxD = rng.standard_normal(g_TxD.shape).astype(np.float32) * 0.01 * output.activation_TxD[1:].std()
    ids = model.token_ids(np.array([prompt_T]))

    def whole(sign: float) -> float:
        step = torch.from_numpy(sign * step_TxD)
        with torch.inference_mode(), changing(model, site, lambda x: x + step):
            logits = model.bridge(ids, return_type="logits", use_cache=False)[0, -1]
        return float(logits.double() @ torch.from_numpy(contrast_V).double())

    assert float((g_TxD * step_TxD).sum()) == pytest.approx((whole(1) - whole(-1)) / 2, rel=0.03)
    moved_KxTxD = output.activation_TxD + np.array([[[1.0]], [[0.0]]]) * step_TxD
    assert output.values(moved_KxTxD) == pytest.approx([whole(1), whole(0)], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_attributions_are_exact_if_the_rest_of_the_model_is_linear(model, prompt_T, sae, method):
    """After the last layer, with the final norm's mean and scale frozen, the logits are x · (gain W_U)."""
    norm = model.bridge.original_model.transformer.ln_f
    gain_D = dict(norm.named_parameters())["_original_component.weight"].detach()
    frozen = norm.register_forward_hook(lambda part, inputs, output: inputs[0] * gain_D / 1.7)
    try:
        found = attribution.compute_attribution(model, prompt_T, LAST, sae, 11, 12, method, top=F)
        x_TxD = Output(model, prompt_T, LAST, np.zeros(4096)).activation_TxD
    finally:
        frozen.remove()
    W_U = model.bridge.original_model.lm_head.weight.detach().double().numpy()
    slope_D = gain_D.double().numpy() / 1.7 * (W_U[11] - W_U[12])
    f_F = np.asarray(sae.encode(x_TxD), np.float64)[-1]
    expected_F = f_F * (np.asarray(sae.W_dec[...], np.float64) @ slope_D)
    assert len(found.effects) == found.active
    for effect in found.effects:
        assert effect.attribution == pytest.approx(expected_F[effect.feature], abs=1e-5)
        assert effect.ablation == pytest.approx(expected_F[effect.feature], abs=2e-4)
    assert found.correlation > 0.9999
    bias = float(np.full(256, 0.1) @ slope_D)
    assert found.features_give + found.error_gives + bias == pytest.approx(found.output, abs=1e-3)


@pytest.mark.parametrize("site", SITES[:3], ids=lambda site: site.hook_name)
def test_integrated_attributions_add_up_to_what_the_features_give(model, prompt_T, sae, site):
    found = attribution.compute_attribution(model, prompt_T, site, sae, 11, None, "integrated", steps=12)
    contrast_V = np.full(4096, -1 / 4096)
    contrast_V[11] += 1
    output = Output(model, prompt_T, site, contrast_V)
    x_TxD = output.activation_TxD
    f_TxF = np.array(sae.encode(x_TxD))
    f_TxF[0] = 0
    without = output.values(np.stack([x_TxD, x_TxD - f_TxF @ np.asarray(sae.W_dec[...])]))
    assert found.features_give == pytest.approx(without[0] - without[1], abs=2e-3)
    assert found.without_features == pytest.approx(without[1], abs=1e-3)
    assert found.output == pytest.approx(without[0], abs=1e-3)


def test_a_features_own_path_adds_up_to_its_ablation(model, prompt_T, sae):
    found = attribution.compute_attribution(model, prompt_T, SITES[0], sae, 11, 12, "path", top=15)
    largest = max(abs(effect.ablation) for effect in found.effects)
    assert len(found.effects) == 15 and found.correlation > 0.99
    for effect in found.effects:
        assert effect.attribution == pytest.approx(effect.ablation, abs=0.03 * largest)
    sizes = [abs(effect.attribution) for effect in found.effects]
    assert sizes == sorted(sizes, reverse=True)


def test_an_ablation_is_a_whole_run_without_the_feature(model, prompt_T, sae):
    found = attribution.compute_attribution(model, prompt_T, SITES[0], sae, 11, 12, "gradient", top=3)
    ids, W_FxD = model.token_ids(np.array([prompt_T])), np.asarray(sae.W_dec[...])

    def output(change) -> float:
        with torch.inference_mode(), changing(model, SITES[0], change):
            logits = model.bridge(ids, return_type="logits", use_cache=False)[0, -1]
        return float(logits[11] - logits[12])

    for effect in found.effects:

        def without(x, i=effect.feature):
            f_T = np.array(sae.encode(x[0].numpy()))[:, i]
            f_T[0] = 0  # the first position is not changed
            return x - torch.from_numpy(np.outer(f_T, W_FxD[i]))[None]

        assert effect.ablation == pytest.approx(output(lambda x: x) - output(without), abs=1e-3)
        assert effect.position > 0


def test_an_undefined_correlation_is_none():
    assert attribution.correlation(np.ones(3), np.arange(3)) is None
    assert attribution.correlation(np.ones(1), np.ones(1)) is None
    assert attribution.correlation(np.arange(3), -np.arange(3)) == pytest.approx(-1)


def test_the_command(tmp_path_factory, tmp_path, capsys):
    cache = shared_cache(tmp_path_factory)
    path = tmp_path / "run"
    argv = [*BUNDLED, "--n-samples", "400", "--seq-len", "20", "--activation", "topk", "--hidden-dim", "48", "--k", "8"]
    argv += ["--layer", "2", "--epochs", "1", "--seed", "0", "1", "--run-dir", str(path), "--cache-dir", str(cache)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(cache).items():
            patch.setenv(name, value)
        assert main.run_as_command([*argv, "--quiet", "--ce-windows", "0"]) == 0
    member = sorted(p.name for p in (path / "members").iterdir())[0]
    asked = [str(path), "--prompt", "The ships lay in the", "--member", "s0"]
    attribute.run([*asked, "--target", " sea", "--top", "5", "--json", str(tmp_path / "a.json")])
    out, found = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert len(found["effects"]) == 5 and found["prompt"][-1] == " the" and found["method"] == "path"
    assert all(f"{effect['ablation']:+.4f}" in out for effect in found["effects"])
    assert f"--member s0: {member}\n" in out and found["member"] == member
    together = found["output"] - found["without_features"]
    assert f"measured: {found['output']:.3f} = {found['without_features']:.3f} with all {found['active']} " in out
    assert f"{together:+.3f} that they add together" in out
    assert f"{found['correlation']:.3f}" in out and "logit of ' sea' minus mean logit" in out
    for argv, message in (
        ([*asked, "--target", " volcano"], "must be one token, but this model's tokenizer splits it into ' v"),
        ([*asked, "--target", "sea"], "into 'se' 'a': did you mean ' sea'"),
        ([*asked, "--target", " sea", "--method", "guess"], "must be one of gradient"),
        ([*asked], "--target is missing"),
        ([str(path), "--prompt", "The ships", "--target", " sea"], "--member is missing"),
        ([*asked, "--target", " sea", "--prompt", "ship " * 200], "give one of 2 to 128 "),
    ):
        with pytest.raises(InputError, match=message):
            main.main(["attribute", *argv])
