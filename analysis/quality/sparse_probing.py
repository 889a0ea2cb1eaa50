"""Sparse probing: how well a few features predict a document's label, as in SAEBench (arXiv 2503.09532).

Shapes: N documents, C columns (features, or neurons of the raw activations).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.quality.probe import fit
from harvest.errors import InputError

MIN_TRAIN, MIN_HELD_OUT = 20, 5  # documents that a class needs


@dataclass(frozen=True)
class SparseProbing:
    """Accuracies on held-out documents. Half of the documents belong to the class, so chance is 0.5.

    `accuracy` is the mean over classes, by k ("1", "2", ..., and "all" columns). `columns` are each class's best ones.
    """

    accuracy: dict[str, float]
    classes: dict[str, dict[str, float]]
    columns: dict[str, list[int]]
    documents: dict[str, dict[str, int]]  # each class's documents to train on and held out; as many are of the rest
    left_out: dict[str, int]  # classes with too few documents, and their numbers of documents


def compute_sparse_probing(
    x_NxC: np.ndarray, labels_N: np.ndarray, is_train_N: np.ndarray, ks: tuple[int, ...] = (1, 2, 5), seed: int = 0
) -> SparseProbing:
    """One-vs-rest probes on the k mean-pooled columns with the largest |mean of the class − mean of the rest|.

    Columns are chosen and probes are trained on training documents only. The rest has as many documents as the class,
    drawn equally from all other classes. The same seed and labels give the same documents for any columns.
    Raises InputError if fewer than two classes are large enough.
    """
    names, sizes = np.unique(labels_N, return_counts=True)
    large = large_classes(labels_N, is_train_N)
    among_N = np.isin(labels_N, large)
    classes, columns, documents = {}, {}, {}
    for name in large:
        rng = np.random.default_rng(seed)
        train_M = balanced(labels_N, name, among_N & is_train_N, rng)
        test_M = balanced(labels_N, name, among_N & ~is_train_N, rng)
        x_MxC, is_class_M = x_NxC[train_M], labels_N[train_M] == name
        difference_C = np.abs(x_MxC[is_class_M].mean(0) - x_MxC[~is_class_M].mean(0))
        best_C = np.argsort(-difference_C, kind="stable")
        chosen = {str(k): best_C[:k] for k in ks} | {"all": np.arange(x_NxC.shape[1])}
        classes[str(name)] = {
            k: fit(x_MxC[:, best], is_class_M).accuracy(x_NxC[test_M][:, best], labels_N[test_M] == name)
            for k, best in chosen.items()
        }
        columns[str(name)] = best_C[: max(ks)].tolist()
        documents[str(name)] = {"train": len(train_M) // 2, "held_out": len(test_M) // 2}
    means = {k: float(np.mean([accuracy[k] for accuracy in classes.values()])) for k in (*map(str, ks), "all")}
    left_out = {str(n): int(size) for n, size in zip(names, sizes, strict=True) if n not in large}
    return SparseProbing(means, classes, columns, documents, left_out)


def large_classes(labels_N: np.ndarray, is_train_N: np.ndarray) -> list[str]:
    """The classes with enough documents to train on and held out. Raises InputError if there are fewer than two."""
    names = np.unique(labels_N)
    large = [
        name
        for name in names
        if ((labels_N == name) & is_train_N).sum() >= MIN_TRAIN
        and ((labels_N == name) & ~is_train_N).sum() >= MIN_HELD_OUT
    ]
    if len(large) < 2:
        raise InputError(
            f"no two labels of {', '.join(names[:10])} have {MIN_TRAIN} documents to train on and {MIN_HELD_OUT} "
            "held out: give more documents, or another --label"
        )
    return large


def balanced(labels_N: np.ndarray, name: str, among_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of a class and of equally many others, which are taken from the other classes in turn."""
    rows = rng.permutation(np.flatnonzero(among_N))
    members, rest = rows[labels_N[rows] == name], rows[labels_N[rows] != name]
    turn = np.zeros(len(rest), np.int64)
    for other in np.unique(labels_N[rest]):
        is_other = labels_N[rest] == other
        turn[is_other] = np.arange(is_other.sum())
    rest = rest[np.argsort(turn, kind="stable")]
    count = min(len(members), len(rest))
    return np.concatenate([members[:count], rest[:count]])
