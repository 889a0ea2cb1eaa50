"""`encode` and `decode` of a loaded dictionary, for rows of any library and format, and the choice of a member."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from plain_sae import CASES, D, F, saelens_dictionary, saelens_in_numpy

from harvest.errors import InputError
from sae_jax.loading import LoadedSAE
from sae_jax.lookup import only_member

X_NxD = np.random.default_rng(0).integers(-8, 8, (50, D)).astype(np.float32)  # exact in every format, even float8
ARCHITECTURES = ("standard", "jumprelu", "topk", "abstopk", "gated")


def in_memory(architecture: str, metadata: dict | None = None, **settings) -> LoadedSAE:
    dictionary = saelens_dictionary(architecture, **settings)
    return LoadedSAE(replace(dictionary, cfg=dictionary.cfg | {"metadata": metadata or {}}), Path("nowhere"))


@pytest.fixture(scope="module")
def sae() -> LoadedSAE:
    return in_memory("topk")


# The rows, and the largest relative error of a result that is rounded to their format.
ROWS = {
    "numpy, float16": (lambda x: x.astype(np.float16), 0),
    "numpy, float32": (lambda x: x, 0),
    "numpy, float64": (lambda x: x.astype(np.float64), 0),
    "numpy, whole numbers": (lambda x: x.astype(np.int64), 0),
    "numpy, read-only": (lambda x: np.broadcast_to(x, x.shape), 0),
    "numpy, lists": (lambda x: x.tolist(), 0),
    "jax, float32": (jnp.asarray, 0),
    "jax, bfloat16": (lambda x: jnp.asarray(x, jnp.bfloat16), 0),
    "torch, float16": (lambda x: torch.tensor(x, dtype=torch.float16), 2**-11),
    "torch, bfloat16": (lambda x: torch.tensor(x, dtype=torch.bfloat16), 2**-8),
    "torch, float32": (torch.tensor, 0),
    "torch, float64": (lambda x: torch.tensor(x, dtype=torch.float64), 0),
    "torch, float8": (lambda x: torch.tensor(x).to(torch.float8_e4m3fn), 2**-4),
    "torch, whole numbers": (lambda x: torch.tensor(x, dtype=torch.int64), 0),
    "torch, not contiguous": (lambda x: torch.tensor(x.T.copy()).T, 0),
    "torch, sparse": (lambda x: torch.tensor(x).to_sparse(), 0),
    "torch, negated in place": (lambda x: torch._neg_view(torch.tensor(-x)), 0),
    "torch, a parameter": (lambda x: torch.nn.Parameter(torch.tensor(x)), 0),
}
LIBRARY = {"numpy": np.ndarray, "jax": jax.Array, "torch": torch.Tensor}


def assert_of(result, form: str, rows, expected: np.ndarray) -> None:
    """`result` equals `expected` after rounding, and has the library and the number format that belong to the rows."""
    library, rounding = form.partition(",")[0], ROWS[form][1]
    assert isinstance(result, LIBRARY[library])
    if library == "torch":
        assert result.dtype == (rows.dtype if rows.is_floating_point() else torch.float32)
        assert result.requires_grad == rows.requires_grad
        result = result.detach().double()
    else:
        assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5 + rounding, atol=1e-4 + rounding / 4)


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_have_the_library_and_the_format_of_the_rows(architecture, form):
    sae, x = in_memory(architecture), ROWS[form][0](X_NxD)
    features, reconstruction = saelens_in_numpy(sae.dictionary, X_NxD.astype(np.float64))
    assert (features != 0).any() and (features == 0).any()
    assert_of(sae.encode(x), form, x, features)
    assert_of(sae(x), form, x, reconstruction)
    whole_NxF = np.resize(X_NxD, (50, F))
    f, by_hand = ROWS[form][0](whole_NxF), whole_NxF @ np.float64(sae.W_dec) + np.float64(sae.b_dec)
    assert_of(sae.decode(f), form, f, by_hand)


CENTERED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
MODELS = [(case, {}) for case in CASES] + [((architecture, {}), CENTERED) for architecture in ARCHITECTURES]


@pytest.mark.parametrize(("case", "metadata"), MODELS)
def test_torch_computes_what_saelens_computes_and_its_gradient(case, metadata):
    sae = in_memory(case[0], metadata, **case[1])

    def by_hand(x_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean_Nx1 = x_NxD.mean(1, keepdims=True) if metadata else 0
        features, reconstruction = saelens_in_numpy(sae.dictionary, x_NxD - mean_Nx1)
        return features, reconstruction + mean_Nx1

    x_NxD = np.random.default_rng(0).standard_normal((50, D)) + 0.5
    x = torch.tensor(x_NxD, dtype=torch.float32, requires_grad=True)
    f, x_hat = sae.encode(x), sae(x)
    np.testing.assert_allclose(f.detach(), by_hand(x_NxD)[0], atol=2e-5)
    np.testing.assert_allclose(x_hat.detach(), by_hand(x_NxD)[1], atol=1e-4)
    torch.sin(x_hat).sum().backward()
    for d, step in enumerate(1e-6 * np.eye(D)):
        (f_up, up), (f_down, down) = by_hand(x_NxD + step), by_hand(x_NxD - step)
        smooth_N = ((f_up != 0) == (f_down != 0)).all(1)
        assert smooth_N.sum() > 45
        slope_N = (np.sin(up) - np.sin(down)).sum(1) / 2e-6
        np.testing.assert_allclose(x.grad[smooth_N, d], slope_N[smooth_N], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(0, D), (0, 2, D), (D,), (5, 1, D)])
def test_rows_may_have_any_leading_dimensions(architecture, shape, library):
    sae, of = in_memory(architecture), {"numpy": np.asarray, "jax": jnp.asarray, "torch": torch.tensor}[library]
    x = np.resize(X_NxD, shape)
    f = sae.encode(of(x))
    assert f.shape == (*shape[:-1], F) and sae(of(x)).shape == shape and sae.decode(f).shape == shape
    if x.size:
        np.testing.assert_allclose(np.asarray(f).reshape(-1, F), sae.encode(x.reshape(-1, D)), atol=1e-5)


def test_the_torch_module_computes_the_same_and_can_be_trained(sae):
    module, x = sae.to_torch(), torch.tensor(X_NxD)
    assert (module.d_in, module.d_sae, module.hook_name) == (sae.d_in, sae.d_sae, sae.hook_name) == (D, F, None)
    assert torch.equal(module.encode(x), sae.encode(x)) and torch.equal(module(x), sae(x))
    assert torch.equal(module.decode(sae.encode(x)), sae(x))
    before, optimizer = module(x).sub(x).square().sum(), torch.optim.SGD(module.parameters(), 1e-5)
    before.backward()
    optimizer.step()
    assert module(x).sub(x).square().sum() < before and {p.dtype for p in module.parameters()} == {torch.float32}
    assert not torch.equal(module(x), sae(x))  # the loaded SAE stays as it is
    assert module.to(torch.bfloat16)(x).dtype == torch.float32


def test_torch_ignores_autocast_and_forgets_inference_mode():
    sae, x = in_memory("gated"), torch.tensor(X_NxD, requires_grad=True)
    with torch.inference_mode():
        expected = sae(x)  # the first call makes the module
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sae(x)
    assert torch.equal(result, expected)
    result.sum().backward()
    assert x.grad.abs().sum() > 0


def test_loaded_saes_can_be_compared_and_collected(sae):
    assert sae == sae and sae != in_memory("topk") and len({sae, sae}) == 1


def test_numpy_results_can_be_written_to(sae):
    sae.encode(X_NxD)[:] = 0


def test_encoding_can_be_differentiated_and_compiled(sae):
    total = jax.jit(lambda x: sae.encode(x).sum())
    assert np.isfinite(jax.grad(total)(jnp.asarray(X_NxD))).all()


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated"])
def test_what_is_first_used_in_a_compiled_function_can_be_used_outside(architecture):
    sae = in_memory(architecture)
    compiled = jax.jit(sae.encode)(jnp.asarray(X_NxD))
    np.testing.assert_allclose(sae.encode(X_NxD), compiled, rtol=1e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(X_NxD)), jax.jit(sae)(jnp.asarray(X_NxD)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.zeros((2, D + 1)), r"array of shape \[2, 7\] here: pass one of shape \[..., 6\]"),
        (np.zeros(()), r"array of shape \[\] here: pass one of shape \[..., 6\]"),
        (np.zeros((2, D), complex), "needs real numbers, not complex128"),
        (torch.zeros((2, D), dtype=torch.complex64), "needs real numbers, not complex64"),
        (torch.zeros((2, D), device="meta"), "is a meta tensor: it has a shape but no values"),
        ([["a"] * D], "needs real numbers, not <U1"),
        ([[1.0] * D, [1.0]], "needs rows of numbers, all of one length"),
        (None, "needs real numbers, not object"),
    ],
    ids=str,
)
def test_invalid_rows_are_refused_with_the_reason(sae, rows, reason):
    with pytest.raises(InputError, match=reason):
        sae.encode(rows)
    np.testing.assert_allclose(sae.encode(torch.tensor(X_NxD)), sae.encode(X_NxD), atol=1e-4)  # it still works


TRAINED, LOST = {"id": "a", "failed": None}, {"id": "b", "failed": {"step": 7}}


@pytest.mark.parametrize("name", [None, "a"])
def test_the_only_member_that_did_not_fail_need_not_be_named(name):
    assert only_member(Path("run"), [TRAINED, LOST], name) == "a"


@pytest.mark.parametrize(
    "records, name, trouble",
    [
        ([TRAINED, LOST], "b", "--member b failed at step 7 and was not written: give another member"),
        ([TRAINED, LOST], "c", "--member c is not in run: give one of a"),
        (
            [TRAINED, TRAINED | {"id": "c"}],
            None,
            "--member is missing and the run has several: give best, or one of a, c",
        ),
        ([LOST], None, "all members of run failed: give another run"),
    ],
)
def test_a_member_that_cannot_be_chosen_is_refused(records, name, trouble):
    with pytest.raises(InputError, match=f"^{trouble}$"):
        only_member(Path("run"), records, name)
