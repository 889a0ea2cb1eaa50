"""A dictionary spliced into a language model: the output and its gradients equal those that are computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_model

import sae_jax
from harvest.errors import InputError
from harvest.interventions.attribution import Output
from harvest.interventions.loss_recovered import PatchedForward
from harvest.model.language_model import LanguageModel
from harvest.request import STREAMS, Site
from harvest.sources import BUNDLED_MODEL
from sae_jax.formats import Dictionary
from sae_jax.formats.saelens import new_cfg
from sae_jax.loading import LoadedSAE

TOKENS_WxT = np.random.default_rng(0).integers(1, 2000, (3, 7))
F, K = 64, 8
SITE = Site(1, "resid_pre")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(str(BUNDLED_MODEL), device="cpu")


def dictionary(hook_name: str | None = SITE.hook_name, d_in: int = 256) -> LoadedSAE:
    rng = np.random.default_rng(1)
    tensors = {"W_enc": rng.standard_normal((d_in, F)), "W_dec": rng.standard_normal((F, d_in))}
    tensors |= {"b_enc": rng.standard_normal(F), "b_dec": rng.standard_normal(d_in)}
    cfg = new_cfg("topk", d_in, F, {"hook_name": hook_name}, K)
    tensors = {name: 0.1 * tensor.astype(np.float32) for name, tensor in tensors.items()}
    return LoadedSAE(Dictionary("random", "saelens", cfg, tensors), Path("nowhere"))


def in_float64(sae: LoadedSAE, x_WxTxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features, reconstruction) of a TopK dictionary."""
    t = {name: np.float64(tensor) for name, tensor in sae.dictionary.tensors.items()}
    z = (x_WxTxD - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    f = np.where(z >= np.sort(z, -1)[..., [-K]], np.maximum(z, 0), 0)
    return f, f @ t["W_dec"] + t["b_dec"]


def logits(model: LanguageModel) -> torch.Tensor:
    return model.bridge(torch.tensor(TOKENS_WxT), return_type="logits", use_cache=False)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("hook", [*STREAMS, "z"])
def test_the_model_runs_on_with_the_reconstruction(model, hook, first):
    site = Site(1, hook)
    sae = dictionary(site.hook_name)
    with torch.no_grad():
        run = PatchedForward(model, torch.tensor(TOKENS_WxT), site)
        f_WxTxF, x_hat_WxTxD = in_float64(sae, run.activation_WxTxD.numpy())
        x_WxTxD = run.activation_WxTxD.clone()
        x_WxTxD[:, first:] = torch.from_numpy(x_hat_WxTxD.astype(np.float32))[:, first:]
        expected = run.run_with(x_WxTxD)
        with sae_jax.spliced(model.bridge, sae, first_position=first) as splice:
            result = logits(model)
        torch.testing.assert_close(result, expected, atol=2e-3, rtol=1e-3)
        assert (result - logits(model)).abs().max() > 0.5  # the reconstruction of random weights is bad
    np.testing.assert_allclose(splice.features_WxPxF, f_WxTxF[:, first:], atol=1e-4)
    error_WxTxD = run.activation_WxTxD.numpy() - x_hat_WxTxD
    np.testing.assert_allclose(splice.error_WxPxD, error_WxTxD[:, first:], atol=1e-3)


@pytest.mark.parametrize("point", [Site(1, hook).hook_name for hook in (*STREAMS, "z", "mlp_in")])
def test_with_the_error_term_the_output_and_its_gradient_stay_as_they_are(model, point):
    sae, embedding = dictionary(point), model.bridge.original_model.get_input_embeddings().weight
    plain = logits(model)
    (gradient,) = torch.autograd.grad(plain[:, -1, 7].sum(), embedding)
    with sae_jax.spliced(model, sae, error_term=True) as splice:
        result = logits(model)
    assert torch.equal(result, plain)
    parts = (embedding, splice.features_WxPxF, splice.error_WxPxD)
    same, of_features, of_error = torch.autograd.grad(result[:, -1, 7].sum(), parts)
    torch.testing.assert_close(same, gradient, atol=1e-4, rtol=1e-3)
    assert of_error.abs().sum() > 0
    torch.testing.assert_close(of_features, of_error @ torch.tensor(np.array(sae.W_dec)).T, atol=1e-5, rtol=1e-3)


def test_the_gradient_of_the_features_is_that_of_the_model_at_the_reconstruction(model):
    sae, contrast_V = dictionary(), np.zeros(model.bridge.cfg.d_vocab)
    contrast_V[7] = 1
    output = Output(model, TOKENS_WxT[0], SITE, contrast_V)
    _, x_hat_TxD = in_float64(sae, output.activation_TxD)
    expected_TxF = output.gradients(x_hat_TxD[None])[0] @ np.asarray(sae.W_dec).T
    module = sae.to_torch()
    with sae_jax.spliced(model, module) as splice:
        result = logits(model)[0, -1, 7]
    of_features, of_weights = torch.autograd.grad(result, (splice.features_WxPxF, module.W_enc))
    np.testing.assert_allclose(of_features[0], expected_TxF, atol=1e-4, rtol=1e-2)
    assert of_weights.abs().sum() > 0  # the weights of a module can be trained


def test_a_model_in_bfloat16_stays_in_bfloat16(tmp_path):
    model = LanguageModel.load(str(write_model("gpt2", tmp_path)), device="cpu")
    model.bridge.to(torch.bfloat16)
    sae, plain = dictionary(d_in=32), logits(model)
    with sae_jax.spliced(model, sae, error_term=True) as splice:
        assert torch.equal(logits(model), plain)
    assert splice.features_WxPxF.dtype == torch.float32
    with sae_jax.spliced(model, sae):
        result = logits(model)
    assert result.dtype == plain.dtype == torch.bfloat16 and not torch.equal(result, plain)


def test_splices_can_be_nested_and_leave_nothing_behind(model):
    first, second = dictionary(), dictionary("blocks.3.hook_mlp_out")
    with torch.no_grad():
        plain = logits(model)
        with sae_jax.spliced(model, first):
            only_first = logits(model)
            with sae_jax.spliced(model, second) as splice:
                model.bridge(torch.tensor(TOKENS_WxT), stop_at_layer=2)  # stops between the two
                assert splice.features_WxPxF is None
                both = logits(model)
            assert torch.equal(logits(model), only_first) and not torch.equal(both, only_first)
        assert torch.equal(logits(model), plain)
        with sae_jax.spliced(model, first), pytest.raises(ZeroDivisionError):
            model.bridge.run_with_hooks(
                torch.tensor(TOKENS_WxT), fwd_hooks=[("blocks.2.hook_resid_pre", lambda x, hook: 1 // 0)]
            )
        assert torch.equal(logits(model), plain)


def test_no_windows_give_no_logits(model):
    with sae_jax.spliced(model, dictionary()):
        assert model.bridge(torch.zeros((0, 7), dtype=torch.long), return_type="logits").shape[:2] == (0, 7)


@pytest.mark.parametrize(
    ("sae", "how", "reason"),
    [
        (
            dictionary(None),
            {},
            "hook_name: the files of the dictionary do not name its hook: give it, such as blocks.0.hook_resid_pre",
        ),
        (
            dictionary(),
            {"hook_name": "blocks.2.hook_mlpout"},
            "hook_name: no hook point .*: did you mean blocks.2.hook_mlp_out",
        ),
        (dictionary(), {"first_position": -1}, "first_position=-1 is no position: give a whole number, 0 or more"),
        (dictionary(), {"first_position": 1.0}, "first_position=1.0 is no position"),
        ("runs/mine", {}, "spliced cannot use 'runs/mine': give what sae_jax.load returns, or its to_torch"),
        (dictionary(d_in=32), {}, r"width 32 cannot replace an activation of shape \[3, 7, 256\]"),
        (dictionary(), {"first_position": 7}, r"shape \[3, 7, 256\] from position 7 on: .* without a cache"),
        (dictionary(), {"hook_name": "blocks.1.mlp.hook_pre"}, "cannot replace an activation of shape"),
    ],
)
def test_what_cannot_be_spliced_is_refused(model, sae, how, reason):
    with pytest.raises(InputError, match=reason), sae_jax.spliced(model, sae, **how):
        logits(model)


def test_a_model_is_needed():
    with (
        pytest.raises(
            InputError, match="a TransformerBridge or a run's language_model first, not an object of type Load"
        ),
        sae_jax.spliced(dictionary(), dictionary()),
    ):
        pass


def test_a_splice_and_its_module_describe_themselves(model):
    with sae_jax.spliced(model, dictionary(), first_position=2) as splice, torch.no_grad():
        assert repr(splice) == "Splice(the model has not run)"
        logits(model)
    assert "64 features at 5 positions of 3 windows" in repr(splice)
    assert "topk, 256 → 64 features, reads blocks.1.hook_resid_pre" in repr(dictionary().to_torch())


def test_a_stream_that_does_not_become_the_reconstruction_is_refused(tmp_path):
    model = LanguageModel.load(str(write_model("post-norm opt", tmp_path)), device="cpu")
    sae = dictionary("blocks.1.hook_resid_mid", d_in=32)
    with pytest.raises(InputError, match="in this model it is not resid_pre . attn_out"), sae_jax.spliced(model, sae):
        logits(model)
