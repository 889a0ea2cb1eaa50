"""The effect of ablating a feature, compared with whole runs of the model, and for features with a planted effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import BUNDLED, shared_cache, trained

from analysis.features.contexts import place
from analysis.features.statistics import load_or_compute_features
from analysis.interventions.ablation import ablation_effect, output_score
from analysis.stats import ratio_interval
from harvest.interventions.steering import changing
from sae_jax.formats import save_dictionary

SILENT, RAISING, LOWERING = 3, 5, 7


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """Members after the second and after the last block. Three features are planted in the weights of the latter."""
    argv = [*BUNDLED, "--n-samples", "100", "--seq-len", "10", "--layer", "1", "3", "--hook", "resid_post"]
    argv += ["--activation", "relu", "--hidden-dim", "48", "--target-l0", "8", "--epochs", "2"]
    run = trained(tmp_path_factory.mktemp("ablation") / "run", cache, *argv)
    dictionary = run.dictionary(member_at(run, 3))
    tensors, direction_D = dictionary.tensors, token_direction(run.language_model, the(run))
    for feature, sign in ((SILENT, 0), (RAISING, 1), (LOWERING, -1)):  # fires on no row, or equally on all rows
        tensors["W_enc"][:, feature], tensors["b_enc"][feature] = 0, 1.0 if sign else -1.0
        tensors["W_dec"][feature] = 4 * sign * direction_D
    save_dictionary(dictionary, run.path / "members" / dictionary.name)
    return run


def member_at(run, layer):
    return next(name for name, member in run.members.items() if member["layer"] == layer)


def the(run):
    return run.language_model.tokenizer(" the", add_special_tokens=False)["input_ids"][0]


def token_direction(model, token):
    """The direction of the last residual stream that raises this token's logit."""
    gain_D = dict(model.bridge.ln_final.original_component.named_parameters())["weight"].detach().numpy()
    return model.bridge.original_model.lm_head.weight[token].detach().numpy() * gain_D


def log_probabilities(model, tokens_WxT, site, change):
    with torch.inference_mode(), changing(model, site, change):
        logits = model.bridge(model.token_ids(tokens_WxT), return_type="logits", use_cache=False).numpy()
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_an_ablation_equals_two_whole_runs_of_the_model(run, cache, monkeypatch):
    monkeypatch.setattr("analysis.stats.FEWEST_DOCUMENTS", 3)
    name, model = member_at(run, 1), run.language_model
    site, tensors = run.site(name), run.dictionary(name).tensors
    of, store = load_or_compute_features(run, [name], cache)[name], run.store(run.site(name), cache)
    feature = int(np.abs(of.density_F - 0.2).argmin())
    found = ablation_effect(run, name, feature, cache, windows=1000)

    sampled = [row for row in of.sample_row_FxR[feature].tolist() if row >= 0 and row % 9 < 8]
    rows = list({row // 9: row for row in sampled}.values())  # one row per window
    places = [place(store, row) for row in rows]
    tokens_WxT, document_W = np.stack([tokens_T for tokens_T, _, _ in places]), [of for _, _, of in places]
    fires_WxT = np.zeros(tokens_WxT.shape, bool)

    def without(x):
        pre_WxT = (x.numpy() - tensors["b_dec"]) @ tensors["W_enc"][:, feature] + tensors["b_enc"][feature]
        f_WxT = np.maximum(pre_WxT, 0)
        f_WxT[:, 0] = 0  # the first position has no features, as in training
        fires_WxT[:] = f_WxT > 0
        return x - torch.from_numpy(f_WxT[..., None] * tensors["W_dec"][feature])

    clean_WxTxV = log_probabilities(model, tokens_WxT, site, lambda x: x)
    ablated_WxTxV = log_probabilities(model, tokens_WxT, site, without)
    counts_WxP = np.cumsum(fires_WxT, 1)[:, :-1] > 0
    next_WxPx1 = tokens_WxT[:, 1:, None].astype(np.int64)
    ce_WxP = np.take_along_axis((clean_WxTxV - ablated_WxTxV)[:, :-1], next_WxPx1, -1)[..., 0]
    kl_WxP = (np.exp(clean_WxTxV) * (clean_WxTxV - ablated_WxTxV)).sum(-1)[:, :-1]
    assert (found.windows, found.tokens) == (len(rows), counts_WxP.sum()) and found.windows > 20
    assert found.loss_increase == pytest.approx(ce_WxP[counts_WxP].mean(), abs=1e-5)
    assert found.kl == pytest.approx(kl_WxP[counts_WxP].mean(), abs=1e-5) and found.kl > 1e-5
    _, document_W = np.unique(document_W, return_inverse=True)
    ce_G, counts_G = (np.bincount(document_W, of.sum(1)) for of in (ce_WxP * counts_WxP, counts_WxP))
    assert found.documents == len(counts_G) < found.windows
    assert found.interval == pytest.approx(ratio_interval(ce_G, counts_G), rel=0.02)
    assert found.interval[0] < found.loss_increase < found.interval[1]
    change_V = (ablated_WxTxV - clean_WxTxV)[fires_WxT].mean(0)
    assert [change for _, change in found.tokens_up] == pytest.approx(np.sort(change_V)[::-1][:10], abs=1e-4)
    assert [change for _, change in found.tokens_down] == pytest.approx(np.sort(change_V)[:10], abs=1e-4)
    assert found.tokens_up[0][0] == model.tokenizer.decode([int(change_V.argmax())])


def test_ablation_removes_the_effect_of_planted_features(run, cache):
    raising, lowering = (ablation_effect(run, member_at(run, 3), f, cache, windows=8) for f in (RAISING, LOWERING))
    assert raising.windows == lowering.windows == 8
    assert raising.tokens == 8 * 8  # the feature fires at every position that is used; the last one predicts nothing
    assert raising.tokens_down[0][0] == lowering.tokens_up[0][0] == " the"
    assert raising.tokens_down[0][1] < -0.1 and lowering.tokens_up[0][1] > 0.1
    assert lowering.loss_increase > 0  # the feature makes " the" less likely everywhere


def test_a_feature_that_never_fires_has_no_effect(run, cache):
    found = ablation_effect(run, member_at(run, 3), SILENT, cache)
    assert (found.windows, found.tokens, found.loss_increase, found.interval, found.kl) == (0, 0, 0, None, 0)
    assert found.tokens_up == found.tokens_down == []


def test_the_output_score_of_a_negative_peak_is_for_the_tokens_that_it_promotes(run, cache):
    """Features of abs_topk may have one. A negative peak along −d moves the model as a positive one along d does."""
    name = member_at(run, 3)
    of = load_or_compute_features(run, [name], cache)[name]
    expected = output_score(run, name, RAISING, of)
    assert output_score(run, name, LOWERING, replace(of, max_F=-of.max_F)) == pytest.approx(expected, rel=1e-4)
    assert expected > 2 * output_score(run, name, LOWERING, of)
