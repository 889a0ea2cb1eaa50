"""Baselines: each has the same start, rows and seed as its trained twin, and keeps what it should keep."""

import numpy as np
from rows import make_store

from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.formats import load_dictionary
from sae_jax.members import members_of
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train

BASELINES = ("frozen_decoder", "soft_frozen", "frozen_encoder")


def trained_tensors(tmp_path, kinds, **settings) -> dict[str, dict[str, np.ndarray]]:
    """{member id: exported tensors}."""
    sizes = {"hidden_dim": 48, "k": 6, "target_l0": 6, "batch_size": 32, "lr": (3e-3,), "epochs": 10} | settings
    config = TrainConfig(activation=kinds, **sizes)
    run = RunDirectory(tmp_path / "run", {"train": config.to_json()})
    train(config, [make_store(tmp_path / "store", windows=1000)], run)
    return {path.name: load_dictionary(path).tensors for path in (run.path / "members").iterdir()}


def cosines(a_FxD: np.ndarray, b_FxD: np.ndarray) -> np.ndarray:
    return (a_FxD * b_FxD).sum(1) / np.linalg.norm(a_FxD, axis=1) / np.linalg.norm(b_FxD, axis=1)


def test_a_baseline_keeps_its_frozen_part_and_learns_the_rest(tmp_path):
    """A frozen part is the same at every learning rate, and everything else is not."""
    kinds, lrs = ("relu", "gated", "batch_topk"), (3e-3, 1e-3)
    tensors = trained_tensors(tmp_path, kinds, baseline=BASELINES, lr=lrs, fit_decoder=False)
    assert len(tensors) == len(kinds) * len(lrs) * (1 + len(BASELINES))
    for name in (name for name in tensors if "lr3e-3" in name):
        one, other = tensors[name], tensors[name.replace("lr3e-3", "lr1e-3")]
        same_decoder = cosines(one["W_dec"], other["W_dec"]).min() > 1 - 1e-5
        same_encoder = cosines(one["W_enc"].T, other["W_enc"].T).min() > 1 - 1e-5
        assert same_decoder == name.endswith("frozen_decoder"), name
        assert same_encoder == name.endswith("frozen_encoder"), name
        assert np.abs(one["b_dec"] - other["b_dec"]).max() > 1e-4, name


def test_decoder_rows_of_a_soft_frozen_baseline_stay_near_their_start(tmp_path):
    members = ("topk", "jump_relu")
    settings = {"baseline": ("frozen_decoder", "soft_frozen"), "loss_metric": "raw"}
    tensors = trained_tensors(tmp_path, members, **settings)
    for name in (name for name in tensors if name.endswith("soft_frozen")):
        start_FxD = tensors[name.replace("soft_frozen", "frozen_decoder")]["W_dec"]
        cosine_F = cosines(tensors[name]["W_dec"], start_FxD)
        assert cosine_F.min() > 0.8 - 1e-3 and (cosine_F < 0.81).mean() > 0.1, "some rows reach the limit"
        free_F = cosines(tensors[name.removesuffix("-soft_frozen")]["W_dec"], start_FxD)
        assert free_F.min() < 0.7


def test_each_baseline_is_a_twin_of_a_member_beside_it():
    config = TrainConfig(activation=("relu", "topk"), seed=(0, 1), baseline=("soft_frozen",))
    ids = [member.id for member in members_of(config, (Site(0, "resid_pre"),))]
    assert ids == [
        f"{name}-s{seed}{end}"
        for name in ("relu-f256-l32-lr1e-3", "topk-f256-k32-lr1e-3")
        for seed in (0, 1)
        for end in ("", "-soft_frozen")
    ]
