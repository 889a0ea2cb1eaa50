"""Near-copies among the windows and documents of a store. Shuffled labels must be the same for all copies of a text.

They are found by MinHash (Broder 1997) over sequences of three tokens: two texts that share a fraction J of these
sequences agree on about the same fraction of their minimal hashes. Near-copies agree on at least half. A text in which
one word in twenty is changed has J = 0.75. The copies of harvest/text/near_copies.py are not these: it hashes the words
of whole texts. With its hashes, other borderline pairs would count as copies, and saved statistics would change.

Memory: 64 bytes per window.

Shapes: W windows, T tokens per window, G documents, U windows or documents, H hashes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harvest.store import ActivationStore
from harvest.text.hashes import context_hashes, hashed

HASHES, LEAST_SHARED = 16, 0.5
RUN = 3  # tokens
AT_ONCE = 1 << 18  # tokens


class Originals(NamedTuple):
    """For each window and document the number of the first one that it is a near-copy of, or its own number."""

    window_W: np.ndarray  # training windows first
    document_G: np.ndarray


def originals_in(store: ActivationStore) -> Originals:
    parts, documents = [], []
    for split in (store.train, store.held_out):
        windows = split.n_windows
        step = max(1, AT_ONCE // (split.first_position + split.positions))
        for start in range(0, windows, step):
            tokens_WxT, document_W = split.read_windows(start, start + step)
            parts.append(signatures(tokens_WxT))
            documents.append(document_W)
    signature_WxH, document_W = np.concatenate(parts), np.concatenate(documents)
    signature_GxH = np.full((document_W.max() + 1, HASHES), np.iinfo(np.uint32).max, np.uint32)
    np.minimum.at(signature_GxH, document_W, signature_WxH)
    read = np.unique(document_W)
    document_G = np.arange(len(signature_GxH))
    document_G[read] = read[originals(signature_GxH[read])]
    return Originals(originals(signature_WxH), document_G)


def signatures(tokens_WxT: np.ndarray) -> np.ndarray:
    """The minimal hashes of each window, uint32 [W, H]."""
    runs_WxT = context_hashes(tokens_WxT, RUN - 1)[:, min(RUN, tokens_WxT.shape[1]) - 1 :]
    keys_H = hashed(np.arange(HASHES, dtype=np.uint64))
    return np.stack([(hashed(runs_WxT ^ key) >> np.uint64(32)).min(1) for key in keys_H], 1).astype(np.uint32)


def originals(signature_UxH: np.ndarray) -> np.ndarray:
    first_U = np.arange(len(signature_UxH))
    for hash_U in signature_UxH.T:
        _, index, inverse_U = np.unique(hash_U, return_index=True, return_inverse=True)
        other_U = index[inverse_U]
        is_copy_U = (signature_UxH[other_U] == signature_UxH).mean(1) >= LEAST_SHARED
        first_U = np.where(is_copy_U, np.minimum(first_U, other_U), first_U)
    while (first_U[first_U] != first_U).any():
        first_U = first_U[first_U]
    return first_U
