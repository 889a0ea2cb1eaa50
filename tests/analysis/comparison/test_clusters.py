"""The map and its clusters for directions in planted groups and for random directions, with and without UMAP."""

import json
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis.comparison import clusters
from analysis.geometry import neighbours, pca_of, unit
from analysis.plots.feature_map import clusters_chart
from analysis.plots.style import save
from harvest.errors import InputError

F, D, GROUPS, SIZE = 600, 96, 10, 25
there = pytest.mark.skipif(find_spec("umap") is None, reason="pip install -e '.[umap]'")
METHODS = (pytest.param(False, id="pca"), pytest.param(True, id="umap", marks=there))


def planted(cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Ten groups of 25 directions with this cosine to the group's centre, and 350 random ones (group −1), shuffled."""
    rng = np.random.default_rng(0)
    group_F = np.full(F, -1)
    group_F[: GROUPS * SIZE] = np.repeat(np.arange(GROUPS), SIZE)
    group_F = rng.permutation(group_F)
    x_FxD = unit(rng.standard_normal((F, D)))
    centres_GxD = unit(rng.standard_normal((GROUPS, D)))
    in_one = group_F >= 0
    x_FxD[in_one] = unit(centres_GxD[group_F[in_one]] + np.sqrt(1 / cosine**2 - 1) * x_FxD[in_one])
    return x_FxD, group_F


def tokens_of(group_F: np.ndarray) -> list[list[str]]:
    rng = np.random.default_rng(1)
    common = [" the", " a", "ing", " of"]
    return [
        [f" group{g}" if n % 3 else f"Group{g}", *rng.permutation(common)[:2]] if g >= 0 else [f"own{n}", " the"]
        for n, g in enumerate(group_F)
    ]


@pytest.mark.parametrize("use_umap", METHODS)
def test_planted_groups_are_found_and_named(use_umap):
    x_FxD, group_F = planted(0.75)
    found = clusters.compute_clusters(x_FxD * 5, np.ones(F, bool), tokens_of(group_F), use_umap=use_umap)
    in_one = group_F >= 0
    assert adjusted_rand_score(group_F[in_one], found.label_F[in_one]) > 0.95
    assert adjusted_rand_score(group_F, found.label_F) > 0.9
    assert len(found.names) == GROUPS and found.noise == pytest.approx(350 / F, abs=0.05)
    for label, name in enumerate(found.names):
        most = np.bincount(group_F[(found.label_F == label) & in_one]).argmax()
        assert name.casefold().split(" · ")[0] == f"group{most}"
    assert list(found.sizes) == sorted(found.sizes, reverse=True) and sum(found.sizes) == (found.label_F >= 0).sum()
    assert found.method == ("UMAP" if use_umap else "PCA")


@pytest.mark.parametrize("use_umap", METHODS)
@pytest.mark.parametrize("anisotropic", (False, True))
def test_random_directions_have_no_clusters(use_umap, anisotropic):
    rng = np.random.default_rng(2)
    x_FxD = rng.standard_normal((F, D)) * (np.linspace(2, 0.2, D) if anisotropic else 1)
    found = clusters.compute_clusters(x_FxD, np.ones(F, bool), [["a"]] * F, seed=3, use_umap=use_umap)
    assert found.names == () and found.noise == 1 and np.isfinite(found.xy_Fx2).all()


@pytest.mark.parametrize("use_umap", METHODS)
def test_the_same_seed_gives_the_same_map_bit_for_bit(use_umap):
    x_FxD, group_F = planted(0.6)
    once, again, other = (
        clusters.compute_clusters(x_FxD, np.ones(F, bool), tokens_of(group_F), seed=seed, use_umap=use_umap)
        for seed in (5, 5, 6)
    )
    for name, value in asdict(once).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
    assert use_umap != np.array_equal(once.xy_Fx2, other.xy_Fx2)


@pytest.mark.parametrize("floor, cohesion, count", [(0.3, 0.5, GROUPS), (0.3, 0.9, 0), (0.9, 0.5, 0)])
def test_clusters_no_better_than_random_ones_are_dropped(monkeypatch, floor, cohesion, count):
    x_FxD, group_F = planted(0.75)
    monkeypatch.setattr(clusters, "chance", lambda *_: (floor, cohesion))
    found = clusters.compute_clusters(x_FxD, np.ones(F, bool), tokens_of(group_F), use_umap=False)
    assert len(found.names) == count and found.floor == floor


def test_dead_features_are_left_out_and_counted():
    x_FxD, group_F = planted(0.75)
    alive_F = np.arange(F) % 10 != 0
    found = clusters.compute_clusters(x_FxD, alive_F, tokens_of(group_F), use_umap=False)
    assert (found.dead, found.alive) == (60, 540) and (found.label_F[~alive_F] == -1).all()
    for positions_Fx2 in (found.xy_Fx2, found.pca_Fx2):
        np.testing.assert_array_equal(np.isnan(positions_Fx2[:, 0]), ~alive_F)
    alone = clusters.compute_clusters(x_FxD[alive_F], alive_F[alive_F], tokens_of(group_F[alive_F]), use_umap=False)
    np.testing.assert_array_equal(alone.label_F, found.label_F[alive_F])


def test_neighbours_are_the_nearest_other_rows_by_cosine():
    x_NxD = unit(np.random.default_rng(0).standard_normal((50, 12)))
    x_NxD[9] = x_NxD[30]  # twins
    at_NxK, distance_NxK = neighbours(x_NxD, 5)
    expected_NxN = 1 - x_NxD.astype(np.float64) @ x_NxD.T
    assert not (at_NxK == np.arange(50)[:, None]).any()
    np.testing.assert_allclose(distance_NxK, np.sort(expected_NxN, axis=1)[:, 1:6], atol=1e-6)
    np.testing.assert_allclose(distance_NxK, np.take_along_axis(expected_NxN, at_NxK, 1), atol=1e-6)
    assert neighbours(x_NxD[:1], 0)[0].shape == (1, 0)


def test_components_are_those_of_a_singular_value_decomposition():
    x_NxD = np.random.default_rng(0).standard_normal((80, 9)) * np.arange(1, 10) + 4
    xy_Nx2, variance = pca_of(x_NxD, 2)
    u_Nx9, s_9, _ = np.linalg.svd(x_NxD - x_NxD.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(xy_Nx2), np.abs(u_Nx9[:, :2] * s_9[:2]), atol=1e-9)
    np.testing.assert_allclose(variance, s_9[:2] ** 2 / (s_9**2).sum())


def test_clusters_are_named_by_tokens_that_others_rarely_promote():
    label_N = np.array([0] * 10 + [-1] * 90)
    promoted = [["the", "sea"]] * 9 + [["the", "ship"]] + [["the", "law"]] * 89 + [["sea"]]
    assert clusters.names_of(label_N, promoted) == ("sea",)  # "ship" is promoted by one feature only, "the" by all
    written = [["Sea"], [" sea"], ["sea "]] * 3 + [["the"]] * 91
    assert clusters.names_of(label_N, written) == ("sea",)  # one token in its most frequent form
    assert clusters.names_of(label_N, [["the"]] * 100) == ("no token in common",)


@pytest.mark.parametrize("use_umap", METHODS)
def test_files_and_figures(use_umap, tmp_path):
    x_FxD, group_F = planted(0.75)
    alive_F = np.arange(F) > 0
    found = clusters.compute_clusters(x_FxD, alive_F, tokens_of(group_F), use_umap=use_umap)
    clusters.write_clusters(found, tmp_path, "member")
    record = json.loads((tmp_path / "clusters-member.json").read_text())
    assert record["names"] == list(found.names) and record["dead"] == 1
    with np.load(tmp_path / "clusters-member.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["label_F"], found.label_F)
    save(clusters_chart(found, shown=4), tmp_path / "map")
    svg = (tmp_path / "map.svg").read_text()
    assert f"1  {found.names[0]} ({found.sizes[0]})" in svg
    assert f"5  {found.names[4]}" not in svg
    assert "6 smaller clusters" in svg and "599 living features, 1 that never fire left out" in svg
    assert ("without umap-learn" in svg) != use_umap


def test_control_characters_of_tokens_can_be_drawn(tmp_path):
    x_FxD, _ = planted(0.75)
    found = clusters.compute_clusters(x_FxD[:40], np.ones(40, bool), [["\x16", " a\x00"]] * 40, use_umap=False)
    assert found.tokens_F[0] == "\N{REPLACEMENT CHARACTER} · a\N{REPLACEMENT CHARACTER}"
    save(clusters_chart(found), tmp_path / "c")
    assert (tmp_path / "c.svg").stat().st_size > 1000


def test_invalid_maps_are_refused():
    x_FxD, group_F = planted(0.75)
    with pytest.raises(InputError, match="at least 20 living features, and there are 19"):
        clusters.compute_clusters(x_FxD, np.arange(F) < 19, tokens_of(group_F))
    with pytest.raises(InputError, match="600 directions, 600 truth values and 1 lists"):
        clusters.compute_clusters(x_FxD, np.ones(F, bool), [["a"]])
