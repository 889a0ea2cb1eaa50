"""Activations of features at every token of their contexts, and the chunks of rows that passes over a store read.

Shapes: C contexts, L tokens of a context, W windows, P positions of a window that have a row, N = W·P rows, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from analysis.features.contexts import place
from harvest.store import ActivationStore
from harvest.text.hashes import context_hashes
from sae_jax.formats import Dictionary
from sae_jax.formats.dictionary import BY_K
from sae_jax.models.base import SAE

PADDED = 256  # rows are padded to a multiple of this, so that pages share compiled programs
CONTEXT_TOKENS = 10  # rows whose token and as many tokens before it are equal count as one context
CHUNK_ROWS, CHUNK_VALUES = 4096, 1 << 27  # rows, and activations, that are encoded at once, at most
LONGEST = 128  # tokens of a context, at most: a longer window is cut around the row


@dataclass(frozen=True)
class FeatureValues:
    """Activations at the tokens of the requested contexts; 0 at a first position that training left out."""

    value_CxL: np.ndarray
    start_C: np.ndarray  # position of each context's first token in its window


def feature_values(
    sae: SAE,
    store: ActivationStore,
    feature_C: np.ndarray,
    row_C: np.ndarray,
    on_rows: Callable[[int], None] = lambda n: None,
) -> FeatureValues:
    """The activations of feature `feature_C[c]` in the window of row `row_C[c]`, for each context c.

    Held-out rows are numbered after the training rows. Every row of the store is encoded once, in one pass over it,
    for any number of contexts. Memory: 4 bytes per context and token.
    """
    tokens = store.train.first_position + store.train.positions
    length = min(LONGEST, tokens)
    window_C, position_C = store.places(row_C)
    start_C = np.clip(position_C - length // 2, 0, tokens - length)
    position_CxL = start_C[:, None] + np.arange(length)
    value_CxL = np.zeros((len(row_C), length), np.float32)
    order_C = np.argsort(window_C, kind="stable")
    sorted_C = window_C[order_C]

    graphdef, weights = nnx.split(sae)
    size = rows_at_once(sae.W_dec.shape[0])
    for chunk in chunks(store, size):
        f_NxF, before = encode_padded(graphdef, weights, chunk.x_NxD, size), chunk.window_N[0]
        row_WxT = np.full((chunk.window_N[-1] + 1 - before, tokens), -1)  # −1 at a position without a row
        row_WxT[chunk.window_N - before, store.train.first_position + chunk.position_N] = np.arange(len(f_NxF))
        here_C = order_C[slice(*np.searchsorted(sorted_C, [before, before + len(row_WxT)]))]
        row_CxL = row_WxT[window_C[here_C, None] - before, position_CxL[here_C]]
        value_CxL[here_C] = np.where(row_CxL >= 0, f_NxF[row_CxL, feature_C[here_C, None]], 0)
        on_rows(len(chunk.row_N))
    return FeatureValues(value_CxL, start_C)


def context_tokens(store: ActivationStore, values: FeatureValues, number: int, row: int) -> tuple[np.ndarray, int]:
    """(the tokens [L] of context `number`, which is that of `row`; the index of the row's own token in them)."""
    tokens_T, position, _ = place(store, row)
    start, length = int(values.start_C[number]), values.value_CxL.shape[1]
    return tokens_T[start : start + length], position - start


def values_of_feature(dictionary: Dictionary, feature: int, x_NxD: np.ndarray) -> np.ndarray:
    """One feature's activation on raw rows, [N]. Other features are encoded only if the kind makes features compete.

    The last bits may differ from those of an encoding of all features, which interventions use.
    """
    if dictionary.cfg["architecture"] in BY_K:
        sae, column = dictionary.sae, feature
    else:
        part, column = slice(feature, feature + 1), 0
        tensors = {name: t if name == "b_dec" else t[part] for name, t in dictionary.tensors.items() if name != "W_enc"}
        tensors["W_enc"] = dictionary.tensors["W_enc"][:, part]
        sae = replace(dictionary, cfg={**dictionary.cfg, "d_sae": 1}, tensors=tensors).sae
    return encode_padded(*nnx.split(sae), x_NxD, PADDED)[:, column]


class Chunk(NamedTuple):
    """Consecutive rows of a store and where they come from. Held-out rows are numbered after the training rows."""

    x_NxD: np.ndarray
    row_N: np.ndarray
    window_N: np.ndarray  # those of held-out rows are numbered after those of the training rows
    token_N: np.ndarray
    position_N: np.ndarray  # 0 for the first position of a window that has rows
    document_N: np.ndarray
    alike_N: np.ndarray  # hash of the token and the tokens before it: equal for equal contexts


def chunks(store: ActivationStore, rows_at_once: int) -> Iterator[Chunk]:
    """All rows of a store, training rows first, in chunks of whole windows with about `rows_at_once` rows."""
    rows_before = windows_before = 0
    for split in (store.train, store.held_out):
        step = max(1, rows_at_once // split.positions)
        for start in range(0, split.n_windows, step):
            begin, end = split.rows_between(start, start + step)
            if begin == end:
                continue
            tokens_WxT, _ = split.read_windows(start, start + step)
            kept_WxP, alike_WxT = split.kept_positions(start, start + step), context_hashes(tokens_WxT, CONTEXT_TOKENS)
            window_N, position_N = np.nonzero(kept_WxP)
            yield Chunk(
                split.read(begin, end).astype(np.float32),
                np.arange(begin, end) + rows_before,
                window_N + start + windows_before,
                tokens_WxT[:, split.first_position :][kept_WxP],
                position_N,
                split.row_documents(start, start + step),
                alike_WxT[:, split.first_position :][kept_WxP],
            )
        rows_before, windows_before = rows_before + len(split), windows_before + split.n_windows


def rows_at_once(features: int) -> int:
    return max(1, min(CHUNK_ROWS, CHUNK_VALUES // features))


def encode_padded(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: np.ndarray, multiple: int) -> np.ndarray:
    """The activations of all features on rows, [N, F]. Padding to a multiple of rows limits the number of programs."""
    padded_NxD = np.pad(x_NxD, ((0, -len(x_NxD) % multiple), (0, 0)))
    return np.asarray(encode(graphdef, weights, padded_NxD))[: len(x_NxD)]


@partial(jax.jit, static_argnums=0)
def encode(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, weights).encode(x_NxD)
