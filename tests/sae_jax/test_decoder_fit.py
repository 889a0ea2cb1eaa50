"""The decoder is fitted to the features of training rows: against float64 least squares, for all kinds."""

from dataclasses import replace

import numpy as np
import pytest
from populations import member_of
from rows import make_store

from sae_jax import decoder_fit
from sae_jax.config import TrainConfig
from sae_jax.decoder_fit import PRIOR_FIRINGS, with_fitted_decoder
from sae_jax.formats.dictionary import Dictionary
from sae_jax.formats.trained import trained_dictionary
from sae_jax.models.registry import KINDS
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train

FITTED = [kind for kind in KINDS if KINDS[kind].fits_decoder]


def random_dictionary(kind: str, store, hidden_dim: int = 96) -> Dictionary:
    rng, d = np.random.default_rng(1), store.d_model
    W_enc, b_enc = rng.standard_normal((d, hidden_dim)), np.full(hidden_dim, -1.0)
    W_enc[:, 0], b_enc[:2] = 0, (0, 5)  # one feature never fires, another often
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": rng.standard_normal((hidden_dim, d)) / 6, "b_dec": store.mean}
    tensors |= {name: np.asarray(value) for name, value in KINDS[kind].extra_params(hidden_dim).items()}
    tensors = KINDS[kind].export(tensors, {"threshold": 0.1, "k": 12})
    control = {"k": 12} if KINDS[kind].by_rank or KINDS[kind].has_auxk else {}
    member = member_of(activation=kind, hidden_dim=hidden_dim, **control)
    return trained_dictionary(member, {name: np.asarray(t, np.float32) for name, t in tensors.items()}, store.manifest)


def losses_of(kind: str, dictionary: Dictionary, x_NxD: np.ndarray, W_FxD: np.ndarray) -> float:
    """The mean squared error of the reconstructions of a kind and the prior, from their definitions in float64."""
    f_NxF, trained_FxD = np.asarray(dictionary.sae.encode(x_NxD), float), dictionary.tensors["W_dec"]
    ends = KINDS[kind].ends(dictionary.d_sae) if kind == "matryoshka" else [dictionary.d_sae]
    target_NxD = x_NxD - dictionary.tensors["b_dec"].astype(float)
    errors = [np.square(target_NxD - f_NxF[:, :end] @ W_FxD[:end]).sum() for end in ends]
    firing_square_F = np.square(f_NxF).sum(0) / np.maximum((f_NxF != 0).sum(0), 1)
    return np.mean(errors) + PRIOR_FIRINGS * (firing_square_F[:, None] * np.square(W_FxD - trained_FxD)).sum()


@pytest.mark.parametrize("by_iteration", [False, True])
@pytest.mark.parametrize("kind", FITTED)
def test_no_other_decoder_has_a_smaller_error(tmp_path, monkeypatch, kind, by_iteration):
    if by_iteration:
        monkeypatch.setattr(decoder_fit, "WIDEST_SOLVED", 0)
        monkeypatch.setattr(decoder_fit, "ITERATIONS", 300)
        monkeypatch.setattr(decoder_fit, "DENSE", 1)
    store = make_store(tmp_path, dtype="float32")
    dictionary, x_NxD = random_dictionary(kind, store), store.train.read(0, len(store.train))
    fitted = with_fitted_decoder(dictionary, store.train, KINDS[kind].shares_of_losses(dictionary.d_sae))
    W_FxD = fitted.tensors["W_dec"].astype(float)
    least, rng = losses_of(kind, dictionary, x_NxD, W_FxD), np.random.default_rng(2)
    assert least < losses_of(kind, dictionary, x_NxD, dictionary.tensors["W_dec"])
    for _ in range(20):
        change_FxD = 1e-2 * rng.standard_normal(W_FxD.shape)
        sides = [losses_of(kind, dictionary, x_NxD, W_FxD + sign * change_FxD) for sign in (-1, 1)]
        assert min(sides) > least
        slope, curvature = sides[1] - sides[0], sum(sides) - 2 * least
        assert abs(slope) < 1e-2 * curvature, "the gradient is zero"
    np.testing.assert_array_equal(fitted.tensors["W_dec"][0], dictionary.tensors["W_dec"][0])  # it never fires
    assert {name for name in fitted.tensors if fitted.tensors[name] is not dictionary.tensors[name]} == {"W_dec"}


@pytest.mark.parametrize("kind", ["relu", "topk", "gated"])
def test_a_trained_dictionary_explains_more_held_out_variance(tmp_path, kind):
    store, explained = make_store(tmp_path / "store", windows=2000), {}
    for fit in (False, True):
        config = TrainConfig(activation=(kind,), hidden_dim=64, k=8, target_l0=8, epochs=2, fit_decoder=fit)
        run = RunDirectory(tmp_path / f"run-{fit}", {"train": config.to_json()})
        (member,) = train(config, [store], run)["members"]
        explained[fit] = member["metrics"]
    assert explained[True]["explained_variance"] > explained[False]["explained_variance"] + 0.001
    assert explained[True]["l0"] == explained[False]["l0"], "the features stay the same"


def test_a_dictionary_whose_features_overflow_stays_as_it_is(tmp_path):
    store = make_store(tmp_path)
    dictionary = random_dictionary("relu", store)
    W_enc = np.full_like(dictionary.tensors["W_enc"], 1e38)
    huge = replace(dictionary, tensors=dictionary.tensors | {"W_enc": W_enc})
    assert with_fitted_decoder(huge, store.train, np.ones(huge.d_sae)) is huge
