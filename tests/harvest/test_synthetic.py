"""Rows of known features have the requested statistics, and dictionaries are scored correctly against them."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.quality.ground_truth import compare
from harvest.errors import InputError
from harvest.store import ActivationStore
from harvest.synthetic import (
    SHARD_ROWS,
    SyntheticRequest,
    Truth,
    World,
    firing_probabilities,
    store_name,
    synthesize,
    trees,
)

SMALL = SyntheticRequest(
    n_features=48, d_model=24, p_min=0.01, n_roots=8, train_rows=3000, held_out_rows=2500, noise_std=0.0
)


def firings(request: SyntheticRequest, rows: int) -> np.ndarray:
    return World(request).fires(np.random.default_rng(5), rows)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0])
def test_features_fire_with_the_requested_frequency(exclusive, scale):
    request = replace(SMALL, exclusive=exclusive, correlation_scale=scale)
    p_G, rows = firing_probabilities(request), 100_000
    assert p_G[0] == pytest.approx(request.p_max) and p_G[-1] == pytest.approx(request.p_min)
    deviations_G = (firings(request, rows).mean(0) - p_G) / np.sqrt(p_G * (1 - p_G) / rows)
    assert np.abs(deviations_G).max() < 4.5  # for 48 features, exceeded by chance in one of 3,000 cases
    assert np.square(deviations_G).mean() < 2


def test_about_ten_of_the_default_features_are_active_on_a_row():
    assert 9 < firing_probabilities(SyntheticRequest()).sum() < 11


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_child_fires_only_where_its_parent_does(exclusive):
    request = replace(SMALL, exclusive=exclusive)
    parents_G, levels_G = trees(request)
    fires_NxG = firings(request, 50_000)
    children = np.flatnonzero(parents_G >= 0)
    assert set(levels_G[children]) == {1, 2} and len(children) == 40
    assert not (fires_NxG[:, children] & ~fires_NxG[:, parents_G[children]]).any()
    together = [
        (fires_NxG[:, a] & fires_NxG[:, b]).any()
        for a in children
        for b in children
        if a < b and parents_G[a] == parents_G[b]
    ]
    assert len(together) == 8 + 12  # the roots, and the first 12 of their 16 children
    assert not any(together) if exclusive else any(together)


def test_features_fire_together_according_to_their_correlation():
    request = replace(SMALL, n_roots=0, correlation_rank=3, correlation_scale=0.5, p_min=0.05)
    factors_GxR = World(request).factors_GxR
    asked_GxG = np.triu(factors_GxR @ factors_GxR.T, 1)
    found_GxG = np.corrcoef(firings(request, 100_000).T)
    strong = np.abs(asked_GxG) > 0.3
    assert (asked_GxG[strong] > 0).sum() > 20 and (asked_GxG[strong] < 0).sum() > 20
    np.testing.assert_array_equal(np.sign(found_GxG[strong]), np.sign(asked_GxG[strong]))


def test_rows_are_the_bias_and_magnitudes_times_directions_and_noise(tmp_path):
    store = synthesize(replace(SMALL, store_dtype="float32"), tmp_path)
    truth = Truth.load(store)
    magnitudes = []
    for x_D, fires_G in zip(store.held_out.read(0, 400), truth.fires(0, 400), strict=True):
        active_KxD = truth.directions_GxD[fires_G]
        a_K = np.linalg.lstsq(active_KxD.T, x_D - truth.bias_D, rcond=None)[0]
        np.testing.assert_allclose(a_K @ active_KxD + truth.bias_D, x_D, atol=1e-5)
        magnitudes.extend(a_K)
    assert len(magnitudes) > 1000 and min(magnitudes) > 0
    assert np.mean(magnitudes) == pytest.approx(SMALL.magnitude_mean, abs=0.03)
    assert np.std(magnitudes) == pytest.approx(SMALL.magnitude_std, abs=0.03)
    noisy = synthesize(replace(SMALL, store_dtype="float32", noise_std=0.3, magnitude_std=0.0), tmp_path)
    clean_NxD = Truth.load(noisy).fires(0, 2500) @ truth.directions_GxD * SMALL.magnitude_mean + truth.bias_D
    noise_NxD = noisy.held_out.read(0, 2500) - clean_NxD
    assert noise_NxD.std() == pytest.approx(0.3, rel=0.02) and abs(noise_NxD.mean()) < 0.01


def test_directions_are_of_norm_one_and_further_apart_than_random_ones():
    def closest(request: SyntheticRequest) -> float:
        directions_GxD = World(request).directions_GxD
        np.testing.assert_allclose(np.linalg.norm(directions_GxD, axis=1), 1, atol=1e-5)
        return float((np.abs(directions_GxD @ directions_GxD.T) - np.eye(len(directions_GxD))).max(1).mean())

    assert closest(SMALL) < 0.9 * closest(replace(SMALL, orthogonal_steps=0))


def test_synthetic_rows_are_reproducible(tmp_path):
    def content(store: ActivationStore) -> dict[str, bytes]:
        return {str(p.relative_to(store.directory)): p.read_bytes() for p in store.directory.rglob("*") if p.is_file()}

    one, two = (synthesize(SMALL, tmp_path / name) for name in "ab")
    assert content(one) == content(two) and "features.npz" in content(one)
    other = synthesize(replace(SMALL, seed=1), tmp_path / "a")
    assert (Truth.load(other).directions_GxD != Truth.load(one).directions_GxD).any()
    rows = [World(replace(SMALL, correlation_scale=0.0, seed=seed)).shard("train", 0, 9)[1] for seed in (0, 1)]
    assert (rows[0] != rows[1]).any()  # the random draws differ too, not only the directions
    assert (one.held_out.read(0, 9) != one.train.read(0, 9)).any()


def test_a_finished_synthetic_store_is_reused(tmp_path):
    store = synthesize(SMALL, tmp_path)
    assert (len(store.train), len(store.held_out)) == (3000, 2500)
    store.verify()
    again = synthesize(SMALL, tmp_path, on_progress=lambda *_: pytest.fail("made again"))
    assert again.directory == store.directory


@pytest.mark.parametrize("rows_done", [SHARD_ROWS, SHARD_ROWS + 100, SHARD_ROWS + 2600])
def test_a_stopped_synthesis_continues(tmp_path, rows_done):
    class Stopped(Exception):
        pass

    def stop(_, done, total):
        if done == rows_done:
            raise Stopped

    request = replace(SMALL, train_rows=SHARD_ROWS + 100)
    with pytest.raises(Stopped):
        synthesize(request, tmp_path, on_progress=stop)
    first = tmp_path / "activations" / store_name(request) / "train" / "rows-00000.npy"
    made = first.stat().st_mtime_ns
    resumed = synthesize(request, tmp_path)
    assert first.stat().st_mtime_ns == made
    whole = synthesize(request, tmp_path / "whole")
    assert (resumed.directory / "manifest.json").read_bytes() == (whole.directory / "manifest.json").read_bytes()
    np.testing.assert_array_equal(Truth.load(resumed).fired, Truth.load(whole).fired)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_features": 0}, "n_features 0: must be 1 or more"),
        ({"p_min": 0.5}, "p_min 0.5: must be over 0, at most p_max"),
        ({"exponent": float("nan")}, "exponent nan: must be a positive number"),
        ({"noise_std": -1.0}, "noise_std -1.0: must be 0 or"),
        ({"n_roots": 49}, "n_roots 49: must be 0 to n_features"),
        ({"store_dtype": "int4"}, "store_dtype int4: must be one of float16, bfloat16, float32, int8"),
        ({"branching": 5}, "branching 5: the exclusive children of feature .* exclusive=False"),
    ],
)
def test_invalid_requests_are_refused_with_the_value(changes, said):
    with pytest.raises(InputError, match=said):
        replace(SMALL, **changes)


def test_rows_too_large_for_float16_are_in_float32(tmp_path):
    store = synthesize(replace(SMALL, magnitude_mean=1e5), tmp_path)
    assert store.manifest["dtype"] == "float32" and store.train.read(0, len(store.train)).max() > 1e5


def test_importing_it_loads_neither_torch_nor_jax():
    code = "import sys, harvest.synthetic; print([m for m in ('torch', 'jax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Truth:
    return Truth.load(synthesize(SMALL, tmp_path_factory.mktemp("truth")))


def scores(result) -> list[float]:
    return [result.mean_max_cosine, result.mcc, result.f1, result.precision, result.recall]


def test_the_true_features_score_one_and_random_ones_by_chance(truth):
    fires_NxG = truth.fires(0, 2500)
    assert scores(compare(3 * truth.directions_GxD, 0.5 * fires_NxG, truth)) == pytest.approx([1] * 5, abs=1e-6)
    rng = np.random.default_rng(0)
    shuffled_NxG = np.stack([rng.permutation(column_N) for column_N in fires_NxG.T], 1)
    shuffled_NxG = shuffled_NxG[:, rng.permutation(48)]
    chance = compare(rng.standard_normal((48, 24)), shuffled_NxG, truth)
    angles_KxD = rng.standard_normal((20_000, 24))
    cosines_K = np.abs(angles_KxD[:, 0]) / np.linalg.norm(angles_KxD, axis=1)
    expected = cosines_K[rng.integers(0, 20_000, (2000, 48))].max(1).mean()
    assert chance.mean_max_cosine == pytest.approx(expected, abs=0.03)
    assert chance.mcc < chance.mean_max_cosine
    assert max(chance.f1, chance.precision, chance.recall) < 3 * firing_probabilities(SMALL).mean()


def test_a_smaller_dictionary_is_scored_on_the_pairs_it_can_have(truth):
    fires_NxG = truth.fires(0, 2500)
    half = compare(truth.directions_GxD[::2], fires_NxG[:, ::2], truth)
    assert (half.pairs, half.mcc, half.f1) == (24, pytest.approx(1), pytest.approx(1))
    assert half.mean_max_cosine < 0.8


def test_precision_and_recall_count_false_and_missed_firings(truth):
    fires_NxG = truth.fires(0, 2500)
    missing_NxG = fires_NxG.copy()
    missing_NxG[:1250] = False
    missed = compare(truth.directions_GxD, missing_NxG, truth)
    assert missed.precision == pytest.approx(1)
    assert missed.recall == pytest.approx((fires_NxG[1250:].sum(0) / fires_NxG.sum(0)).mean())
    always = compare(truth.directions_GxD, np.ones_like(fires_NxG), truth)
    p_G = fires_NxG.mean(0)
    assert (always.recall, always.precision) == (pytest.approx(1), pytest.approx(p_G.mean()))
    assert always.f1 == pytest.approx((2 * p_G / (1 + p_G)).mean())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(30, 70), data=st.data())
def test_scores_do_not_depend_on_order_sign_or_scale_of_the_features(truth, seed, width, data):
    rng = np.random.default_rng(seed)
    near_FxD = truth.directions_GxD[rng.integers(0, 48, width)] + 0.2 * rng.standard_normal((width, 24))
    features_NxF = np.maximum(0, rng.standard_normal((2500, width)) - 1)
    order_F = np.array(data.draw(st.permutations(range(width))))
    factors_F = rng.uniform(0.1, 10, width) * rng.choice([-1, 1], width)
    before = compare(near_FxD, features_NxF, truth)
    after = compare((near_FxD * factors_F[:, None])[order_F], (features_NxF / np.abs(factors_F))[:, order_F], truth)
    assert scores(after) == pytest.approx(scores(before), abs=1e-5)
    assert after.pairs == before.pairs == min(width, 48)


def test_features_of_other_rows_and_stores_of_other_rows_are_refused(truth, tmp_path):
    with pytest.raises(InputError, match=r"features_held_out must have shape .* = .2500, 48. .*not .100, 48."):
        compare(truth.directions_GxD, truth.fires(0, 100), truth)
    store = synthesize(replace(SMALL, seed=9), tmp_path)
    (store.directory / "features.npz").unlink()
    with pytest.raises(InputError, match="no features.npz"):
        Truth.load(store)
