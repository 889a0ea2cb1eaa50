"""Dictionaries on disk: a read dictionary computes as its format defines, and a written one is unchanged."""

import json
import pickle
import random
import re
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from foreign import without_checksums
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_sae import CASES, D, F, K, saelens_dictionary, saelens_in_numpy
from populations import member_of, prepare

from harvest.errors import InputError
from harvest.files import write_arrays
from harvest.model.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_MODEL
from harvest.torch_file import read_tensors
from sae_jax.config import TrainConfig
from sae_jax.evaluate import evaluate
from sae_jax.formats import Dictionary, load_dictionary, save_dictionary
from sae_jax.formats.dictionary import SCALED, SCALER
from sae_jax.formats.dictionary_learning import FORMS
from sae_jax.formats.made_for import other_weights
from sae_jax.formats.trained import fold_normalization, trained_dictionary
from sae_jax.models.base import SAE
from sae_jax.models.registry import KINDS

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
    return fold_normalization(random_params(kind, d, f, seed), np.zeros(d), np.ones(d), np.ones(d))


def module(kind: str, tensors: dict, k: int, **more) -> SAE:
    params = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
    settings = {"topk": {"k": jnp.int32(k)}, "jump_relu": {"bandwidth": jnp.float32(1)}}.get(kind, {})
    return KINDS[kind](params, settings | more, k_max=k)


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
    metric_D = rng.uniform(0.5, 2, d)
    x = rng.standard_normal((30, d))
    member = member_of(activation=kind, hidden_dim=f, k=3, target_l0=3)
    tensors = fold_normalization(params, shift_D, scale_D, metric_D)
    save_dictionary(trained_dictionary(member, tensors, MANIFEST), directory)
    trained = module(kind, params, 3, metric_D=jnp.asarray(metric_D, jnp.float32))
    exported = load_dictionary(directory).sae
    raw = (x * scale_D + shift_D).astype(np.float32)

    z = np.asarray(trained.pre_activations(jnp.asarray(x, jnp.float32)))
    gap = np.abs(z - params["threshold"]) if kind == "jump_relu" else np.diff(np.sort(z, axis=1), axis=1)[:, -4:]
    decided = gap.min(1) > 1e-3  # rows on which rounding cannot turn a feature on or off
    features, expected = (np.asarray(s) for s in (exported.encode(raw), trained.encode(jnp.asarray(x, jnp.float32))))
    bound = 1e-4 * max(1, np.abs(z).max())
    np.testing.assert_allclose(features[decided], expected[decided], atol=bound)
    back = np.asarray(trained.decode(expected)) * scale_D / metric_D + shift_D
    np.testing.assert_allclose(exported.decode(expected), back, atol=1e-5 * np.abs(back).max() + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_member_computes_the_features_of_its_kind(kind):
    """A kind is exported as the architecture that it names, so that architecture must have the kind's features."""
    x_NxD = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    config = TrainConfig(activation=(kind,), hidden_dim=48, k=6, target_l0=6)
    (group,), (state,), _ = prepare(config, 100, x_NxD)
    params, settings = ({name: value[0] for name, value in tree.items()} for tree in (state.params, state.settings))
    trained = nnx.merge(group.signature.graphdef(), params, settings)
    tensors = fold_normalization(group.signature.kind.export(params, settings), np.zeros(16), np.ones(16), np.ones(16))
    f_NxF, exported = trained.encode(x_NxD), trained_dictionary(group.members[0], tensors, MANIFEST).sae
    np.testing.assert_allclose(exported.encode(x_NxD), f_NxF, atol=1e-5)
    assert 0.05 < (f_NxF != 0).mean() < 0.5


@pytest.mark.parametrize(
    "kind, architecture",
    [("relu", "standard"), ("jump_relu", "jumprelu"), ("topk", "topk"), ("abs_topk", "abstopk")],
)
def test_saelens_reads_what_is_written(tmp_path, kind, architecture):
    """All fields of SAELens 6.54 are written. (test_formats_with_peers.py reads the files with SAELens.)"""
    member = member_of(activation=kind, hidden_dim=8, k=3, target_l0=3)
    save_dictionary(trained_dictionary(member, exported(kind, 4, 8, 0), MANIFEST), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == (architecture, 4, 8, "float32")
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is True
    assert cfg.get("k") == (3 if "topk" in kind else None)
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_pre"
    assert cfg["metadata"]["sae_lens_version"] == "6.54.12"


@pytest.mark.parametrize(("architecture", "settings"), CASES)
def test_saelens_dictionaries_compute_what_saelens_computes(tmp_path, architecture, settings):
    save_dictionary(saelens_dictionary(architecture, **settings), tmp_path)
    dictionary, x = load_dictionary(tmp_path, d_in=D), np.random.default_rng(0).standard_normal((50, D)) + 0.5
    features, reconstruction = saelens_in_numpy(dictionary, x)
    assert (features != 0).any() and (features == 0).any()
    np.testing.assert_allclose(dictionary.sae.encode(x.astype(np.float32)), features, atol=2e-5)
    np.testing.assert_allclose(dictionary.sae(x.astype(np.float32)), reconstruction, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_dictionary_is_written_again_bit_for_bit(tmp_path, dtype):
    first = saelens_dictionary("jumprelu", dtype, apply_b_dec_to_input=False)
    density = np.log10(np.linspace(0, 1, F) + 1e-10).astype(np.float32)
    save_dictionary(Dictionary("one", "saelens", {**first.cfg, "dtype": dtype}, first.tensors, density), tmp_path / "a")
    save_dictionary(load_dictionary(tmp_path / "a"), tmp_path / "b")
    for file in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert load_dictionary(tmp_path / "b").tensors["W_enc"].dtype == dtype
    assert load_dictionary(tmp_path / "b").sae.W_dec.dtype == jnp.float32


BEFORE_6 = {  # cfg.json of SAELens before version 6, by architecture
    "standard": {"normalize_activations": False, "hook_point": "blocks.2.hook_resid_pre"},
    "topk": {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": "layer_norm",
        "hook_name": "blocks.2.hook_resid_pre",
        "prepend_bos": False,
    },
    "jumprelu": {"architecture": "jumprelu", "apply_b_dec_to_input": False, "hook_name": "h"},
}


@pytest.mark.parametrize("architecture, old", BEFORE_6.items(), ids=BEFORE_6)
def test_directories_of_saelens_before_version_6(tmp_path, architecture, old):
    x = np.random.default_rng(0).standard_normal((50, D))
    kept = {
        key: old[key]
        for key in ("apply_b_dec_to_input", "normalize_activations")
        if key in old and architecture != "standard"
    }
    same = saelens_dictionary(architecture, **kept)
    save_dictionary(same, tmp_path)
    whole = {"d_in": D, "d_sae": F, "dtype": "torch.float32", "model_name": "gpt2-small", "context_size": 64, **old}
    without_checksums(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(whole))
    dictionary = load_dictionary(tmp_path)
    assert (dictionary.format, dictionary.cfg["architecture"]) == ("saelens before 6", architecture)
    assert (dictionary.model_name, dictionary.context_size) == ("gpt2-small", 64)
    assert dictionary.hook_name == old.get("hook_name", "blocks.2.hook_resid_pre")
    assert dictionary.prepend_bos is old.get("prepend_bos", True)
    np.testing.assert_allclose(dictionary.sae(x.astype(np.float32)), saelens_in_numpy(same, x)[1], atol=1e-4)
    save_dictionary(dictionary, tmp_path / "new")
    assert load_dictionary(tmp_path / "new").format == "saelens"


def write_dictionary_learning(directory, dict_class: str, /, **trainer) -> dict[str, np.ndarray]:
    """Write a dictionary of dictionary_learning with random tensors."""
    rng = np.random.default_rng(5)
    state = {}
    for name in FORMS[dict_class].names:
        ours = FORMS[dict_class].names[name]
        shape = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}.get(ours, (F,))
        value = rng.standard_normal(shape).astype(np.float32)
        state[name] = value.T.copy() if name.endswith(".weight") else value
    if FORMS[dict_class].has_one_threshold or dict_class == "AutoEncoderTopK":
        state |= {"k": np.int32(K), "threshold": np.float32(0.7)}
    if dict_class == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = np.array([4, 12])
    directory.mkdir()
    torch.save({name: torch.tensor(value) for name, value in state.items()}, directory / "ae.pt")
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": F,
        "layer": 1,
        "lm_name": "m",
        "k": K,
    } | trainer
    (directory / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return {name: value.astype(np.float64) for name, value in state.items()}


@pytest.mark.parametrize("dict_class", FORMS)
def test_dictionary_learning_computes_what_its_classes_compute(tmp_path, dict_class):
    t = write_dictionary_learning(tmp_path / "t", dict_class, submodule_name="mlp_out_layer_1")
    x = np.random.default_rng(0).standard_normal((50, D))
    if dict_class in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        center = 0 if dict_class == "JumpReluAutoEncoder" else t["b_dec"]
        f = np.maximum((x - center) @ t["W_enc"] + t["b_enc"], 0)
        f, decoder, bias = f * (f > t["threshold"]), t["W_dec"], t["b_dec"]
    else:
        bias = t[
            {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}.get(
                dict_class, "b_dec"
            )
        ]
        pi = (x - (0 if dict_class == "AutoEncoderNew" else bias)) @ t["encoder.weight"].T
        f, decoder = np.maximum(pi + t.get("encoder.bias", 0), 0), t["decoder.weight"].T
        if dict_class == "GatedAutoEncoder":
            f = np.maximum(np.exp(t["r_mag"]) * pi + t["mag_bias"], 0) * (pi + t["gate_bias"] > 0)
        if dict_class == "AutoEncoderTopK":
            f = np.where(f >= np.sort(f, axis=1)[:, [-K]], f, 0)
        if dict_class == "BatchTopKSAE":
            f = f * (f > 0.7)
    dictionary = load_dictionary(tmp_path / "t")
    assert (dictionary.format, dictionary.hook_name) == ("dictionary_learning", "blocks.1.hook_mlp_out")
    assert (dictionary.model_name, dictionary.context_size, dictionary.prepend_bos) == ("m", 128, None)
    save_dictionary(dictionary, tmp_path / "ours")
    for sae in (dictionary.sae, load_dictionary(tmp_path / "ours").sae):
        np.testing.assert_allclose(sae.encode(x.astype(np.float32)), f, atol=2e-5)
        np.testing.assert_allclose(sae(x.astype(np.float32)), f @ decoder + bias, atol=1e-4)


class Payload:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_a_pickle_with_code_in_it_is_refused_and_none_of_it_is_run(tmp_path, write):
    write_dictionary_learning(tmp_path / "t", "AutoEncoder")
    with open(tmp_path / "t" / "ae.pt", "wb") as file:
        write({"bias": Payload(tmp_path / "run")}, file)
    with pytest.raises(InputError, match="no code in it is run"):
        load_dictionary(tmp_path / "t")
    assert not (tmp_path / "run").exists()


def changed(**changes):
    """A function that changes values of cfg.json; None removes a value."""

    def change(directory):
        without_checksums(directory)
        cfg = json.loads((directory / "cfg.json").read_text()) | changes
        (directory / "cfg.json").write_text(json.dumps({name: v for name, v in cfg.items() if v is not None}))

    return change


def with_tensors(change):
    def rewrite(directory):
        dictionary = load_dictionary(directory)
        tensors = {name: tensor.copy() for name, tensor in dictionary.tensors.items()}
        change(tensors)
        save_dictionary(Dictionary("one", "saelens", dictionary.cfg, tensors), directory)

    return rewrite


def cut(name):
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-10])


DAMAGES = {
    "truncated": (cut("sae_weights.safetensors"), "sae_weights.safetensors cannot be read because it is missing"),
    "cfg cut": (cut("cfg.json"), "cfg.json is damaged"),
    "no weights": (lambda d: (d / "sae_weights.safetensors").unlink(), "missing or damaged"),
    "no cfg": (lambda d: (d / "cfg.json").unlink(), "holds no dictionary"),
    "no directory": (shutil.rmtree, "is no directory"),
    "width": (changed(d_sae=F - 1), r"W_dec has shape \(16, 6\); by its configuration it must be \(15, 6\)"),
    "no width": (changed(d_in=None), "has d_in None; it must be a whole number of 1 or more"),
    "no k": (changed(k=None), "has k None; it must be a whole number of 1 or more"),
    "k of 0": (changed(k=0), "has k 0; it must be a whole number of 1 or more"),
    "k": (changed(k=17), "k 17 is larger than d_sae 16"),
    "architecture": (
        changed(architecture="transcoder"),
        "architecture 'transcoder' is not supported; these are: standard,",
    ),
    "whitened": (changed(normalize_activations="covariance_whitening"), "are not in these files"),
    "missing": (with_tensors(lambda t: t.pop("b_enc")), "it lacks b_enc"),
    "extra": (with_tensors(lambda t: t.update(extra=t["b_enc"])), "it also has extra"),
    "nan": (with_tensors(lambda t: t["W_dec"].__setitem__((0, 0), np.nan)), "W_dec has values that are NaN"),
    "metadata": (changed(metadata="mine"), "its metadata is 'mine'; it must be an object"),
    "architectures": (changed(architecture=["topk"]), "architecture \\['topk'\\] is not supported"),
    "hook": (
        changed(metadata={"sae_lens_version": "6.0", "hook_name": 5}),
        "its metadata has hook_name 5; it must be of type str",
    ),
    "not a boolean": (changed(apply_b_dec_to_input="false"), "apply_b_dec_to_input 'false'; it must be true or false"),
    "integers": (with_tensors(lambda t: t.update(W_enc=t["W_enc"].astype(np.int32))), "W_enc is of type int32"),
    "densities": (lambda d: (d / "stats.npz").write_bytes(b"PK no"), "stats.npz is damaged"),
    "infinite in float32": (
        with_tensors(lambda t: t.update(W_dec=np.full((F, D), 1e300))),
        "W_dec has values that are NaN or infinite in float32",
    ),
    "complex": (with_tensors(lambda t: t.update(b_dec=t["b_dec"].astype(np.complex64))), "b_dec is of type complex64"),
    "empty densities": (lambda d: (d / "stats.npz").write_bytes(b""), "stats.npz is damaged"),
    "no densities": (lambda d: np.savez(d / "stats.npz", density=["x"] * F), "stats.npz has no checksum"),
    "nested": (lambda d: (d / "cfg.json").write_text("[" * 200_000), "cfg.json is damaged"),
    "old norms": (changed(metadata=None, normalize_activations=["none"]), "normalize_activations \\['none'\\]"),
    "old settings": (
        changed(metadata=None, activation_fn_kwargs="k=3"),
        "its activation_fn_kwargs is 'k=3'; it must be an object",
    ),
    "scaled": (with_tensors(lambda t: t.update(scaling_factor=2 * t["b_enc"])), "scaling_factor is not 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable_dictionaries_are_refused_with_the_reason(tmp_path, damage):
    save_dictionary(saelens_dictionary("topk"), tmp_path / "d")
    load_dictionary(tmp_path / "d")
    change, reason = DAMAGES[damage]
    change(tmp_path / "d")
    with pytest.raises(InputError, match=reason):
        load_dictionary(tmp_path / "d")


def test_a_flipped_bit_of_a_dictionary_is_reported_or_changes_nothing(tmp_path):
    written = saelens_dictionary("topk")
    save_dictionary(replace(written, log_sparsity_F=np.linspace(-9, 0, F, dtype=np.float32)), tmp_path / "d")
    whole, chance, named = load_dictionary(tmp_path / "d"), random.Random(0), 0
    for path in [tmp_path / "d" / name for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")]:
        content = path.read_bytes()
        for bit in chance.sample(range(8 * len(content)), 60):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                again = load_dictionary(tmp_path / "d")
                assert again.cfg == whole.cfg and again.tensors.keys() == whole.tensors.keys()
                assert all(np.array_equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)
                np.testing.assert_array_equal(again.log_sparsity_F, whole.log_sparsity_F)
            except InputError as error:
                named += 1
                assert str(path) in str(error)
        path.write_bytes(content)
    assert named > 100


def test_only_members_of_a_run_need_a_checksum(tmp_path):
    member = tmp_path / "run" / "members" / "one"
    save_dictionary(saelens_dictionary("topk"), member)
    without_checksums(member)
    load_dictionary(member)  # in a folder named `members`, but not of a run
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(InputError, match="sae_weights.safetensors has no checksum, .* --resume writes it again"):
        load_dictionary(member)


@pytest.mark.parametrize("content", [{"mean": np.zeros(2)}, {"density": np.array(["x"] * F)}], ids=str)
def test_another_file_with_the_name_of_our_densities_is_ignored(tmp_path, content):
    save_dictionary(saelens_dictionary("topk"), tmp_path / "d")
    without_checksums(tmp_path / "d")
    np.savez(tmp_path / "d" / "stats.npz", **content)
    assert load_dictionary(tmp_path / "d").log_sparsity_F is None
    write_arrays(tmp_path / "d" / "stats.npz", {"density": np.full(F, 0.1)})
    np.testing.assert_allclose(load_dictionary(tmp_path / "d").log_sparsity_F, -1, atol=1e-6)


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path):
    save_dictionary(saelens_dictionary("topk"), tmp_path / "d")
    path = tmp_path / "d" / "cfg.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_dictionary(tmp_path / "d").cfg["k"] == saelens_dictionary("topk").cfg["k"]


def test_other_reasons_to_refuse(tmp_path):
    save_dictionary(saelens_dictionary("standard"), tmp_path / "members" / "one")
    with pytest.raises(InputError, match="is for activations of 6 dimensions, but those given have 768"):
        load_dictionary(tmp_path / "members" / "one", d_in=768)
    with pytest.raises(InputError, match="give one of members/one inside it"):
        load_dictionary(tmp_path)
    with pytest.raises(TypeError, match="reconstruct"):
        saelens_dictionary("standard", normalize_activations="layer_norm").sae.decode(np.zeros((1, F)))
    write_dictionary_learning(tmp_path / "k", "AutoEncoderTopK", k=K + 1)
    with pytest.raises(InputError, match=f"k is {K + 1} in config.json, but {K} in ae.pt"):
        load_dictionary(tmp_path / "k")
    write_dictionary_learning(tmp_path / "c", "AutoEncoder", dict_class="CrossCoder")
    with pytest.raises(InputError, match="trainer.dict_class 'CrossCoder' must be one of AutoEncoder,"):
        load_dictionary(tmp_path / "c")
    write_dictionary_learning(tmp_path / "b", "AutoEncoder")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"buffer": "mine"}))
    with pytest.raises(InputError, match="its buffer is 'mine'; it must be an object"):
        load_dictionary(tmp_path / "b")


@pytest.mark.parametrize(
    "k, reason",
    [(torch.ones(2), r"k has shape \(2,\); it must be one number"), (torch.tensor(torch.nan), "k is .* nan in")],
    ids=["two numbers", "nan"],
)
def test_a_k_that_is_no_number_is_refused(tmp_path, k, reason):
    write_dictionary_learning(tmp_path / "v", "BatchTopKSAE")
    torch.save(torch.load(tmp_path / "v" / "ae.pt") | {"k": k}, tmp_path / "v" / "ae.pt")
    with pytest.raises(InputError, match=reason):
        load_dictionary(tmp_path / "v")


def test_an_old_dictionary_that_ranks_by_decoder_norms_is_computed_correctly(tmp_path):
    """The dictionary is of SAELens before version 6, whose reader keeps the setting."""
    save_dictionary(saelens_dictionary("topk", rescale_acts_by_decoder_norm=True), tmp_path / "d")
    new = load_dictionary(tmp_path / "d")
    changed(metadata=None)(tmp_path / "d")
    old = load_dictionary(tmp_path / "d")
    x_NxD = np.random.default_rng(0).standard_normal((32, new.d_in)).astype(np.float32)
    assert old.format == "saelens before 6"
    np.testing.assert_array_equal(np.asarray(old.sae.encode(x_NxD)), np.asarray(new.sae.encode(x_NxD)))


# Metadata on the training rows.


def with_metadata(directory, **metadata) -> Dictionary:
    """A read dictionary with further metadata."""
    one = saelens_dictionary("jumprelu")
    save_dictionary(replace(one, cfg={**one.cfg, "metadata": {**one.cfg["metadata"], **metadata}}), directory)
    return load_dictionary(directory)


@pytest.mark.parametrize(
    ("architecture", "settings"), [case for case in CASES if "normalize_activations" not in case[1]]
)
def test_a_scale_in_a_separate_file_is_folded_into_the_weights(tmp_path, architecture, settings):
    """SAELens multiplies rows by the scale before encoding, and divides by it after decoding."""
    dictionary, scale = saelens_dictionary(architecture, **settings), 0.37
    save_dictionary(replace(dictionary, cfg=dictionary.cfg | {"normalize_activations": SCALED}), tmp_path / "d")
    (tmp_path / "d" / SCALER).write_text(json.dumps({"scaling_factor": scale}))
    read = load_dictionary(tmp_path / "d")
    x = np.random.default_rng(0).standard_normal((50, D)) / scale
    features, reconstruction = saelens_in_numpy(dictionary, x * scale)
    if settings.get("rescale_acts_by_decoder_norm"):
        features = features / scale  # features are in the units of raw rows
    assert (features != 0).any() and read.scale == scale and "0.37" in " ".join(read.told())
    save_dictionary(read, tmp_path / "again")  # SAELens does not read the scale for inference
    for sae in (read.sae, load_dictionary(tmp_path / "again").sae):
        np.testing.assert_allclose(sae.encode(x.astype(np.float32)), features, atol=1e-4)
        np.testing.assert_allclose(sae(x.astype(np.float32)), reconstruction / scale, atol=5e-4)
    assert load_dictionary(tmp_path / "again").told() == []


def test_a_missing_scale_is_reported(tmp_path):
    dictionary = saelens_dictionary("standard", normalize_activations=SCALED)
    save_dictionary(dictionary, tmp_path)
    assert any("there is no activation_scaler.json" in told for told in load_dictionary(tmp_path).told())


@pytest.mark.parametrize(
    "scale",
    [
        "{}",
        "[]",
        '{"scaling_factor": null}',
        '{"scaling_factor": 0}',
        '{"scaling_factor": "1"}',
        '{"scaling_factor": NaN}',
        '{"scaling_factor": true}',
        "{",
    ],
)
def test_an_invalid_scale_is_refused(tmp_path, scale):
    save_dictionary(saelens_dictionary("standard", normalize_activations=SCALED), tmp_path)
    (tmp_path / SCALER).write_text(scale)
    with pytest.raises(InputError, match="activation_scaler.json"):
        load_dictionary(tmp_path)


def test_a_dictionary_for_centered_weights_subtracts_the_mean_of_each_row(tmp_path):
    plain, x = saelens_dictionary("jumprelu"), np.random.default_rng(0).standard_normal((50, D)) + 3
    dictionary = with_metadata(tmp_path, model_from_pretrained_kwargs={"center_writing_weights": True, "fold_ln": True})
    mean = x.mean(1, keepdims=True)
    features, reconstruction = saelens_in_numpy(plain, x - mean)
    assert (features != 0).any()
    for rows in (x, x - mean):  # rows of the published model, and centered rows
        np.testing.assert_allclose(dictionary.sae.encode(rows.astype(np.float32)), features, atol=2e-5)
        expected = reconstruction + rows.mean(1, keepdims=True)
        np.testing.assert_allclose(dictionary.sae(rows.astype(np.float32)), expected, atol=1e-4)
    np.testing.assert_allclose(dictionary.sae.decode(features.astype(np.float32)), reconstruction, atol=1e-4)
    assert dictionary.told() == [
        "the mean of each row was subtracted (center_writing_weights), which is done here, too"
    ]


def test_the_activations_of_centered_weights_are_those_of_the_model_less_their_mean():
    """The expected activations come from TransformerLens' own processing of the weights."""
    tokens_WxT = np.random.default_rng(0).integers(0, 4096, (3, 12), dtype=np.int32)
    raw, centered = (LanguageModel.load(str(BUNDLED_MODEL), device="cpu") for _ in range(2))
    centered.bridge.enable_compatibility_mode()  # fold_ln, center_writing_weights, center_unembed, fold_value_biases
    sites = [Site(2, hook) for hook in ("resid_pre", "resid_mid", "attn_out", "mlp_out")]
    for site in sites:
        x_WxTxD = raw.activations(tokens_WxT, [site])[site]
        expected = x_WxTxD - x_WxTxD.mean(-1, keepdims=True)
        with torch.inference_mode():
            _, cache = centered.bridge.run_with_cache(torch.from_numpy(tokens_WxT).long())
        np.testing.assert_allclose(cache[site.hook_name].numpy(), expected, rtol=1e-3, atol=1e-3)


TOLD = {
    "seqpos_slice": ([5, None], r"on the positions \[5, None\] of each window"),
    "model_from_pretrained_kwargs": ({"dtype": "torch.bfloat16"}, "its model ran in bfloat16"),
    "model_from_pretrained_kwargs ": ({"rotary_base": 3}, "its model was loaded with rotary_base"),
}


@pytest.mark.parametrize("name", TOLD)
def test_unmet_settings_of_metadata_are_reported(tmp_path, name):
    value, sentence = TOLD[name]
    (told,) = with_metadata(tmp_path, **{name.strip(): value}).told()
    assert re.search(sentence, told)


def test_settings_that_are_met_are_not_reported(tmp_path):
    kwargs = {"fold_ln": True, "center_unembed": True, "device": "cuda", "n_devices": 2, "dtype": "float32"}
    metadata = {"prepend_bos": False, "hook_head_index": None, "seqpos_slice": [None], "context_size": 128}
    dictionary = with_metadata(tmp_path, **metadata, model_from_pretrained_kwargs=kwargs | {"revision": "main"})
    assert dictionary.told() == [] and other_weights(dictionary.cfg["metadata"]) == ""
    with pytest.raises(InputError, match="model_from_pretrained_kwargs 'main'; it must be of type dict"):
        with_metadata(tmp_path, model_from_pretrained_kwargs="main")


TENSORS = {
    "sparse": lambda t: t.to_sparse(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "bfloat16": lambda t: t.bfloat16(),
    "a parameter": lambda t: torch.nn.Parameter(t),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.5, 0, torch.qint8),
}


@pytest.mark.parametrize("form", TENSORS)
def test_tensors_of_any_layout_and_number_format_are_read(tmp_path, form):
    values = torch.arange(-8.0, 8.0).reshape(2, 8)  # exact in each format
    torch.save({"W": TENSORS[form](values)}, tmp_path / "ae.pt")
    np.testing.assert_array_equal(read_tensors(tmp_path / "ae.pt")["W"], values.numpy())


def test_a_tensor_without_numbers_is_refused(tmp_path):
    write_dictionary_learning(tmp_path / "t", "AutoEncoder")
    state = torch.load(tmp_path / "t" / "ae.pt")
    torch.save(state | {"bias": state["bias"].to("meta")}, tmp_path / "t" / "ae.pt")
    with pytest.raises(InputError, match="ae.pt: bias is a meta tensor: it has a shape but no values"):
        load_dictionary(tmp_path / "t")


def test_the_hook_of_a_modules_input_is_not_that_of_its_output(tmp_path):
    write_dictionary_learning(tmp_path / "t", "AutoEncoder", submodule_name="mlp_out_layer_1")
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    (tmp_path / "t" / "config.json").write_text(json.dumps(config | {"buffer": {"io": "in"}}))
    assert load_dictionary(tmp_path / "t").hook_name is None


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

        def __getitem__(self, numbers_N):
            return rows[numbers_N]

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
