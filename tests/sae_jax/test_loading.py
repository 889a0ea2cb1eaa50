"""`encode` and `decode` of a loaded dictionary, for rows of any library and format, and the choice of a member."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sae_jax
from harvest.errors import InputError
from sae_jax.formats import Dictionary, save_dictionary
from sae_jax.formats.saelens import new_cfg
from sae_jax.loading import LoadedSAE
from sae_jax.lookup import only_member

D, F = 6, 16
X_NxD = np.random.default_rng(0).integers(-8, 8, (5, D)).astype(np.float32)  # exact in every format, even float8
ARCHITECTURES = {"standard": {}, "jumprelu": {}, "gated": {}, "topk": {"k": 3}, "abstopk": {"k": 3}}


def loaded(architecture: str, directory: Path) -> LoadedSAE:
    rng = np.random.default_rng(3)
    per_feature = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}
    shapes |= dict.fromkeys(per_feature.get(architecture, ("b_enc",)), (F,))
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    cfg = new_cfg(architecture, D, F, {}, **ARCHITECTURES[architecture])
    save_dictionary(Dictionary("one", "saelens", cfg, tensors), directory)
    return sae_jax.load(directory)


@pytest.fixture(scope="module")
def sae(tmp_path_factory) -> LoadedSAE:
    return loaded("topk", tmp_path_factory.mktemp("sae"))


ROWS = {
    "float32": lambda x: torch.tensor(x),
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "computed with a gradient": lambda x: torch.tensor(x, requires_grad=True) * 1,
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "float8": lambda x: torch.tensor(x).to(torch.float8_e4m3fn),
    "of whole numbers": lambda x: torch.tensor(x, dtype=torch.int64),
    "not contiguous": lambda x: torch.tensor(x.T.copy()).T,
    "sparse": lambda x: torch.tensor(x).to_sparse(),
    "negated in place": lambda x: torch.tensor(-x).neg(),
    "JAX's bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
    "numpy's float64": lambda x: x.astype(np.float64),
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("form", ROWS)
def test_rows_of_any_library_and_number_format_are_the_same_rows(sae, form):
    np.testing.assert_array_equal(sae.encode(ROWS[form](X_NxD)), sae.encode(X_NxD))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(0, D), (0, 2, D), (D,), (5, 1, D)])
def test_rows_may_have_any_leading_dimensions(tmp_path, architecture, shape):
    sae = loaded(architecture, tmp_path)
    x = np.resize(X_NxD, shape)
    f = sae.encode(torch.tensor(x))
    assert f.shape == (*shape[:-1], F) and sae(x).shape == shape and sae.decode(f).shape == shape
    if x.size:
        np.testing.assert_allclose(f.reshape(-1, F), sae.encode(x.reshape(-1, D)), atol=1e-6)


def test_encoding_can_be_differentiated_and_compiled(sae):
    total = jax.jit(lambda x: sae.encode(x).sum())
    assert np.isfinite(jax.grad(total)(jnp.asarray(X_NxD))).all()


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


TRAINED, LOST = {"id": "a", "failed": None}, {"id": "b", "failed": {"step": 7}}


@pytest.mark.parametrize("name", [None, "a"])
def test_the_only_member_that_did_not_fail_need_not_be_named(name):
    assert only_member(Path("run"), [TRAINED, LOST], name) == "a"


@pytest.mark.parametrize(
    "records, name, trouble",
    [
        ([TRAINED, LOST], "b", "--member b failed at step 7 and was not written: give another member"),
        ([TRAINED, LOST], "c", "--member c is not in run: its nearest ids are a"),
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
