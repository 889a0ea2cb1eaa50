"""Feature splitting on planted trees: parents that split, are kept or are lost, and new features."""

import json

import numpy as np
import pytest

from analysis.comparison import splitting
from analysis.comparison.matching import Decoder
from analysis.geometry import unit
from analysis.plots.comparison import splitting_chart
from analysis.plots.style import save
from harvest.errors import InputError

D = 96


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def decoder(W_dec_FxD: np.ndarray, **settings) -> Decoder:
    told = {"activation": "topk", "hidden_dim": len(W_dec_FxD), "seed": 0} | settings
    return Decoder(told, W_dec_FxD, np.ones(len(W_dec_FxD), bool))


def near(rng, parents_FxD: np.ndarray) -> np.ndarray:
    """Children with a cosine of about 0.8 to their parents, and so of about 0.64 to each other."""
    return unit(parents_FxD + 0.75 * unit(rng.standard_normal(parents_FxD.shape)))


def planted(rng) -> tuple[dict[str, Decoder], np.ndarray, np.ndarray]:
    """Three widths. 10 features split in 3, 5 in 2, 20 are kept, 5 lost, 20 new. Feature 0's children split again."""
    narrow_FxD = unit(rng.standard_normal((40, D)))
    parent_F = np.concatenate([np.repeat(np.arange(10), 3), np.repeat(np.arange(10, 15), 2), np.arange(15, 35)])
    middle_FxD = np.concatenate([near(rng, narrow_FxD[parent_F]), unit(rng.standard_normal((20, D)))])
    order = rng.permutation(len(middle_FxD))
    parent_F = np.append(parent_F, np.full(20, -1))[order]
    middle_FxD = middle_FxD[order]
    grandparent_F = np.concatenate([np.repeat(np.flatnonzero(parent_F == 0), 4), np.flatnonzero(parent_F != 0)])
    wide_FxD = near(rng, middle_FxD[grandparent_F])
    return {f"F{len(x)}": decoder(x) for x in (narrow_FxD, middle_FxD, wide_FxD)}, parent_F, grandparent_F


def test_a_planted_tree_is_recovered(rng):
    decoders, parent_F, grandparent_F = planted(rng)
    found = splitting.compute_splitting(decoders)
    np.testing.assert_array_equal(found.parent_F[1], parent_F)
    np.testing.assert_array_equal(found.parent_F[2], grandparent_F)
    first, second = found.steps
    assert first.children == {0: 5, 1: 20, 2: 5, 3: 10} and first.new == 20
    assert second.children == {1: 77, 4: 3} and second.new == 0
    assert max(first.chance, second.chance) < 0.1
    assert found.trees[0] == (0, 0, 12) and len(found.trees) == 35 + 20
    assert found.trees[-1] == (1, int(np.flatnonzero(parent_F == -1)[-1]), 1)
    assert found.cosine_F[1][parent_F >= 0].min() > 0.7


def test_dead_features_have_neither_parents_nor_children(rng):
    decoders, parent_F, _ = planted(rng)
    narrow, middle, _ = decoders.values()
    narrow.alive_F[0] = middle.alive_F[np.flatnonzero(parent_F == 1)[0]] = False
    first = splitting.compute_splitting({"a": narrow, "b": middle}).steps[0]
    assert first.children == {0: 5, 1: 20, 2: 6, 3: 8} and first.new == 20 + 3


def test_families_are_of_one_kind_and_seed(rng):
    x_FxD = unit(rng.standard_normal((30, D)))
    decoders = {"b": decoder(x_FxD), "a": decoder(x_FxD[:20]), "c": decoder(x_FxD[:20], seed=1)}
    decoders |= {"d": decoder(x_FxD[:10]), "e": decoder(x_FxD[:10], activation="relu")}
    assert splitting.families(decoders) == [["d", "a", "b"]]


def test_files_and_figures(rng, tmp_path):
    decoders, parent_F, _ = planted(rng)
    found = splitting.compute_splitting(decoders)
    splitting.write_splitting(found, tmp_path)
    record = json.loads((tmp_path / "splitting-F89.json").read_text())
    assert record["steps"][0]["children"] == {"0": 5, "1": 20, "2": 5, "3": 10} and record["trees"][0] == [0, 0, 12]
    with np.load(tmp_path / "splitting-F89.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["F80/parent_F"], parent_F)
    save(splitting_chart(found), tmp_path / "fates")
    svg = (tmp_path / "fates.svg").read_text()
    assert "split into 3" in svg and "F 40 → 80" in svg


def test_a_single_width_is_refused(rng):
    x_FxD = unit(rng.standard_normal((4, D)))
    with pytest.raises(InputError, match="several widths"):
        splitting.compute_splitting({"a": decoder(x_FxD)})
    with pytest.raises(InputError, match="threshold 0.1"):
        splitting.compute_splitting({"a": decoder(x_FxD), "b": decoder(x_FxD)}, threshold=0.1)
