"""Statistics of each feature of a run's dictionaries. They are computed once for a run and used by most analyses.

Each member takes one pass over all rows. Its statistics are then written to RUN/analysis/features/<member>.npz, so that
members that were finished before an interruption are not computed again. (One pass for all members would hardly be
faster, because members share little work. It would need the memory of all members at once.)

Shapes: F features, K contexts, R sampled firings, Q quantiles, P positions, J neighbours, T tokens, L labels,
S shuffles, B bars of activations, H bars of logit weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.features.logit_statistics import LOGIT_BARS, logit_statistics
from analysis.features.mapped import mapped_arrays
from analysis.features.row_labels import Labels, labels_of
from analysis.features.specialization import mutual_information, specialization
from analysis.features.store_pass import FiringAccumulator, accumulate_firings
from analysis.features.streaming import BARS, ENTRY, distinct
from analysis.geometry import neighbours, unit
from analysis.runs.finished import STUDY_AGAIN, FinishedRun, can_be_kept
from harvest.files import read_arrays, write_arrays
from harvest.request import Site
from sae_jax.formats import Dictionary
from sae_jax.shapes import check_arrays, read_as

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel

FORMAT = 4
BY_LABEL = ("labels", "label_rows", "label_count", "label_effective", "label_score")  # fields that are dictionaries
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
NEIGHBOURS = 10
SCORES = {"mutual_information": mutual_information, "specialization": specialization}


@dataclass(frozen=True, repr=False)
class Features:
    """The statistics of one dictionary's features. Held-out rows are numbered after training rows; −1 is no row."""

    rows: int
    density_F: np.ndarray  #: share of all rows on which the feature fires
    mean_F: np.ndarray  #: mean activation over the rows on which it fires; 0 if it never fires
    max_F: np.ndarray
    quantiles_FxQ: np.ndarray  #: quantiles of the sampled activations
    top_value_FxK: np.ndarray  #: activations of the strongest contexts; no context is repeated
    top_row_FxK: np.ndarray
    #: the different tokens of the strongest contexts, strongest first; −1 if there are no more
    strongest_FxK: np.ndarray
    sample_value_FxR: np.ndarray  #: activations of randomly sampled firings, largest first
    sample_row_FxR: np.ndarray
    sample_new_FxR: np.ndarray  #: whether no strongest context and no earlier sample has the same window or context
    bar_count_FxB: np.ndarray  #: histogram of activations, with bars of equal width from −limit to limit
    bar_limit_F: np.ndarray
    token_F: np.ndarray  #: most frequent token in the sample
    token_share_F: np.ndarray  #: share of that token in the sample
    position_FxP: np.ndarray  #: share of the rows at a position on which the feature fires
    cosine_F: np.ndarray  #: cosine of the feature's encoder and decoder vectors
    neighbour_FxJ: np.ndarray  #: features with the highest cosines of decoder rows
    neighbour_cosine_FxJ: np.ndarray
    together_FxJ: np.ndarray  #: features with the highest phi, the correlation of firing; −1 if there are no more
    together_phi_FxJ: np.ndarray  #: 0 if there are no more
    promoted_FxT: np.ndarray  #: tokens with the largest weights of harvest.model.logit_weights
    promoted_weight_FxT: np.ndarray
    suppressed_FxT: np.ndarray
    suppressed_weight_FxT: np.ndarray
    logit_count_FxH: np.ndarray  #: histogram of all tokens' weights, with bars of equal width from lowest to highest
    labels: dict[str, list[str]]
    label_rows: dict[str, np.ndarray]  #: [L], number of rows with each label
    label_count: dict[str, np.ndarray]  #: [F, L], number of these rows on which the feature fires
    label_effective: dict[str, np.ndarray]  #: [F], number of shuffled units over which the firings are spread
    label_score: dict[str, np.ndarray]  #: [score, 1 + S, F], of SCORES: with the true labels, then with shuffled ones

    @property
    def alive_F(self) -> np.ndarray:
        return self.density_F > 0

    @property
    def promotes_tokens(self) -> bool:
        """Whether features add to logits by themselves: not in an encoder, and not where the model only reads them."""
        return self.promoted_FxT.shape[1] > 0

    def promoted_at_peak(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, logit weights) [T] that a feature promotes at its activation of largest absolute value.

        They are the suppressed ones if that activation is negative, as it may be for abs_topk.
        """
        if self.max_F[feature] >= 0:
            return self.promoted_FxT[feature], self.promoted_weight_FxT[feature]
        return self.suppressed_FxT[feature], -self.suppressed_weight_FxT[feature]

    def activations(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(firings in each bar, edges of the bars): histogram of activations from 0, or the lowest, to the highest."""
        count_B, edge_E = self.bar_count_FxB[feature], self.bar_limit_F[feature] * np.linspace(-1, 1, BARS + 1)
        used = np.flatnonzero(count_B)
        first, last = min([*used, BARS // 2]), max([*used, BARS // 2]) + 1
        return count_B[first:last], edge_E[first : last + 1]

    def logits(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens in each bar, edges of the bars): the histogram of logit weights, without bars if there are none."""
        if not self.promotes_tokens:
            return np.zeros(0, np.int32), np.zeros(1)
        ends = self.suppressed_weight_FxT[feature, 0], self.promoted_weight_FxT[feature, 0]
        return self.logit_count_FxH[feature], np.linspace(*ends, LOGIT_BARS + 1)

    def __repr__(self) -> str:
        firing, features = int(self.alive_F.sum()), len(self.density_F)
        l0 = f"{firing:,} of {features:,} features fire on {self.rows:,} rows, {self.density_F.sum():.1f} on each"
        return f"Features({l0}; {', '.join(name.name for name in fields(self)[1:4])}, ...)"

    def save(self, path: Path) -> None:
        arrays: dict[str, np.ndarray] = {"format": np.array(FORMAT)}
        for field in fields(self):
            value = getattr(self, field.name)
            parts = {field.name: value}
            if isinstance(value, dict):
                parts = {f"{field.name}/{key}": part for key, part in value.items()}
            arrays |= {name: np.asarray(part) for name, part in parts.items()}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path, mapped: bool = False) -> Features | None:
        """Read saved statistics. None if there are none, or if they have another format.

        If `mapped`, arrays are memory maps, whose rows are read when they are used.
        """
        if not path.exists():
            return None
        with read_as(path, STUDY_AGAIN):
            arrays = (mapped_arrays if mapped else read_arrays)(path, STUDY_AGAIN)
            if arrays.pop("format") != FORMAT:
                return None
            values: dict[str, Any] = {name: {} for name in BY_LABEL}
            for name, array in arrays.items():
                field, _, key = name.partition("/")
                if key:
                    values.setdefault(field, {})[key] = array.tolist() if field == "labels" else array
                else:
                    values[field] = array
            features = cls(**values | {"rows": int(values["rows"])})
            features.check(path)
            return features

    def check(self, path: Path) -> None:
        """Raise InputError if the arrays do not fit each other, or contain impossible indices."""
        features, labels = len(self.density_F), self.labels.keys()
        below = dict.fromkeys(("top_row_FxK", "sample_row_FxR"), self.rows)
        below |= dict.fromkeys(("neighbour_FxJ", "together_FxJ"), features)
        below |= dict.fromkeys(("token_F", "strongest_FxK", "promoted_FxT", "suppressed_FxT"), 2**31)
        sizes = {"Q": len(QUANTILES), "B": BARS, "H": LOGIT_BARS}
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        check_arrays(path, arrays, STUDY_AGAIN, sizes, below)
        if not ((self.density_F >= 0) & (self.density_F <= 1)).all():
            raise ValueError("a density is not between 0 and 1")
        if any(getattr(self, name).keys() != labels for name in BY_LABEL):
            raise ValueError("its labels are not the same in all fields")
        for label, names in self.labels.items():
            counts = {"rows_L": self.label_rows[label], "count_FxL": self.label_count[label]}
            counts |= {"effective_F": self.label_effective[label], "score_2xSxF": self.label_score[label]}
            check_arrays(path, counts, STUDY_AGAIN, {"F": features, "L": len(names)})


def features_path(run: Path, member: str) -> Path:
    return run / "analysis" / "features" / f"{member}.npz"


def load_or_compute_features(
    run: FinishedRun,
    members: Sequence[str],
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Features]:
    """The statistics of each member, read from the run if they were computed before.

    Raises InputError as FinishedRun.store does.
    """
    features = {name: saved for name in members if (saved := Features.load(features_path(run.path, name)))}
    if missing := [name for name in members if name not in features]:
        kept = can_be_kept(run.path, say)
        model, done = run.language_model if run.has_language_model else None, 0
        for site in dict.fromkeys(map(run.site, missing)):
            store = run.store(site, cache_dir, on_progress, say)
            columns, split = store.manifest["text"]["columns"], store.train
            labels = labels_of(run.corpus, run.tokenizer, split.positions, split.first_position, columns)
            total = len(missing) * (len(store.train) + len(store.held_out))

            def advance(rows: int, total: int = total) -> None:
                nonlocal done
                done += rows
                on_progress("features", done, total)

            for name in missing:
                if run.site(name) == site:
                    dictionary = run.dictionary(name)
                    firing, rows_SxL = accumulate_firings(dictionary.sae, store, labels, 0, advance)
                    features[name] = summarize(firing, dictionary, model, site, labels, rows_SxL)
                    if kept:
                        features[name].save(features_path(run.path, name))
    return {name: features[name] for name in members}


def summarize(
    firing: FiringAccumulator,
    dictionary: Dictionary,
    model: LanguageModel | None,
    site: Site,
    labels: Mapping[str, Labels],
    rows_SxL: Mapping[str, np.ndarray],
) -> Features:
    """The statistics of a dictionary from its accumulated firings and from its weights."""
    rows = int(firing.rows_P.sum())
    top_value_FxK = firing.top.table("value", 0)
    sample_value_FxR, sample_row_FxR = firing.sample.table("value", 0), firing.sample.table("row", -1)
    token_F, token_share_F = most_frequent(firing.sample.table("token", -1))
    falling_FxR = np.argsort(-np.abs(sample_value_FxR), axis=1, kind="stable")
    tables = (sample_value_FxR, sample_row_FxR, firing.sample.table("window", -1), firing.sample.table("alike", 0))
    sample_value_FxR, sample_row_FxR, window_FxR, alike_FxR = (
        np.take_along_axis(table_FxR, falling_FxR, 1) for table_FxR in tables
    )
    W_dec_FxD = unit(dictionary.tensors["W_dec"])
    most = min(NEIGHBOURS, len(W_dec_FxD) - 1)
    neighbour_FxJ, neighbour_distance_FxJ = neighbours(W_dec_FxD, most)
    together_FxJ, together_phi_FxJ = firing.together.counted().closest(most)
    return Features(
        rows=rows,
        density_F=firing.count_F / rows,
        mean_F=firing.sum_F / np.maximum(firing.count_F, 1),
        max_F=top_value_FxK[:, 0],
        quantiles_FxQ=quantiles(sample_value_FxR, sample_row_FxR >= 0),
        top_value_FxK=top_value_FxK,
        top_row_FxK=firing.top.table("row", -1),
        strongest_FxK=without_repetition(firing.top.table("token", -1)),
        sample_value_FxR=sample_value_FxR,
        sample_row_FxR=sample_row_FxR,
        sample_new_FxR=is_new(firing, window_FxR, alike_FxR),
        bar_count_FxB=firing.histogram.count_FxB,
        bar_limit_F=firing.histogram.limit_F,
        token_F=token_F,
        token_share_F=token_share_F,
        position_FxP=firing.position_FxP / np.maximum(firing.rows_P, 1),
        cosine_F=(unit(dictionary.tensors["W_enc"].T) * W_dec_FxD).sum(1),
        neighbour_FxJ=neighbour_FxJ,
        neighbour_cosine_FxJ=1 - neighbour_distance_FxJ,
        together_FxJ=together_FxJ,
        together_phi_FxJ=together_phi_FxJ,
        **logit_statistics(model, site, dictionary.tensors["W_dec"]),
        labels={name: label_set.names for name, label_set in labels.items()},
        label_rows={name: count_SxL[0] for name, count_SxL in rows_SxL.items()},
        label_count={name: count_SxFxL[0] for name, count_SxFxL in firing.label_SxFxL.items()},
        label_effective={name: firing.effective(name) for name in labels},
        label_score={
            name: np.stack(
                [[score(*counts) for counts in zip(c_SxFxL, rows_SxL[name], strict=True)] for score in SCORES.values()]
            )
            for name, c_SxFxL in firing.label_SxFxL.items()
        },
    )


def most_frequent(token_FxR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(most frequent token, its share of the sample), [F] each; −1 and 0 if the sample is empty."""
    token_F, share_F = np.full(len(token_FxR), -1), np.zeros(len(token_FxR))
    for feature, tokens_R in enumerate(token_FxR):
        if (seen := tokens_R[tokens_R >= 0]).size:
            tokens, counts = np.unique(seen, return_counts=True)
            token_F[feature], share_F[feature] = tokens[counts.argmax()], counts.max() / len(seen)
    return token_F, share_F


def without_repetition(token_FxK: np.ndarray) -> np.ndarray:
    """The different tokens of each row in their order, followed by −1."""
    kept_FxK = np.full_like(token_FxK, -1)
    for feature, tokens_K in enumerate(token_FxK):
        different = list(dict.fromkeys(tokens_K[tokens_K >= 0].tolist()))
        kept_FxK[feature, : len(different)] = different
    return kept_FxK


def quantiles(value_FxR: np.ndarray, is_firing_FxR: np.ndarray) -> np.ndarray:
    """QUANTILES of the activations of each feature, [F, Q]; 0 if it never fires."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # dead features have only NaN
        quantile_QxF = np.nanquantile(np.where(is_firing_FxR, value_FxR, np.nan), QUANTILES, axis=1)
    return np.nan_to_num(quantile_QxF.T)


def is_new(firing: FiringAccumulator, window_FxR: np.ndarray, alike_FxR: np.ndarray) -> np.ndarray:
    """Whether a sampled firing repeats no window and no context of the top contexts and earlier samples, [F, R]."""
    strongest = firing.top.settle()
    entries = np.zeros(window_FxR.shape, ENTRY)
    entries["feature"], entries["window"] = np.arange(len(window_FxR))[:, None], window_FxR
    entries["alike"] = alike_FxR
    both = np.concatenate([strongest, entries.ravel()])  # `distinct` keeps the first of equal entries
    order = np.argsort(both["feature"], kind="stable")
    is_new_N = np.empty(len(both), bool)
    is_new_N[order] = distinct(both[order])
    return is_new_N[len(strongest) :].reshape(window_FxR.shape) & (window_FxR >= 0)
