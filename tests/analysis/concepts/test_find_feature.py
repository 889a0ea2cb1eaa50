"""The command find-feature: planted features are found and scored, and features that separate by chance do not pass."""

import json
import shutil
from itertools import combinations
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import BUNDLED, shared_cache, trained
from rich.console import Console
from scipy.stats import mannwhitneyu, rankdata
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from analysis.cli.find_feature import run as find_feature
from analysis.concepts.detectors import (
    CHOOSING,
    SCORING,
    THRESHOLD,
    auroc,
    best_threshold,
    find_detectors,
    permutation_test,
    split_passages,
)
from analysis.concepts.max_pooling import MaxPooled, max_features, max_projection, mean_difference
from analysis.concepts.search import FeatureDescription
from analysis.ui.terminal.detectors import description_text, found_table
from harvest.errors import InputError
from harvest.files import read_json, write_json
from harvest.text.concepts import texts_in
from harvest.text.passages import Passages
from sae_jax.models.registry import KINDS


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def sparse(rng, n: int, features: int) -> np.ndarray:
    """Features that fire on a fifth of the passages, so that most values are equal to zero."""
    return (rng.random((n, features)) < 0.2) * rng.random((n, features))


def both(values_NxF: np.ndarray) -> MaxPooled:
    return MaxPooled(values_NxF, values_NxF)


def sides(concept: int, others: int) -> np.ndarray:
    return np.arange(concept + others) < concept


# Scores and tests.


def test_a_planted_feature_is_found_and_its_figures_are_sklearns(rng):
    is_concept_N = sides(60, 240)
    set_N = split_passages(is_concept_N)
    values = {name: sparse(rng, 300, 400) for name in ("a", "b")}
    fires_N = np.where(is_concept_N, rng.random(300) < 0.9, rng.random(300) < 0.05)
    values["b"][:, 7] = fires_N * rng.uniform(2, 3, 300)
    values["a"][:, 3] = np.where(is_concept_N, rng.random(300) < 0.6, rng.random(300) < 0.05) * rng.uniform(2, 3, 300)
    pooled = {name: MaxPooled(v, np.where(np.arange(400) == 7, 1.0, v)) for name, v in values.items()}
    direction_N = values["b"][:, 7] + rng.standard_normal(300)
    result = find_detectors(pooled.items(), {"x": both(direction_N[:, None])}, is_concept_N, set_N, top=4)

    best = result.features[0]
    assert (best.member, best.feature, best.passes) == ("b", 7, True) and result.tried == {"a": 400, "b": 400}
    assert result.best_of_members["a"].feature == 3 and result.best_of_members["a"].passes
    for_threshold = set_N == THRESHOLD
    threshold = best_threshold(values["b"][for_threshold, 7], is_concept_N[for_threshold])
    assert best.detector.threshold == threshold
    on, labels = set_N == SCORING, is_concept_N[set_N == SCORING]
    says = values["b"][on, 7] > best.detector.threshold
    expected = [f(labels, says) for f in (precision_score, recall_score)]
    assert [best.detector.precision, best.detector.coverage] == pytest.approx(expected)
    assert best.detector.auroc == pytest.approx(roc_auc_score(labels, values["b"][on, 7]))
    chosen = roc_auc_score(is_concept_N[set_N == CHOOSING], values["b"][set_N == CHOOSING, 7])
    assert best.chosen_by == pytest.approx(chosen)
    assert best.detector.auroc_without_phrase == pytest.approx(0.5)  # the feature is constant there
    assert result.baselines["x"].auroc == pytest.approx(roc_auc_score(labels, direction_N[on]))
    assert sum(sum(of.values()) for of in result.sets.values()) == 300


@pytest.mark.parametrize("concept,has_interval", [(36, False), (40, True)])  # two fifths are scored
def test_an_auroc_of_few_passages_has_no_interval(rng, concept, has_interval):
    is_concept_N = sides(concept, 120)
    values = both(sparse(rng, len(is_concept_N), 3))
    result = find_detectors([("a", values)], {}, is_concept_N, split_passages(is_concept_N))
    assert all((found.detector.auroc_interval is not None) is has_interval for found in result.features)
    densities = {("a", feature): 0.1 for feature in range(3)}
    console = Console(width=100, record=True)
    console.print(found_table("Best", result.features, densities, {}))
    assert (" - " not in console.export_text()) is has_interval


def test_a_feature_that_separates_only_the_choosing_set_does_not_pass(rng):
    is_concept_N = sides(60, 240)
    set_N, values_NxF = split_passages(is_concept_N), sparse(rng, 300, 50)
    values_NxF[set_N == CHOOSING, 5] = is_concept_N[set_N == CHOOSING]
    values_NxF[set_N == THRESHOLD, 5] = is_concept_N[set_N == THRESHOLD]
    best = find_detectors([("a", both(values_NxF))], {}, is_concept_N, set_N).features[0]
    assert (best.feature, best.chosen_by, best.passes) == (5, 1.0, False)
    assert abs(best.detector.auroc - 0.5) < 0.15 < best.q_value


def test_the_false_discovery_rate_holds_for_shuffled_labels(monkeypatch):
    """No feature detects the concept, so the share of repetitions in which any passes is the false discovery rate."""
    monkeypatch.setattr("analysis.concepts.detectors.PERMUTATIONS", 1000)
    repetitions, alarms = 200, 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        is_concept_N = rng.permutation(sides(25, 100))
        members = [(name, both(sparse(rng, 125, 100))) for name in ("a", "b", "c")]
        result = find_detectors(members, {}, is_concept_N, split_passages(is_concept_N, seed), top=5, fdr=0.2)
        alarms += any(found.passes for found in result.features)
    assert alarms / repetitions < 0.2 + 2 * (0.2 * 0.8 / repetitions) ** 0.5


def test_the_false_discovery_rate_holds_beside_true_features(monkeypatch):
    monkeypatch.setattr("analysis.concepts.detectors.PERMUTATIONS", 1000)
    shares = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        is_concept_N = sides(25, 100)
        values_NxF = sparse(rng, 125, 300)
        values_NxF[:, :4] += is_concept_N[:, None]
        result = find_detectors(
            [("a", both(values_NxF))], {}, is_concept_N, split_passages(is_concept_N, seed), top=10, fdr=0.2
        )
        passing = [found.feature for found in result.features if found.passes]
        assert set(range(4)) <= set(passing)
        shares.append(np.mean([feature >= 4 for feature in passing]))
    assert np.mean(shares) < 0.2


def test_p_values_are_exact_ones_and_auroc_counts_ties_half(rng):
    is_concept_N = sides(4, 8)
    free_N, tied_N = rng.random(12) + 0.3 * is_concept_N, rng.integers(0, 3, 12) + is_concept_N
    p_C = permutation_test(np.stack([free_N, tied_N], 1), is_concept_N, 40_000, rng)
    exact = mannwhitneyu(free_N[:4], free_N[4:], alternative="greater", method="exact").pvalue
    ranks_N = rankdata(tied_N)
    sums = [ranks_N[list(chosen)].sum() for chosen in combinations(range(12), 4)]
    assert p_C == pytest.approx([exact, np.mean(np.array(sums) >= ranks_N[:4].sum())], abs=0.01)
    values_NxF = rng.integers(0, 4, (50, 6))
    labels_N = sides(20, 30)
    assert auroc(values_NxF, labels_N) == pytest.approx([roc_auc_score(labels_N, v) for v in values_NxF.T])


def test_the_threshold_has_the_best_f1_and_excludes_some_passages(rng):
    for _ in range(20):
        labels_N, values_N = rng.random(30) < 0.4, np.round(rng.random(30), 1)
        best = max(f1_score(labels_N, values_N > cut) for cut in np.unique(values_N)[:-1])
        assert f1_score(labels_N, values_N > best_threshold(values_N, labels_N)) == pytest.approx(best)
    assert not (np.zeros(5) > best_threshold(np.zeros(5), sides(2, 3))).any()


@pytest.mark.parametrize("concept, passes", [(5, False), (6, True)])
def test_with_few_passages_nothing_is_found(concept, passes):
    is_concept_N = sides(concept, 120)
    result = find_detectors([("a", both(is_concept_N[:, None] * 1.0))], {}, is_concept_N, split_passages(is_concept_N))
    assert result.features[0].detector.auroc == 1 and result.features[0].passes is passes


def test_max_pooling_uses_only_counted_positions(rng):
    tokens, features, d = 4, 6, 5
    item_W = np.array([0, 0, 1, 2])
    counts_WxT = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], bool)
    phrase_WxT = np.zeros((4, tokens), bool)
    phrase_WxT[0, 2] = phrase_WxT[2, 1:] = True
    of = SimpleNamespace(
        passages=Passages(np.zeros((4, tokens), np.int32), counts_WxT, item_W),
        phrase_WxT=phrase_WxT,
        is_concept_N=np.array([True, True, False]),
    )
    params = {"W_encT": rng.standard_normal((features, d)), "b_enc": rng.standard_normal(features)}
    params |= {"W_dec": rng.standard_normal((features, d)), "b_dec": rng.standard_normal(d)}
    x_WxTxD = rng.standard_normal((4, tokens, d)).astype(np.float32)
    pooled = max_features(KINDS["relu"]({name: jnp.float32(v) for name, v in params.items()}), x_WxTxD, of)
    f_WxTxF = np.maximum((x_WxTxD - params["b_dec"]) @ params["W_encT"].T + params["b_enc"], 0)
    for mask_WxT, got_NxF in ((counts_WxT, pooled.whole_NxF), (counts_WxT & ~phrase_WxT, pooled.rest_NxF)):
        for n in range(3):
            expected = f_WxTxF[item_W == n][mask_WxT[item_W == n]].max(0, initial=-np.inf)
            np.testing.assert_allclose(got_NxF[n], expected, atol=1e-5)
    direction_D = mean_difference(x_WxTxD, of, np.array([True, False, True]))
    difference_D = x_WxTxD[:2][counts_WxT[:2]].mean(0) - x_WxTxD[3, 1:].mean(0)
    np.testing.assert_allclose(direction_D, difference_D / np.linalg.norm(difference_D), atol=1e-5)
    np.testing.assert_allclose(
        max_projection(direction_D, x_WxTxD, of).whole_NxF[1], (x_WxTxD[2, 1:3] @ direction_D).max()
    )


# The command.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = shared_cache(tmp_path_factory)
    argv = (*BUNDLED, "--n-samples", "100", "--seq-len", "20", "--activation", "topk", "--hidden-dim", "48", "--k", "8")
    argv += ("--layer", "1", "2", "--epochs", "1")
    path = trained(tmp_path_factory.mktemp("runs") / "two", cache, *argv).path
    return path, cache


def test_from_a_phrase_to_the_table(run, capsys, tmp_path):
    path, cache = run
    (tmp_path / "mine.jsonl").write_text(
        '{"text": "The hurricane came at night."}\n{"text": "A storm took the roof."}\n'
    )
    argv = [
        str(path),
        "a hurricane",
        "--examples",
        str(tmp_path / "mine.jsonl"),
        "--top",
        "3",
        "--cache-dir",
        str(cache),
    ]
    find_feature(argv)
    out = capsys.readouterr().out
    found = json.loads((path / "analysis" / "find" / "a-hurricane.json").read_text(), parse_constant=pytest.fail)
    ids = {p.name for p in (path / "members").iterdir()}
    assert {of["member"] for of in found["features"]} == ids == set(found["tried"])
    assert set(found["baselines"]) == {"blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"}
    assert found["baselines"]["blocks.2.hook_resid_pre"]["auroc"] > 0.8
    assert found["passages"]["of_which_examples"] == 2 and found["passages"]["concept"] > 25
    scored = [found["passages"][f"scored_concept{what}"] for what in ("", "_not_trained_on")]
    assert scored[0] / 2 < scored[1] <= scored[0]  # the 90 windows come from few of the documents
    assert found["settings"]["seed"] == 0 and "features of all dictionaries, by AUROC" in out and " means " in out
    passing = [of for of in found["features"] if of["passes"]]
    assert passing and out.count("promotes") == len(passing)
    assert all(len(of["promoted"]) == 10 and of["contexts"][0]["token"] for of in passing)
    best = found["features"][0]
    assert (
        f"{best['detector']['auroc']:.3f}" in out
        and f"feature {best['feature']} of {best['member']}\n" in out
        and 0 < best["density"] < 1
    )
    query = f"run={path.name}&member={passing[0]['member']}&feature={passing[0]['feature']}"
    assert f"dashboard {path} --cache-dir {cache}\nthen open http://127.0.0.1:8501/feature?{query}\n" in out


def test_the_table_fits_into_80_columns_and_a_description_marks_the_token(rng):
    is_concept_N = sides(20, 60)
    member = "jump_relu-f512-l32-lr1e-3-s0"
    result = find_detectors([(member, both(sparse(rng, 80, 4)))], {}, is_concept_N, split_passages(is_concept_N))
    console = Console(width=80, record=True)
    console.print(found_table("Best", result.features, {(member, 0): 0.123}, {}))
    mark = SimpleNamespace(before="over the\nGolden", token=" Gate", after=" Bridge")
    console.print(description_text(result.features[0], FeatureDescription([" Bridge"], [mark] * 3), contexts=1))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text and f"feature 1 of {member}" in text
    assert text.count(f"{member} ") == len(result.features) and "left out: diff.; a wider terminal" in text
    assert "over the Golden[ Gate] Bridge" in text and "' Bridge'" in text and text.count("Gate") == 1


def test_invalid_requests_are_refused(run, tmp_path):
    path, cache = run
    files = {
        "empty.txt": "\n \n",
        "a.csv": "x",
        "all.txt": "a hurricane\nhurricane again\n",
        "few.txt": "one more\ntwo more",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def refused(phrase: str, *argv: object, of=path) -> str:
        with pytest.raises(InputError) as error:
            find_feature([str(of), phrase, *map(str, argv), "--cache-dir", str(cache)])
        return str(error.value)

    assert "empty.txt: there is no text in it" in refused("a hurricane", "--examples", tmp_path / "empty.txt")
    assert (
        "--against" in (text := refused("a hurricane", "--against", tmp_path / "none.txt")) and "no such file" in text
    )
    assert "must be a .txt" in refused("a hurricane", "--examples", tmp_path / "a.csv")
    assert "--member nobody is not in" in refused("a hurricane", "--member", "nobody")
    assert "has no word in it" in refused("...")
    assert "0 of 7,137 documents" in (text := refused("xyzzy")) and "--examples FILE" in text
    assert "each of its 2 texts contains 'a hurricane'" in refused("a hurricane", "--against", tmp_path / "all.txt")
    assert "--against FILE has only 2 texts without 'a hurricane'" in refused(
        "a hurricane", "--against", tmp_path / "few.txt"
    )
    assert "--fdr 2.0: must be between 0 and 1" in refused("a hurricane", "--fdr", 2)
    config = read_json(path / "config.json", "")
    for store in config["stores"]:
        store["dataset"] |= {"asked": "mine.txt", "location": str(tmp_path / "moved.txt")}
    moved = shutil.copytree(path, tmp_path / "moved")
    write_json(moved / "config.json", config)
    assert "moved.txt any more: put it back there, or" in refused("a hurricane", of=moved)
    (tmp_path / "bad.jsonl").write_text("[]")
    with pytest.raises(InputError, match="--examples .*bad.jsonl, line 1"):
        texts_in(tmp_path / "bad.jsonl", "--examples")
