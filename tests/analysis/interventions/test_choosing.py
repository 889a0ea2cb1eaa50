"""The choice of a feature for a concept: its words' tokens, the features that promote them, and the output score."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.features.statistics import Features
from analysis.interventions.choosing import (
    AMPLIFIED,
    output_scores,
    promoting_features,
    word_tokens,
)
from harvest.errors import InputError
from harvest.interventions.steering import changing, next_probabilities
from harvest.request import Site
from sae_jax.models.registry import KINDS

SITE, F = Site(2, "resid_pre"), 24


def test_the_output_score_by_the_formula(model):
    rng = np.random.default_rng(3)
    W_FxD = rng.standard_normal((F, 256)).astype(np.float32) / 16
    sae = KINDS["relu"]({"W_encT": W_FxD, "W_dec": W_FxD, "b_enc": np.zeros(F), "b_dec": np.zeros(256)})
    watched, max_F = rng.integers(1, 4096, 20).tolist(), np.linspace(0, 3, F)
    scores = output_scores(model, SITE, sae, [4, 9, 20], watched, max_F, 1)
    assert list(scores.values()) == sorted(scores.values(), reverse=True) and set(scores) == {4, 9, 20}
    ids = model.token_ids(np.array([model.tokenizer("From my experience,", add_special_tokens=False)["input_ids"]]))
    for i, score in scores.items():
        expected = []
        for amplified in AMPLIFIED:
            shift = torch.from_numpy(np.asarray(amplified * max_F[i] * sae.W_dec[i], np.float32))
            steered = changing(model, SITE, lambda x, s=shift: torch.cat([x[:, :1], x[:, 1:] + s], 1))
            with torch.inference_mode(), steered:
                p_V = model.bridge(ids, return_type="logits", use_cache=False)[0, -1].softmax(-1).numpy()
            ranks = {t: int((p_V > p_V[t]).sum()) for t in watched}
            expected.append((1 - min(ranks.values()) / 4096) * max(p_V[t] for t in watched))
        assert score == pytest.approx(max(expected), rel=1e-3)
    p_CxV = next_probabilities(model, ids[0].tolist(), SITE, np.zeros((1, 256), np.float32), 1)
    assert p_CxV.sum() == pytest.approx(1, abs=1e-4)


def test_the_tokens_of_a_concept(model):
    def words(phrase: str) -> list[str]:
        return [model.tokenizer.decode([token]) for token in word_tokens(model.tokenizer, phrase)]

    assert words("the Golden Gate Bridge") == [" Golden", " golden", " Bridge", " bridge"]  # and " G", " g"
    assert words("the") == [" the", " The"]  # function words are kept if there are no others
    with pytest.raises(InputError, match="no word"):
        words("?!")


def test_features_that_promote_a_watched_token_and_fire_by_their_largest_weight():
    of = SimpleNamespace(
        max_F=np.array([1, 1, 1, 1, 1, -1]),
        alive_F=np.array([True, True, False, True, True, True]),
        promoted_FxT=np.array([[7, 8], [8, 9], [7, 9], [9, 7], [5, 6], [8, 9]]),
        suppressed_FxT=np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [7, 6]]),
        promoted_weight_FxT=np.array([[0.5, 0.4], [0.9, 0.8], [0.9, 0.8], [0.7, 0.6], [0.9, 0.8], [1.0, 1.0]]),
        suppressed_weight_FxT=np.array([[-1, -1], [-1, -1], [-1, -1], [-1, -1], [-1, -1], [-0.55, -0.5]]),
    )
    of.promoted_at_peak = partial(Features.promoted_at_peak, of)
    assert promoting_features(of, [7], 5) == [3, 5, 0]  # 2 never fires; 1 and 4 promote other tokens
    assert promoting_features(of, [7, 8], 2) == [1, 3]
