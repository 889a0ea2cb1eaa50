"""Exported dictionaries: raw activations in, the trained dictionary's own features and reconstruction out."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import member_of

from harvest.errors import InputError
from sae_jax.evaluate import evaluate
from sae_jax.formats import fold_normalization, load_member, save_member
from sae_jax.sae import SAE

MANIFEST = {
    "model": {"location": "gpt2"},
    "dataset": {"location": "text"},
    "hook_name": "blocks.3.hook_resid_pre",
    "seq_len": 20,
}


def random_params(kind: str, d: int, f: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {
        "W_encT": rng.standard_normal((f, d)),
        "b_enc": rng.standard_normal(f),
        "W_dec": rng.standard_normal((f, d)),
        "b_dec": rng.standard_normal(d),
    }
    if kind == "jump_relu":
        params["threshold"] = rng.uniform(0, 2, f)
    return {name: value.astype(np.float32) for name, value in params.items()}


def exported(kind: str, d: int, f: int, seed: int) -> dict[str, np.ndarray]:
    return fold_normalization(random_params(kind, d, f, seed), np.zeros(d), np.ones(d))


def module(kind: str, tensors: dict, k: int) -> SAE:
    params = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
    settings = {"topk": {"k": jnp.int32(k)}, "jump_relu": {"bandwidth": jnp.float32(1)}}.get(kind, {})
    return SAE(kind, params, settings, k_max=k)


@given(
    kind=st.sampled_from(["relu", "jump_relu", "topk"]),
    d=st.integers(2, 20),
    f=st.integers(4, 40),
    seed=st.integers(0, 2**16),
    scale=st.floats(0.01, 100),
)
@settings(deadline=None, max_examples=25)
def test_an_export_on_raw_rows_is_the_trained_dictionary_on_normalized_rows(tmp_path_factory, kind, d, f, seed, scale):
    directory = tmp_path_factory.mktemp("member")
    params, rng = random_params(kind, d, f, seed), np.random.default_rng(seed)
    shift_D, scale_D = 5 * scale * rng.standard_normal(d), scale * rng.uniform(0.5, 2, d)
    x = rng.standard_normal((30, d))
    member = member_of(activation=kind, hidden_dim=f, k=3, target_l0=3)
    save_member(directory, member, fold_normalization(params, shift_D, scale_D), MANIFEST)
    trained, exported = module(kind, params, 3), load_member(directory)
    raw = (x * scale_D + shift_D).astype(np.float32)

    z = np.asarray(trained.pre_activations(jnp.asarray(x, jnp.float32)))
    gap = np.abs(z - params["threshold"]) if kind == "jump_relu" else np.diff(np.sort(z, axis=1), axis=1)[:, -4:]
    decided = gap.min(1) > 1e-3  # rows on which rounding cannot flip a feature
    features, expected = (np.asarray(s) for s in (exported.encode(raw), trained.encode(jnp.asarray(x, jnp.float32))))
    bound = 1e-4 * max(1, np.abs(z).max())
    np.testing.assert_allclose(features[decided], expected[decided], atol=bound)
    back = np.asarray(trained.decode(expected)) * scale_D + shift_D
    np.testing.assert_allclose(exported.decode(expected), back, atol=1e-5 * np.abs(back).max() + 1e-6)


def test_saelens_reads_what_is_written(tmp_path):
    """The layout of SAELens 6.54, field by field (read there in an environment of its own)."""
    for kind, architecture in (("relu", "standard"), ("jump_relu", "jumprelu"), ("topk", "topk")):
        member = member_of(activation=kind, hidden_dim=8, k=3, target_l0=3)
        save_member(tmp_path / kind, member, exported(kind, 4, 8, 0), MANIFEST)
        cfg = json.loads((tmp_path / kind / "cfg.json").read_text())
        assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == (architecture, 4, 8, "float32")
        assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is True
        assert cfg.get("k") == (3 if kind == "topk" else None)
        assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_pre"


def test_damaged_dictionaries_are_refused(tmp_path):
    member = member_of(activation="relu", hidden_dim=8, target_l0=3)
    save_member(tmp_path, member, exported("relu", 4, 8, 0), MANIFEST)
    weights = tmp_path / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="no dictionary that can be read"):
        load_member(tmp_path)
    weights.write_bytes(whole)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "d_sae": 9}))
    with pytest.raises(InputError, match="expected"):
        load_member(tmp_path)


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "topk"])
def test_metrics_equal_their_definitions_in_float64(kind):
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((5000, 12)) * rng.uniform(0.1, 3, 12) + 100).astype(np.float32)
    params = random_params(kind, 12, 30, 1)
    params["b_dec"] += 100
    params["W_dec"] *= 0.1

    class Rows:
        def __len__(self):
            return len(rows)

        def chunks(self, size, first=0):
            return (rows[i : i + size] for i in range(first, len(rows), size))

    metrics, density_F = evaluate({"m": module(kind, params, 4)}, Rows(), rows.mean(0).astype(np.float64) + 0.3)["m"]

    p, x = {name: value.astype(np.float64) for name, value in params.items()}, rows.astype(np.float64)
    z = (x - p["b_dec"]) @ p["W_encT"].T + p["b_enc"]
    f = np.maximum(z, 0)
    if kind == "jump_relu":
        f = z * (z > p["threshold"])
    if kind == "topk":
        f = np.where(z >= np.sort(z, axis=1)[:, [-4]], f, 0)
    x_hat = f @ p["W_dec"] + p["b_dec"]
    mse = np.square(x - x_hat).sum(1).mean()
    expected = {
        "explained_variance": 1 - mse / x.var(0).sum(),
        "explained_variance_z": 1 - (np.square(x - x_hat).mean(0) / x.var(0)).mean(),
        "mse": mse,
        "l0": (f > 0).sum(1).mean(),
        "sparsity": (f == 0).mean(),
        "l1": (f * np.linalg.norm(p["W_dec"], axis=1)).sum(1).mean(),
        "cosine": ((x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1)).mean(),
        "dead_fraction": ((f > 0).sum(0) == 0).mean(),
    }
    assert metrics == pytest.approx(expected, rel=2e-4)
    np.testing.assert_allclose(density_F, (f > 0).mean(0), atol=1e-3)
