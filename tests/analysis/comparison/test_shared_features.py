"""Matching of features and comparison of members, on dictionaries with planted common features."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rows import make_store
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from analysis.comparison import matching, shared_features
from analysis.comparison.matching import Decoder, correlations, cosines, match, sparse_activations, spread_rows
from analysis.geometry import random_like, unit
from analysis.plots.comparison import shared_features_chart
from analysis.plots.style import save
from harvest.errors import InputError
from sae_jax.models.registry import KINDS

F, D = 300, 96


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def directions(rng, count: int = F, d: int = D) -> np.ndarray:
    return unit(rng.standard_normal((count, d)))


def partner_of(rng, a_FxD: np.ndarray, shared: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(decoder, partners [F]): `shared` rows are noisy rows of a; their partners are these rows of a, −1 for others."""
    b_FxD = directions(rng, *a_FxD.shape)
    b_FxD[:shared] = unit(a_FxD[:shared] + noise * directions(rng, shared, a_FxD.shape[1]))
    order = rng.permutation(len(b_FxD))
    return b_FxD[order], np.where(order < shared, order, -1)


def decoder(W_dec_FxD: np.ndarray, dead: tuple[int, ...] = (), **settings) -> Decoder:
    alive_F = ~np.isin(np.arange(len(W_dec_FxD)), dead)
    told = {"activation": "topk", "hidden_dim": len(W_dec_FxD), "seed": 0} | settings
    return Decoder(told, 3 * W_dec_FxD, alive_F)  # norms are not part of a direction


# Matching.


@pytest.mark.parametrize("slice_size", [64, 1024])
def test_planted_partners_are_found_and_nothing_else(rng, monkeypatch, slice_size):
    monkeypatch.setattr(matching, "SLICE", slice_size)
    a_FxD = directions(rng)
    b_FxD, truth_G = partner_of(rng, a_FxD, 180, noise=0.6)
    f_P, g_P, cosine_P = match(cosines(a_FxD, b_FxD).pairs_FxG)
    same = cosine_P >= 0.7
    assert same.sum() == 180 and (truth_G[g_P[same]] == f_P[same]).all()
    np.testing.assert_allclose(cosine_P, (a_FxD[f_P] * b_FxD[g_P]).sum(1), atol=1e-6)
    assert len(set(f_P)) == len(f_P) and len(set(g_P)) == len(g_P)


def test_matching_by_components_equals_matching_the_whole_matrix(rng):
    base_FxD = unit(rng.standard_normal((F, 24)))  # so few dimensions that all pairs above 0.3 are one component
    b_FxD, _ = partner_of(rng, base_FxD, 200, noise=0.8)
    cosine_FxG = base_FxD @ b_FxD.T
    floored_FxG = np.where(cosine_FxG >= matching.FLOOR, cosine_FxG, 0)
    row, column = linear_sum_assignment(floored_FxG, maximize=True)
    f_P, g_P, cosine_P = match(cosines(base_FxD, b_FxD).pairs_FxG)
    assert cosine_P.sum() == pytest.approx(floored_FxG[row, column].sum(), rel=1e-6)
    apart = np.array([[0.9, 0.8, 0, 0], [0.8, 0.31, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0]])  # best total: 0.8 + 0.8
    assert [part.tolist() for part in match(csr_array(apart))] == [[0, 1, 2], [1, 0, 2], [0.8, 0.8, 0.5]]


def test_a_higher_floor_splits_a_large_component(rng, monkeypatch):
    a_FxD = unit(rng.standard_normal((F, 24)))
    b_FxD, truth_G = partner_of(rng, a_FxD, 200, noise=0.4)
    whole = match(cosines(a_FxD, b_FxD).pairs_FxG)
    monkeypatch.setattr(matching, "LARGEST", 100)
    parts = match(cosines(a_FxD, b_FxD).pairs_FxG)
    for f_P, g_P, cosine_P in (whole, parts):
        assert (truth_G[g_P[cosine_P >= 0.8]] == f_P[cosine_P >= 0.8]).all() and (cosine_P >= 0.8).sum() == 200
    assert len(parts[0]) < len(whole[0])


def test_correlations_are_pearsons(rng, monkeypatch):
    monkeypatch.setattr(matching, "SLICE", 7)
    a_NxF = rng.random((500, 20)) * (rng.random((500, 20)) < 0.2)
    b_NxG = np.concatenate([a_NxF[:, :5] * 2 + 1e-3 * rng.random((500, 5)), rng.random((500, 7)) - 0.5], axis=1)
    b_NxG[:, 11] = 3.0  # constant
    found = correlations(csr_array(a_NxF), csr_array(b_NxG))
    expected_FxG = np.nan_to_num(np.corrcoef(a_NxF.T[:, :], b_NxG[:, :11].T)[:20, 20:])
    np.testing.assert_allclose(found.best_F, np.maximum(expected_FxG.max(1), 0), atol=1e-9)
    np.testing.assert_allclose(found.best_G, [*expected_FxG.max(0), 0], atol=1e-9)
    assert found.best_G[11] == 0
    np.testing.assert_allclose(found.pairs_FxG.toarray()[:, :11], np.where(expected_FxG >= 0.3, expected_FxG, 0))


def test_random_directions_have_the_requested_covariance(rng):
    a_FxD = unit(rng.standard_normal((F, 8)) * np.linspace(3, 0.3, 8) + np.eye(8)[0])
    drawn_FxD = random_like(a_FxD, 50_000, rng)
    np.testing.assert_allclose(np.linalg.norm(drawn_FxD, axis=1), 1, atol=1e-5)
    assert np.corrcoef((a_FxD.T @ a_FxD / F).ravel(), (drawn_FxD.T @ drawn_FxD / 50_000).ravel())[0, 1] > 0.99


def test_activations_of_a_store_are_those_of_its_rows(tmp_path, rng):
    store = make_store(tmp_path / "store")
    params = {"W_encT": directions(rng, 40, 32), "W_dec": directions(rng, 40, 32)}
    params |= {"b_enc": np.zeros(40, np.float32), "b_dec": np.zeros(32, np.float32)}
    sae = KINDS["relu"](params)
    found = sparse_activations(spread_rows(store.train), {"a": sae, "b": sae})
    rows_NxD = store.train.read(0, len(store.train)).astype(np.float32)
    np.testing.assert_allclose(found["b"].toarray(), np.maximum(rows_NxD @ params["W_encT"].T, 0), atol=1e-4)
    with pytest.raises(InputError, match="no rows"):
        sparse_activations([], {"a": sae})


def test_rows_are_spread_evenly(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store")
    monkeypatch.setattr(matching, "CHUNK_ROWS", 100)
    firsts = [chunk[0] for chunk in spread_rows(store.train, 500)]
    assert len(firsts) == 5
    expected = store.train[np.linspace(0, -(-len(store.train) // 100) - 1, 5).round().astype(int) * 100]
    np.testing.assert_array_equal(firsts, expected)


# Comparison of members.


def population(rng) -> dict[str, Decoder]:
    """Two seeds of relu and topk, and a narrower topk. All share 200 features, seeds of one kind share 240."""
    base_FxD = directions(rng)
    members = {"topk-0": decoder(base_FxD)}
    members["topk-1"] = decoder(partner_of(rng, base_FxD, 240, 0.3)[0], seed=1)
    members["relu-0"] = decoder(partner_of(rng, base_FxD, 200, 0.3)[0], activation="relu")
    members["half"] = decoder(base_FxD[:150])
    return members


def test_shares_of_a_population_and_its_groups(rng):
    found = shared_features.compute_shared_features(population(rng))
    np.testing.assert_allclose(found.shared_MxM[0], [1, 240 / F, 200 / F, 0.5], atol=1e-9)
    assert found.shared_MxM[3, 0] == 1 and found.shared_MxM[0, 3] == 0.5
    assert found.chance_MxM.max() == 0 and found.rows == 0 and found.shared_by_activation_MxM is None
    assert found.mmcs_MxM[3, 0] == pytest.approx(1, abs=1e-6) and 0.5 < found.mmcs_MxM[0, 3] < 0.8
    groups = {group.differ: group for group in found.groups}
    assert list(groups)[:3] == ["other kind", "other seed", "other width"] and groups["other seed"].pairs == 1
    assert groups["other seed"].shared.mean == 240 / F and groups["other seed"].shared.deviation is None
    assert groups["other width"].shared.mean == 0.75
    assert sum(group.pairs for group in found.groups) == 6
    assert found.labels == tuple(
        f"{kind}, {width} features, seed {seed}"
        for kind, width, seed in (("topk", 300, 0), ("topk", 300, 1), ("relu", 300, 0), ("topk", 150, 0))
    )


def test_dead_features_are_neither_counted_nor_found(rng):
    a_FxD = directions(rng)
    members = {"a": decoder(a_FxD, dead=(0, 1, 2)), "b": decoder(a_FxD, dead=(2, 3), seed=1)}
    found = shared_features.compute_shared_features(members)
    assert found.alive == (F - 3, F - 2)
    assert found.shared_MxM[0, 1] == (F - 4) / (F - 3) and found.shared_MxM[1, 0] == (F - 4) / (F - 2)
    assert found.partner_FxM["a"][:6, 1].tolist() == [-1, -1, -1, -1, 4, 5]
    assert found.found_again_F["a"][:6].tolist() == [0, 0, 0, 0, 1, 1] and found.other_seeds == {"a": 1, "b": 1}


def test_stability_counts_the_other_seeds_that_have_a_feature(rng):
    a_FxD = directions(rng)
    twice_FxD, once_FxD = directions(rng), directions(rng)
    twice_FxD[:100], once_FxD[:50] = a_FxD[:100], a_FxD[49::-1]
    counts = shared_features.stability_of({0: a_FxD, 1: twice_FxD, 2: once_FxD})
    assert counts[0].tolist() == [2] * 50 + [1] * 50 + [0] * (F - 100)
    assert counts[2].tolist() == [2] * 50 + [0] * (F - 50)


def test_features_are_also_matched_by_activation(rng):
    a_NxF = rng.random((2000, 60)) * (rng.random((2000, 60)) < 0.1)
    b_NxF = a_NxF[:, ::-1].copy()
    b_NxF[:, :20] = rng.random((2000, 20)) * (rng.random((2000, 20)) < 0.1)
    a_FxD = directions(rng, 60)
    b_FxD = a_FxD[::-1].copy()
    b_FxD[40:] = directions(rng, 20)  # features 0 to 19 share directions, 20 to 59 share activations
    members = {"a": decoder(a_FxD), "b": decoder(b_FxD, seed=1)}
    found = shared_features.compute_shared_features(members, {"a": csr_array(a_NxF), "b": csr_array(b_NxF)})
    assert found.shared_MxM[0, 1] == pytest.approx(40 / 60) == found.shared_by_activation_MxM[0, 1]
    assert found.confirmed_MxM[0, 1] == 0.5 and found.rows == 2000
    with pytest.raises(InputError, match="3 and 2000 rows"):
        shared_features.compute_shared_features(members, {"a": csr_array(a_NxF), "b": csr_array(b_NxF[:3])})
    with pytest.raises(InputError, match="no activations of b"):
        shared_features.compute_shared_features(members, {"a": csr_array(a_NxF)})


def test_members_that_share_nothing_by_direction_have_nothing_to_confirm(rng):
    fired = {name: csr_array(rng.random((50, F)) < 0.1, dtype=np.float32) for name in "ab"}
    found = shared_features.compute_shared_features(
        {name: decoder(directions(rng), seed=s) for s, name in enumerate("ab")}, fired
    )
    assert found.shared_MxM[0, 1] == 0 and np.isnan(found.confirmed_MxM[0, 1]) and found.confirmed_MxM[0, 0] == 1


def test_files_and_figures(rng, tmp_path):
    found = shared_features.compute_shared_features(population(rng))
    shared_features.write_shared_features(found, tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["shared_MxM"] == found.shared_MxM.tolist() and record["groups"][0]["differ"] == "other kind"
    with np.load(tmp_path / "comparison.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["topk-0/partner"], found.partner_FxM["topk-0"])
    again = shared_features.read_shared_features(tmp_path, found.members)
    for name, value in vars(found).items():
        np.testing.assert_equal(getattr(again, name), value)
    assert shared_features.read_shared_features(tmp_path, found.members[1:]) is None, (
        "of other members it tells nothing"
    )
    shared_features.write_shared_features(dataclasses.replace(found, dead=("topk-9",)), tmp_path)
    assert shared_features.read_shared_features(tmp_path, found.members) is None, (
        "one of which nothing fires is a member, too"
    )
    assert shared_features.read_shared_features(tmp_path, ["topk-9", *found.members]).dead == ("topk-9",)
    for path in save(shared_features_chart(found), tmp_path / "shared"):
        assert path.stat().st_size > 1000
    assert ">80<" in Path(tmp_path / "shared.svg").read_text()  # the cell of 240 of 300 features


def test_incomparable_members_are_refused(rng):
    with pytest.raises(InputError, match="two or more members"):
        shared_features.compute_shared_features({"a": decoder(directions(rng))})
    with pytest.raises(InputError, match="96 and 50 dimensions"):
        shared_features.compute_shared_features(
            {"a": decoder(directions(rng)), "b": decoder(directions(rng, d=50), seed=1)}
        )
    with pytest.raises(InputError, match="never fire"):
        decoder(directions(rng, 3), dead=(0, 1, 2))
