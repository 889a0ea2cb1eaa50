"""The page of a feature of a real run, compared with the run's arrays in numpy."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import THREE_KINDS, shared_cache, trained

from analysis.comparison import shared_features
from analysis.comparison.matching import Decoder
from analysis.features.contexts import token_texts
from analysis.features.statistics import Features, load_or_compute_features
from analysis.pages import feature as feature_page
from analysis.pages import feature_table
from analysis.runs.families import settings_of
from analysis.ui.dashboard import feature_figures
from harvest.model.logit_weights import logit_weights
from harvest.model.tokenizer import load_tokenizer
from sae_jax.training.snapshots import read_snapshots


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    run = trained(tmp_path_factory.mktemp("page") / "run", cache, *THREE_KINDS, "--epochs", "2", "--seed", "0", "1")
    load_or_compute_features(run, list(run.members), cache)
    return run


@pytest.fixture(scope="module")
def compared(run):
    features = {name: saved(run, name) for name in run.members}
    decoders = {
        name: Decoder(settings_of(run, run.members[name]), run.dictionary(name).tensors["W_dec"], of.alive_F)
        for name, of in features.items()
    }
    return shared_features.compute_shared_features(decoders)


def saved(run, name) -> Features:
    of = Features.load(run.path / "analysis" / "features" / f"{name}.npz", mapped=True)
    assert of is not None
    return of


def page_of(run, cache, name, feature, compared=None, of=None):
    tokenizer, store = load_tokenizer(run.model_location), run.store(run.site(name), cache)
    return feature_page.compute_feature_page(
        run, name, feature, of or saved(run, name), run.dictionary(name), store, tokenizer, compared
    )


def frequent(of: Features) -> int:
    return int(np.abs(of.density_F - 0.2).argmin())


def test_mapped_statistics_equal_the_saved_ones(run):
    for name in run.members:
        path = run.path / "analysis" / "features" / f"{name}.npz"
        whole, mapped = Features.load(path), saved(run, name)
        assert isinstance(mapped.top_row_FxK, np.memmap) and mapped.rows == whole.rows
        assert mapped.labels == whole.labels
        for field in ("density_F", "top_value_FxK", "promoted_FxT", "position_FxP"):
            np.testing.assert_array_equal(getattr(mapped, field), getattr(whole, field))


def test_each_token_of_a_context_has_the_activation_of_its_row(run, cache):
    for name in run.members:
        of, store, sae = saved(run, name), run.store(run.site(name), cache), run.dictionary(name).sae
        feature = frequent(of)
        page = page_of(run, cache, name, feature)
        x_NxD = np.concatenate([store.train.read(0, len(store.train)), store.held_out.read(0, len(store.held_out))])
        value_N = np.asarray(sae.encode(x_NxD.astype(np.float32)))[:, feature]
        documents, windows = np.concatenate([store.train.documents, store.held_out.documents]), []
        for band in page.bands:
            for context in band.contexts:
                (window,) = (
                    w
                    for w in np.flatnonzero(documents == context.document)
                    if np.allclose(value_N[w * 9 : w * 9 + 9], context.value_T[1:], atol=1e-4)
                    and token_texts(run.language_model.tokenizer, all_windows(store)[w]) == context.tokens
                )
                windows.append(window)
                assert context.value_T[0] == 0 and context.held_out == (window >= len(store.train.documents))
                assert context.value_T[context.peak] != 0
        assert len(set(windows)) == len(windows) > 10


def all_windows(store):
    return np.concatenate([store.train.windows, store.held_out.windows])


def test_contexts_are_of_the_whole_range_by_rank(run, cache):
    name = next(iter(run.members))
    of = saved(run, name)
    feature = frequent(of)
    strongest, *rest = page_of(run, cache, name, feature).bands
    assert strongest.share is None and strongest.high == pytest.approx(of.max_F[feature], rel=1e-4)
    assert sum(band.share for band in rest) == pytest.approx(1) and len(rest) == 5
    for above, below in zip(rest, rest[1:], strict=False):
        assert above.low >= below.high
    for band in rest:
        for context in band.contexts:
            assert band.low - 1e-3 <= context.value_T[context.peak] <= band.high + 1e-3


def test_the_strongest_tokens_are_those_of_the_strongest_contexts(run, cache):
    name = next(iter(run.members))
    for feature in np.argsort(-saved(run, name).density_F)[:5].tolist():
        page = page_of(run, cache, name, feature)
        peaks = [context.tokens[context.peak] for context in page.bands[0].contexts]
        assert page.strongest == list(dict.fromkeys(peaks))
        assert (
            json.loads(json.dumps(feature_page.as_json(saved(run, name), feature, page)))["strongest"] == page.strongest
        )


def test_the_page_agrees_with_the_comparison_and_the_snapshots(run, cache, compared):
    name = next(iter(run.members))
    of = saved(run, name)
    feature = frequent(of)
    page = page_of(run, cache, name, feature, compared)
    W = {member: run.dictionary(member).tensors["W_dec"] for member in run.members}
    U = {member: w / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-30) for member, w in W.items()}
    other = name.replace("-s0", "-s1")
    alive = saved(run, other).alive_F
    assert page.found_again == (int((U[other][alive] @ U[name][feature]).max() >= 0.7), 1)
    assert [twin.member for twin in page.twins] == [member for member in run.members if member != name]
    for twin in page.twins:
        assert (twin.feature is not None) <= (twin.cosine >= 0.7), "as found_again"
        if twin.feature is not None:
            assert twin.cosine == pytest.approx(U[twin.member][twin.feature] @ U[name][feature], abs=1e-3)
    best = page.neighbours[0]
    cosine_F = U[name] @ U[name][feature]
    cosine_F[feature] = -1
    assert best.feature == cosine_F.argmax() and best.similarity == pytest.approx(cosine_F.max(), abs=1e-4)
    snapshots = read_snapshots(run.path, name)
    assert [stage.step for stage in page.stages] == sorted(snapshots)
    final_D = snapshots[max(snapshots)].direction[feature]
    for stage in page.stages:
        cosine_F = snapshots[stage.step].direction @ final_D
        assert (stage.best, stage.own) == pytest.approx((cosine_F.max(), cosine_F[feature]), abs=1e-5)
    assert page.stages[-1].own == pytest.approx(1, abs=1e-3)
    assert dict(feature_figures.figures(of, feature, page.stages, 1)).keys() == {
        "histogram",
        "positions",
        "logits",
        "emergence",
    }


def test_figures_contain_the_data_of_the_page(run, cache):
    name = next(iter(run.members))
    features = saved(run, name)
    feature = frequent(features)
    drawn = {of: figure.to_dict()["data"]["values"] for of, figure in feature_figures.figures(features, feature, [], 1)}
    store = run.store(run.site(name), cache)
    raw_NxD = np.concatenate([split.read(0, len(split)) for split in (store.train, store.held_out)])
    f_N = np.asarray(run.dictionary(name).sae.encode(raw_NxD.astype(np.float32)))[:, feature]
    logits_V = logit_weights(run.language_model, run.dictionary(name).tensors["W_dec"][[feature]])[0]
    for bars, values in ((drawn["histogram"], f_N[f_N > 0]), (drawn["logits"], logits_V)):
        edges = [*(bar["from"] for bar in bars), bars[-1]["to"]]
        shares = np.histogram(values, edges)[0] / len(values)
        np.testing.assert_allclose(np.cumsum([bar["share"] for bar in bars]), np.cumsum(shares), atol=2 / len(values))
    shares = [row["share"] for row in drawn["positions"]]
    assert np.mean(shares) == pytest.approx(features.density_F[feature], rel=1e-6)


def test_the_input_score_and_the_largest_decoder_dimensions(run, cache):
    """The input score of Arad et al. equals a count in plain Python; the largest decoder dimensions are listed."""
    name = next(iter(run.members))
    of = saved(run, name)
    for feature in np.argsort(-of.density_F)[:5].tolist():
        page = page_of(run, cache, name, feature)
        peaks = [context.tokens[context.peak] for context in page.bands[0].contexts]
        promoted = {token for token, _ in page.promoted}
        assert page.input_score == pytest.approx(np.mean([peak in promoted for peak in peaks]))
        negative = page_of(run, cache, name, feature, of=replace(of, max_F=-of.max_F))  # as a feature of abs_topk
        suppressed = {token for token, _ in page.suppressed}
        assert negative.input_score == pytest.approx(np.mean([peak in suppressed for peak in peaks]))
        decoder_D = run.dictionary(name).tensors["W_dec"][feature]
        assert [of.neuron for of in page.aligned] == np.argsort(-decoder_D)[:3].tolist()
        assert page.aligned[0].share == pytest.approx(decoder_D.max() / np.abs(decoder_D).sum())


def test_a_list_is_searched_filtered_and_sorted(run):
    name = next(iter(run.members))
    of, tokenizer = saved(run, name), load_tokenizer(run.model_location)
    listed = feature_table.compute_feature_table(of, tokenizer)
    every = (0.0, 1.0)
    assert feature_table.choose_features(listed, "", every, -np.inf).tolist() == list(range(48))
    token = token_texts(tokenizer, [of.promoted_FxT[5, 0]])[0].strip()
    assert 5 in feature_table.choose_features(listed, token.upper(), every, -np.inf)
    found = feature_table.found_tokens(listed, 5, token.upper()).split(" · ")
    assert token.casefold() in {text.strip() for text in found} and len(found) < 21
    assert feature_table.found_tokens(listed, 5, "zqzq") == ""
    fires = frequent(of)
    strongest = token_texts(tokenizer, [of.strongest_FxK[fires, 0]])[0].strip()
    assert fires in feature_table.choose_features(listed, strongest, every, -np.inf)
    assert not len(feature_table.choose_features(listed, "no token is like this", every, -np.inf))
    by_density = feature_table.choose_features(listed, "", (0.05, 0.5), -np.inf, "most frequent")
    densities = of.density_F[by_density]
    assert (np.diff(densities) <= 0).all() and ((densities >= 0.05) & (densities <= 0.5)).all()
    assert len(by_density) == ((of.density_F >= 0.05) & (of.density_F <= 0.5)).sum() > 3
    special = feature_table.choose_features(listed, "", every, 0.1)
    assert (listed.specialization_F[special] >= 0.1).all()
