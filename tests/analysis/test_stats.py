"""How often each kind of interval covers the true value, and how often null data are called a discovery, by simulation.

`PYTHONPATH=.:tests python tests/analysis/test_stats.py` prints the whole table: 1,000 simulated runs a line.
"""

from collections.abc import Callable

import numpy as np
import pytest
from rows import store_of
from scipy import stats

from analysis.concepts.detectors import auroc
from analysis.features.row_labels import SHUFFLES, Labels
from analysis.features.specialists import MIN_FIRINGS, RATE
from analysis.features.specialization import p_values, specialization
from analysis.features.store_pass import accumulate_firings
from analysis.stats import FEWEST, FEWEST_DOCUMENTS, FEWEST_SCORED, auroc_interval, over_seeds, ratio_interval
from sae_jax.models.registry import KINDS

# What a document, or a seed, gives: (values of a shape, their mean).
SKEWED = {
    "normal": (lambda rng, n: 3 + rng.standard_normal(n), 3.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "one less an exponential": (lambda rng, n: 1 - rng.exponential(size=n), 0.0),
    "log-normal, sigma 1": (lambda rng, n: rng.lognormal(size=n), np.exp(0.5)),
}
CONTAMINATED = {
    "a tenth 5 times as large": (lambda rng, n: rng.exponential(size=n) * rng.choice([1, 5], n, p=[0.9, 0.1]), 1.4)
}
P_ABOVE = stats.norm.cdf(1 / np.sqrt(2))  # of one log-normal over another whose logarithm is 1 less
SEEDS = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "difference of two exponentials": (lambda rng, n: rng.exponential(size=n) - rng.exponential(size=n), 0.0),
    "gamma, skewness 1": (lambda rng, n: rng.gamma(4, size=n), 4.0),  # metrics of 100 seeds had a skewness under 0.3
}
SEEDS_SKEWED = {"exponential, skewness 2": SKEWED["exponential"]}


def ratios(rng: np.random.Generator, documents: int, of: Callable, mean: float) -> tuple:
    """A mean over windows, of which a document has from one to dozens: all that is measured over documents is one."""
    windows_G = np.ceil(rng.lognormal(0.5, 0.8, documents))
    return ratio_interval(windows_G * of(rng, documents), windows_G), mean


def equal_documents(rng: np.random.Generator, documents: int, of: Callable, mean: float) -> tuple:
    return ratio_interval(of(rng, documents), np.ones(documents)), mean


def seeds(rng: np.random.Generator, n: int, of: Callable, mean: float) -> tuple:
    found = over_seeds(of(rng, n).tolist())
    return (None if found.low is None else (found.low, found.high)), mean


def normal(rng: np.random.Generator, p: int, true: float) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal(p) + np.sqrt(2) * stats.norm.ppf(true), rng.standard_normal(4 * p)


def exponential(rng: np.random.Generator, p: int, true: float) -> tuple[np.ndarray, np.ndarray]:
    return rng.exponential(true / (1 - true), p), rng.exponential(1, 4 * p)


def fires_or_not(rng: np.random.Generator, p: int, true: float) -> tuple[np.ndarray, np.ndarray]:
    return (rng.random(p) < true).astype(float), (rng.random(4 * p) < 1 - true).astype(float)


def sparse(rng: np.random.Generator, p: int, true: float) -> tuple[np.ndarray, np.ndarray]:
    """It fires on a fifth of the others, and the more often on the concept, where it is stronger."""
    fires = (true - 0.4) / (0.4 + 0.2 * P_ABOVE)
    return (rng.random(p) < fires) * rng.lognormal(1, 1, p), (rng.random(4 * p) < 0.2) * rng.lognormal(0, 1, 4 * p)


def aurocs(rng: np.random.Generator, scored: int, of: Callable, true: float) -> tuple:
    concept_P, others_Q = of(rng, scored, true)
    wins_PxQ = (concept_P[:, None] > others_Q) + 0.5 * (concept_P[:, None] == others_Q)
    assert scored > 20 or wins_PxQ.mean() == pytest.approx(
        auroc(np.concatenate([concept_P, others_Q]), np.arange(5 * scored) < scored)
    )
    return auroc_interval(wins_PxQ), true


AUROCS = {
    f"{of.__name__}, {true}": (of, true)
    for of, trues in {
        normal: (0.5, 0.7, 0.9, 0.97, 0.993),
        exponential: (0.5, 0.7, 0.9, 0.97, 0.993),
        fires_or_not: (0.5, 0.7, 0.9, 0.97),
        sparse: (0.5, 0.7, 0.9),
    }.items()
    for true in trues
}
DOCUMENTS, PASSAGES = (FEWEST_DOCUMENTS, 100, 250, 500), (FEWEST_SCORED, 25, 60, 120)


def table() -> dict[str, tuple[Callable, dict, tuple[int, ...], float, float]]:
    """{kind: (what simulates it, distributions, sizes, least and most coverage)}; room for 1,000 runs."""
    return {
        "loss recovered, ablation: over documents": (ratios, SKEWED, DOCUMENTS, 0.92, 0.98),
        "the same, documents of equal length": (equal_documents, SKEWED, DOCUMENTS, 0.92, 0.98),
        "the same, contaminated": (equal_documents, CONTAMINATED, DOCUMENTS, 0.92, 0.98),
        "AUROC: over passages": (aurocs, AUROCS, PASSAGES, 0.92, 1.0),
        "means over seeds": (seeds, SEEDS, (FEWEST, 5, 10, 20), 0.92, 0.98),
        "means over seeds, skewed": (seeds, SEEDS_SKEWED, (FEWEST, 5, 10, 20), 0.85, 0.97),
    }


def coverage(simulate: Callable, size: int, distribution: tuple, runs: int, seed: int = 0) -> float:
    rng, covered = np.random.default_rng(seed), 0
    for _ in range(runs):
        interval, true = simulate(rng, size, *distribution)
        covered += interval[0] - 1e-9 <= true <= interval[1] + 1e-9
    return covered / runs


@pytest.mark.parametrize(
    "kind,simulate,distribution,size",
    [
        ("documents", ratios, SKEWED["exponential"], FEWEST_DOCUMENTS),
        ("documents", ratios, SKEWED["log-normal, sigma 1"], FEWEST_DOCUMENTS),
        ("documents", equal_documents, SKEWED["normal"], 100),
        ("passages", aurocs, AUROCS["normal, 0.7"], FEWEST_SCORED),
        ("passages", aurocs, AUROCS["normal, 0.993"], 60),
        ("passages", aurocs, AUROCS["exponential, 0.97"], 25),
        ("passages", aurocs, AUROCS["sparse, 0.9"], 25),
        ("seeds", seeds, SEEDS["normal"], FEWEST),
        ("seeds", seeds, SEEDS["difference of two exponentials"], 5),
    ],
)
def test_an_interval_covers_the_truth_about_as_often_as_it_says(kind, simulate, distribution, size):
    """300 runs: a share of .95 has a deviation of .013. Percentiles covered 88% of 30 documents, 23% near AUROC 1."""
    assert 0.89 <= coverage(simulate, size, distribution, 300) <= 1


def test_below_the_fewest_there_is_no_interval():
    rng = np.random.default_rng(0)
    assert ratios(rng, FEWEST_DOCUMENTS - 1, *SKEWED["normal"])[0] is None
    assert aurocs(rng, FEWEST_SCORED - 1, *AUROCS["normal, 0.9"])[0] is None
    assert seeds(rng, FEWEST - 1, *SEEDS["normal"])[0] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", table())
def test_every_kind_of_interval_covers_the_truth_at_every_size(kind):
    simulate, distributions, sizes, least, most = table()[kind]
    found = {(name, n): coverage(simulate, n, of, 1000) for name, of in distributions.items() for n in sizes}
    assert not {where: share for where, share in found.items() if not least <= share <= most}


def test_an_interval_of_a_ratio_is_that_of_its_definition():
    """Against documents drawn one by one, and each sample's own error by the delta method."""
    rng = np.random.default_rng(0)
    windows_G, values_G = np.ceil(rng.lognormal(0.5, 0.8, 60)), rng.exponential(size=60)

    def ratio_and_error(drawn):
        a, b = (windows_G * values_G)[drawn], windows_G[drawn]
        left = (a - a.sum() / b.sum() * b) / b.mean()
        return a.sum() / b.sum(), left.std(ddof=1) / np.sqrt(60)

    ratio, error = ratio_and_error(np.arange(60))
    samples = [ratio_and_error(rng.integers(0, 60, 60)) for _ in range(4000)]
    low, high = np.quantile([(of - ratio) / its for of, its in samples], [0.02, 0.98])
    t = stats.t.ppf(0.975, 59)
    expected = ratio - max(high, t) * error, ratio + max(-low, t) * error
    assert ratio_interval(windows_G * values_G, windows_G) == pytest.approx(expected, rel=0.05)
    assert ratio_interval(2 * windows_G, windows_G) == pytest.approx((2, 2))  # all alike
    assert ratio_interval(values_G, rng.standard_normal(60)) is None  # divided by what may be 0


# False discoveries.


@pytest.fixture(scope="module")
def planted_sae():
    """Its features are the columns of a row, over one half."""
    W, half = np.eye(PLANTED, dtype=np.float32), np.full(PLANTED, -0.5, np.float32)
    return KINDS["relu"]({"W_encT": W, "b_enc": half, "W_dec": W, "b_dec": 0 * half}, {}, "")


PLANTED, WINDOWS, POSITIONS = 120, 300, 48


def in_runs(rng: np.random.Generator, windows: int, length: int = 5) -> np.ndarray:
    """Firing in runs that begin anywhere, [W, P, F]: by no means by position."""
    starts = rng.random((windows * POSITIONS + length, PLANTED)) < rng.choice([0.002, 0.005, 0.01], PLANTED)
    fires = np.lib.stride_tricks.sliding_window_view(starts, length, axis=0).any(-1)[: windows * POSITIONS]
    return fires.reshape(windows, POSITIONS, PLANTED)


def found_by(fires_WxPxF, tokens_WxT, sae, directory, by: str, label_G=None) -> np.ndarray:
    """Which are called specialized, of those that fire often enough to be asked, as the study does."""
    rows_NxF, document_W = fires_WxPxF.reshape(-1, PLANTED).astype(np.float16), np.arange(len(tokens_WxT)) // 3
    store = store_of(directory, rows_NxF, tokens_WxT, document_W)
    labels = {
        "position": Labels("position", np.arange(POSITIONS) // 3, list("abcdefghijklmnop")),
        "document": Labels("document", np.arange(4) if label_G is None else label_G, list("abcd")),
    }
    firing, rows_SxL = accumulate_firings(sae, store, {by: labels[by]}, 0)
    score_SxF = np.stack([specialization(*of) for of in zip(firing.label_SxFxL[by], rows_SxL[by], strict=True)])
    asked, found_F = np.flatnonzero(firing.count_F >= MIN_FIRINGS), np.zeros(PLANTED, bool)
    p_A = p_values(score_SxF[:, asked], firing.effective(by)[asked])
    found_F[asked] = stats.false_discovery_control(p_A) <= RATE
    assert len(asked) > PLANTED / 2
    return found_F


def random_tokens(rng: np.random.Generator, windows: int) -> np.ndarray:
    return rng.integers(0, 1000, (windows, POSITIONS + 1))


def copied(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(which text each document is a near-copy of, firing that is the same on copies, their tokens), six of each."""
    text_G = np.repeat(np.arange(WINDOWS // 18), 6)
    window_W = (3 * text_G[:, None] + np.arange(3)).ravel()
    tokens_WxT = random_tokens(rng, WINDOWS // 6)[window_W]
    tokens_WxT[np.arange(len(window_W)), rng.integers(0, POSITIONS, len(window_W))] = 7  # a word of each is another
    return text_G, in_runs(rng, WINDOWS // 6)[window_W], tokens_WxT


@pytest.mark.parametrize("seed", range(3))
def test_runs_of_firing_that_begin_anywhere_are_not_specialized_on_a_position(planted_sae, tmp_path, seed):
    rng = np.random.default_rng(seed)
    fires_WxPxF = in_runs(rng, WINDOWS)
    rate_Px1 = np.where(np.arange(POSITIONS) < 9, 0.1, 0.01)[:, None]
    fires_WxPxF[:, :, :20] = rng.random((WINDOWS, POSITIONS, 20)) < rate_Px1
    found_F = found_by(fires_WxPxF, random_tokens(rng, WINDOWS), planted_sae, tmp_path, "position")
    assert found_F[:20].all()
    assert found_F[20:].sum() <= 2  # 93% of them, had rows been dealt; 5% of what is found may be


@pytest.mark.parametrize("by", ["position", "document"])
def test_near_copies_are_not_so_many_observations(planted_sae, tmp_path, by):
    rng = np.random.default_rng(0)
    text_G, fires_WxPxF, tokens_WxT = copied(rng)
    label_G = rng.integers(0, 4, WINDOWS // 18 + 1)[text_G]
    assert found_by(fires_WxPxF, tokens_WxT, planted_sae, tmp_path, by, label_G).sum() <= 1


@pytest.mark.parametrize("labels", [2, 4, 16])
def test_p_values_are_right_whether_firings_come_in_bursts_or_not(labels):
    """Features of equal density: spread over all documents, over some, or on one in a hundred. None is a specialist."""
    rng, documents, features = np.random.default_rng(labels), 1500, 1200
    bursts_F = np.arange(features) % 3
    loud_FxG = np.ones((features, documents))
    loud_FxG[bursts_F == 1] = rng.gamma(0.2, 5, (features // 3, documents))
    loud_FxG[bursts_F == 2] = 100 * (rng.random((features // 3, documents)) < 0.01)
    rows_G = rng.integers(5, 60, documents)
    count_FxG = rng.binomial(rows_G, np.clip(0.01 * loud_FxG, 0, 0.9))
    label_G, scores = rng.integers(0, labels, documents), []
    for shuffle in range(1 + SHUFFLES):
        on_GxL = np.eye(labels, dtype=int)[rng.permutation(label_G) if shuffle else label_G]
        scores.append(specialization(count_FxG @ on_GxL, rows_G @ on_GxL))
    effective_F = count_FxG.sum(1) ** 2 / np.square(count_FxG).sum(1)
    p_F = p_values(np.stack(scores), effective_F)
    assert not (stats.false_discovery_control(p_F) <= 0.05).any()
    for kind in range(3):
        assert (p_F[bursts_F == kind] <= 0.01).mean() <= 0.03  # 400 features; up to .09 when pooled by density
        assert (p_F[bursts_F == kind] <= 0.05).mean() <= 0.10


if __name__ == "__main__":
    for kind, (simulate, distributions, sizes, *_) in table().items():
        print(f"\n{kind:45}" + "".join(f"{n:>8}" for n in sizes))
        for name, distribution in distributions.items():
            shares = [coverage(simulate, n, distribution, 1000) for n in sizes]
            print(f"  {name:43}" + "".join(f"{share:8.3f}" for share in shares), flush=True)
