"""The pages for Neuronpedia of a real run, compared with the run's weights, rows and tokens."""

import json
import os
import subprocess

import numpy as np
import pytest
from command_line import ROOT, THREE_KINDS, files_of, shared_cache, trained
from rows import make_store

import main
from analysis.export import neuronpedia
from analysis.export.neuronpedia import clean, export, rounded
from analysis.features import activations as feature_values_module
from analysis.features.activations import context_tokens, feature_values
from analysis.features.contexts import place
from analysis.features.statistics import load_or_compute_features
from harvest.errors import InputError
from harvest.model.logit_weights import logit_weights
from sae_jax.formats import save_dictionary
from sae_jax.models.registry import KINDS

PEERS = os.environ.get("SAE_PEERS_PYTHON")
DEAD = 7


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """A run of three members. One feature of the first member is made silent."""
    run = trained(tmp_path_factory.mktemp("neuronpedia") / "run", cache, *THREE_KINDS, "--epochs", "2")
    dictionary = run.dictionary(next(iter(run.members)))
    dictionary.tensors["W_enc"][:, DEAD], dictionary.tensors["b_enc"][DEAD] = 0, -1
    save_dictionary(dictionary, run.path / "members" / dictionary.name)
    return run


@pytest.fixture(scope="module")
def member(run):
    return next(iter(run.members))


@pytest.fixture(scope="module")
def exported(run, member, cache, tmp_path_factory):
    """The export of a member by the command, with 32 features per file."""
    to = tmp_path_factory.mktemp("exported") / "new" / "pages"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuronpedia, "BATCH", 32)
        argv = ["export", str(run.path), "--member", member, "--to", str(to), "--neuronpedia"]
        main.main([*argv, "--cache-dir", str(cache)])
    return to


def strict(text: str):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def pages(exported):
    batches = [strict((exported / f"batch-{i}.json").read_text()) for i in range(2)]
    assert [len(batch["features"]) for batch in batches] == [32, 16]
    found = [page for batch in batches for page in batch["features"]]
    assert [page["feature_index"] for page in found] == list(range(48))
    return found


def test_figures_are_those_of_the_weights_and_of_all_rows(run, member, cache, pages):
    store, tensors, model = run.store(run.site(member), cache), run.dictionary(member).tensors, run.language_model
    x_NxD = np.concatenate([split.read(0, len(split)) for split in (store.train, store.held_out)]).astype(np.float32)
    f_NxF = np.asarray(run.dictionary(member).sae.encode(x_NxD), np.float64)
    for feature in (0, 20, 47):
        page, f_N = pages[feature], f_NxF[:, feature]
        fires_N, decoder_D = f_N > 0, tensors["W_dec"][feature]
        assert page["frac_nonzero"] == pytest.approx(fires_N.mean()) and fires_N.any()
        middles = np.array(page["freq_hist_data_bar_values"])
        edges = np.append(middles - middles[0], 2 * middles[-1] - middles[-2] + middles[0])
        assert 32 <= len(middles) <= 64 and edges[-2] <= f_N.max() <= edges[-1]
        heights, _ = np.histogram(f_N[fires_N], edges)
        np.testing.assert_allclose(np.cumsum(page["freq_hist_data_bar_heights"]), np.cumsum(heights), atol=2)
        assert sum(page["freq_hist_data_bar_heights"]) == fires_N.sum()
        assert page["vector"] == pytest.approx(decoder_D, abs=1e-5 * float(np.abs(decoder_D).max()))
        assert page["neuron_alignment_indices"] == np.argsort(-decoder_D)[:3].tolist()
        shares = np.sort(decoder_D)[::-1][:3] / np.abs(decoder_D).sum()
        assert page["neuron_alignment_l1"] == pytest.approx(np.abs(shares), abs=1e-4)
        logits_V = logit_weights(model, decoder_D[None])[0]
        assert page["pos_values"] == pytest.approx(np.sort(logits_V)[::-1][:10], rel=2e-3)
        assert page["pos_str"][0] == clean(model.tokenizer.decode([int(logits_V.argmax())]))
        assert page["neg_values"] == pytest.approx(np.sort(logits_V)[:10], rel=2e-3)
        assert sum(page["logits_hist_data_bar_heights"]) == len(logits_V)
        for other, phi, cosine in zip(
            page["correlated_features_indices"],
            page["correlated_features_pearson"],
            page["correlated_features_l1"],
            strict=True,
        ):
            both = f_NxF[:, [feature, other]] != 0
            assert phi == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-3)
            assert cosine == pytest.approx(both.all(1).sum() / np.sqrt(np.prod(both.sum(0))), abs=1e-3)
        assert (page["n_prompts_total"], page["n_tokens_in_prompt"]) == (len(x_NxD) // 9, 10)


def test_contexts_have_the_features_own_value_at_every_token(run, member, cache, pages):
    store, of = run.store(run.site(member), cache), load_or_compute_features(run, [member], cache)[member]
    sae, tokenizer = run.dictionary(member).sae, run.language_model.tokenizer
    for feature in (0, 20, 47):
        activations = pages[feature]["activations"]
        top = [a for a in activations if a["bin_min"] == a["bin_contains"] == -1]
        assert activations[: len(top)] == top and len(top) == (of.top_row_FxK[feature] >= 0).sum()
        for activation, row in zip(top, of.top_row_FxK[feature].tolist(), strict=False):
            tokens_T, position, _ = place(store, row)
            assert activation["tokens"] == [clean(tokenizer.decode([token])) for token in tokens_T]
            assert activation["qualifying_token_index"] == position
            split, own = (store.train, row) if row < len(store.train) else (store.held_out, row - len(store.train))
            window_PxD = split.read(own // 9 * 9, own // 9 * 9 + 9).astype(np.float32)
            expected = np.asarray(sae.encode(window_PxD), np.float64)[:, feature]
            assert activation["values"] == pytest.approx([0, *expected], abs=1e-3 * expected.max())
            assert activation["bin_max"] == pytest.approx(of.max_F[feature])
        bands = [(a["bin_min"], a["bin_max"], a["bin_contains"]) for a in activations[len(top) :]]
        assert bands == sorted(bands, key=lambda band: -band[1]) and 1 <= len(set(bands)) <= 5
        assert all(share <= pages[feature]["frac_nonzero"] for _, _, share in bands)
        for activation in activations[len(top) :]:
            value = activation["values"][activation["qualifying_token_index"]]
            assert activation["bin_min"] - 1e-3 <= value <= activation["bin_max"] * 1.001
        shown = ["".join(a["tokens"]) for a in activations]
        assert len({*shown}) == len(shown)


def test_a_silent_feature_has_a_page_without_contexts(pages):
    page = pages[DEAD]
    assert page["frac_nonzero"] == 0 and page["activations"] == page["freq_hist_data_bar_heights"] == []
    assert len(page["pos_str"]) == 10 and page["correlated_features_indices"] == []


def test_an_export_is_reproducible_and_refuses_an_existing_directory(
    run, member, cache, exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(neuronpedia, "BATCH", 32)
    export(run, member, tmp_path / "again", cache)
    first, again = files_of(exported), files_of(tmp_path / "again")
    assert {name: content for name, (content, _) in first.items()} == {n: content for n, (content, _) in again.items()}
    with pytest.raises(InputError, match="already exists: choose a new or an empty"):
        export(run, member, tmp_path / "again", cache)
    argv = ["export", str(run.path), "--to", str(tmp_path / "other"), "--neuronpedia", "--cache-dir", str(cache)]
    with pytest.raises(InputError, match="--member is missing"):
        main.main(argv)
    with pytest.raises(InputError, match="not the pages of --neuronpedia"):
        main.main([*argv, "--member", member, "--push-to-hub", "me/saes"])
    monkeypatch.setattr(neuronpedia.Pages, "page", lambda self, feature: {"value": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        export(run, member, tmp_path / "other", cache)
    assert {path.name for path in tmp_path.iterdir()} == {"again"}  # nothing incomplete is left


@pytest.mark.parametrize("longest", [6, 128])
def test_a_long_window_is_cut_around_the_row(tmp_path, monkeypatch, longest):
    """Values have both signs. Windows have 9 tokens, of which the first has no row."""
    monkeypatch.setattr(feature_values_module, "LONGEST", longest)
    monkeypatch.setattr(feature_values_module, "rows_at_once", lambda features: 64)
    store, rng = make_store(tmp_path, windows=60), np.random.default_rng(0)
    W_FxD = rng.standard_normal((5, store.d_model)).astype(np.float32)
    zeros = {"b_enc": np.zeros(5, np.float32), "b_dec": np.zeros(store.d_model, np.float32)}
    sae = KINDS["abs_topk"]({"W_encT": W_FxD, "W_dec": W_FxD, **zeros}, {"k": np.int32(2)}, "k", 2)
    splits = (store.train, store.held_out)
    f_NxF = np.concatenate([np.asarray(sae.encode(split.read(0, len(split)).astype(np.float32))) for split in splits])
    assert (f_NxF < 0).any() and (f_NxF > 0).any()
    rows_C, feature_C = rng.permutation(len(f_NxF))[:40], rng.integers(0, 5, 40)
    found = feature_values(sae, store, feature_C, rows_C)
    assert found.value_CxL.shape == (40, min(longest, 9))
    for number, (row, feature) in enumerate(zip(rows_C.tolist(), feature_C.tolist(), strict=True)):
        tokens_L, at = context_tokens(store, found, number, row)
        tokens_T, position, _ = place(store, row)
        start = position - at
        assert tokens_L.tolist() == tokens_T[start : start + min(longest, 9)].tolist()
        window_T = np.concatenate([[0], f_NxF[row // 8 * 8 : row // 8 * 8 + 8, feature]])
        np.testing.assert_allclose(found.value_CxL[number], window_T[start : start + min(longest, 9)], rtol=1e-5)
        assert found.value_CxL[number, at] == pytest.approx(f_NxF[row, feature])


def test_tokens_that_a_database_cannot_hold():
    assert clean("a\0b\ud800c</script>\u2028") == "a\ufffdb\ufffdc</script>\u2028"


def test_rounding_keeps_four_digits_of_the_largest_value():
    assert rounded(np.array([0.000123456, -0.00001, 0])) == [0.0001235, -0.00001, 0.0]
    assert rounded(np.array([12345.6, 0.4, -0.4])) == [12350.0, 0.0, 0.0]
    assert str(rounded(np.array([100.0, -1e-9]))) == "[100.0, 0.0]"


@pytest.mark.slow
@pytest.mark.skipif(PEERS is None, reason="SAE_PEERS_PYTHON: an interpreter with sae-dashboard")
def test_saedashboard_reads_every_batch_and_would_write_the_same(exported):
    """Needs `pip install --no-deps sae-dashboard==0.8.0`, whose classes refuse unknown fields."""
    for path in sorted(exported.glob("batch-*.json")):
        done = subprocess.run([PEERS, ROOT / "tests" / "peers" / "saedashboard_batch.py", path], capture_output=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert strict(done.stdout) == strict(path.read_text())
