"""Many different dictionaries in one program: their ids, and that they do not influence each other."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import SITES, prepare
from rows import make_store, sparse_rows

from harvest.errors import InputError
from harvest.request import Site
from sae_jax.config import SPARSITY_CONTROLS, TrainConfig
from sae_jax.formats import load_dictionary
from sae_jax.members import members_of
from sae_jax.models.registry import KINDS
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train
from sae_jax.training.programs import make_train_block

D, BATCH = 24, 32
NOTHING = np.zeros((1, 0, D), np.float32)


def ids(*sites: Site, **values) -> list[str]:
    return [m.id for m in members_of(TrainConfig(**values), sites or SITES)]


# Members and their ids.


def test_settings_without_effect_do_not_multiply_members():
    found = ids(activation=("relu", "topk"), k=(16, 32), target_l0=(8.0, 16.0, 32.0), aux_coefficient=(0.0, 0.1))
    assert [name for name in found if name.startswith("relu")] == [f"relu-f256-l{l0}-lr1e-3-s0" for l0 in (8, 16, 32)]
    assert len([name for name in found if name.startswith("topk")]) == 4
    assert ids(activation=("relu", "topk"), sparsity=(1.0, 5.0)) == [
        "relu-f256-s1-lr1e-3-s0",
        "relu-f256-s5-lr1e-3-s0",
        "topk-f256-k32-lr1e-3-s0",
    ]


def test_an_id_names_settings_that_are_not_the_default():
    assert ids(activation="topk", hidden_dim=2304, lr=3e-4) == ["topk-f2304-k32-lr3e-4-s0"]
    assert ids(Site(0, "resid_pre"), Site(3, "mlp_out")) == [
        "relu-l0-f256-l32-lr1e-3-s0",
        "relu-l3-mlp_out-f256-l32-lr1e-3-s0",
    ]
    assert len(set(ids(lr=(0.001, 0.00100000001), target_l0=(32, 32.00001)))) == 4
    assert ids(hidden_dim=np.int64(512)) == ["relu-f512-l32-lr1e-3-s0"]
    assert ids(normalization="none", dead_rule="anthropic", warmup=0.1) == [
        "relu-f256-l32-lr1e-3-s0-w0.1-norm_none-dead_anthropic"
    ]


@given(
    kinds=st.lists(st.sampled_from(sorted(SPARSITY_CONTROLS)), min_size=1, max_size=4, unique=True),
    lrs=st.lists(st.floats(1e-6, 1), min_size=1, max_size=3, unique_by=lambda lr: f"{lr:.6e}"),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    levels=st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
)
@settings(max_examples=40, deadline=None)
def test_a_population_has_all_combinations_with_different_ids(kinds, lrs, seeds, levels):
    found = ids(
        activation=tuple(kinds), lr=tuple(lrs), seed=tuple(seeds), k=tuple(levels), target_l0=tuple(map(float, levels))
    )
    assert len(found) == len(set(found)) == len(kinds) * len(lrs) * len(seeds) * len(levels)


def test_a_members_file_lists_all_members(tmp_path):
    path = tmp_path / "members.json"
    path.write_text(json.dumps([{"activation": "topk", "k": 8, "lr": 1e-4}, {"activation": "relu", "target_l0": 20}]))
    assert ids(members=path, seed=(0, 1)) == [
        "topk-f256-k8-lr1e-4-s0",
        "topk-f256-k8-lr1e-4-s1",
        "relu-f256-l20-lr1e-3-s0",
        "relu-f256-l20-lr1e-3-s1",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_members_file_may_have_nulls_and_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "members.json"
    entry = {"activation": "topk", "k": 8, "target_l0": None, "sparsity": None, "seed": None, "layer": None}
    path.write_text(json.dumps([entry]), encoding=encoding)
    assert ids(members=path, seed=(0, 1)) == ["topk-f256-k8-lr1e-3-s0", "topk-f256-k8-lr1e-3-s1"]


@pytest.mark.parametrize(
    "content, named",
    [
        ("nonsense", "cannot be read"),
        ("{}", "must hold a list"),
        ('[{"colour": "red"}]', "'colour'"),
        ('[{"lr": "fast"}]', "^--members .*members.json: lr 'fast': must be a positive number"),
        ('[{"lr": NaN}]', "^--members .*members.json: lr nan: must be"),
        (json.dumps([{"lr": "9" * 5000}]), "lr '9{56}[.]{3}: must be"),
        ('[{"k": 8, "k": 16}]', "'k' is in one object twice"),
        ('[{"k": 2.5, "activation": "topk"}]', "k 2.5: must be a whole number, 1 or more"),
        ('[{"activation": "topk", "k": 300}]', "^--members .*members.json: --k 300: must be 1 to"),
        ('[{"seed": 0}, {"seed": 0}]', "two members"),
        ('[{"layer": 7}]', "not harvested"),
        ('[{"layer": true}]', "layer True"),
        ('[{"activation": "relu", "k": 16}]', "has no effect on relu"),
        ('[{"activation": "relu", "aux_coefficient": 0}]', "aux_coefficient has no effect on relu"),
        ('[{"activation": "topk", "target_l0": 8}]', "has no effect on topk"),
        ('[{"target_l0": 8, "sparsity": 1}]', "not both"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_an_invalid_members_file_is_refused(tmp_path, content, named):
    path = tmp_path / "members.json"
    path.write_text(content)
    with pytest.raises(InputError, match=named):
        ids(members=path)


def test_each_kind_has_its_sparsity_settings():
    assert list(KINDS) == list(SPARSITY_CONTROLS)


# Training.


def test_members_of_a_group_are_initialized_by_one_program(caplog):
    """Seeds, sparsities and learning rates are arguments of the compiled program."""
    jax.clear_caches()
    config = TrainConfig(("relu", "topk"), 48, seed=(0, 1, 2), k=(4, 6), target_l0=(4.0, 6.0), lr=(1e-3, 1e-4))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        _, states, _ = prepare(config, 300, np.random.default_rng(0).standard_normal((64, D), np.float32))
    assert len([r for r in caplog.records if r.message.startswith("Compiling jit(start_member)")]) == 2
    for state in states:
        assert len({W_FxD.tobytes() for W_FxD in state.params["W_dec"]}) == 3, "a start a seed"
    assert sorted(set(states[1].settings["k"].tolist())) == [4, 6]


@pytest.fixture(scope="module")
def blocks_LxSxBxD():
    rng = np.random.default_rng(0)
    rows = sparse_rows(rng, rng.standard_normal((64, D)), 300 * BATCH).astype(np.float32)
    return (rows - rows.mean(0)).reshape(3, 1, 100, BATCH, D) / rows.std(0)


def trained(blocks_LxSxBxD, **values) -> dict[str, dict]:
    """The parameters of every member after all blocks."""
    config = TrainConfig(**{"hidden_dim": 48, "k": 6, "target_l0": 6.0, "batch_size": BATCH} | values)
    groups, states, hypers = prepare(config, 300, blocks_LxSxBxD[0][0].reshape(-1, D)[:512])
    train_block = make_train_block(groups)
    for block_LxSxBxD in blocks_LxSxBxD:
        states, metrics = train_block(states, hypers, block_LxSxBxD, NOTHING)
    found = {}
    for group, state, of_group in zip(groups, states, metrics, strict=True):
        for p, member in enumerate(group.members):
            found[member.id] = jax.tree.map(lambda leaf, p=p: np.asarray(leaf[p]), state.params)
            found[member.id]["failed"] = np.asarray(of_group["failed"][p])
    return found


def assert_same(a: dict, b: dict, tolerance: float = 0.0) -> None:
    for name, value in a.items():
        gap = np.abs(np.asarray(value, np.float64) - b[name]).max() / max(np.abs(b[name]).max(), 1e-30)
        assert gap <= tolerance, (name, gap)


def test_a_member_among_twelve_equals_the_one_trained_alone(blocks_LxSxBxD):
    kinds = ("relu", "jump_relu", "topk", "batch_topk", "gated", "p_anneal")
    twelve = trained(blocks_LxSxBxD, activation=kinds, seed=(0, 1))
    assert len(twelve) == 12
    for kind in kinds:
        (name, alone), *_ = trained(blocks_LxSxBxD, activation=kind, seed=1).items()
        assert_same(twelve[name], alone, tolerance=1e-4)


def test_other_members_of_a_group_change_nothing(blocks_LxSxBxD):
    one = trained(blocks_LxSxBxD, activation=("relu", "topk"), lr=(1e-3, 3e-4))
    other = trained(blocks_LxSxBxD, activation=("relu", "topk"), lr=(1e-3, 1e-2))
    shared = set(one) & set(other)
    assert len(shared) == 2
    for name in shared:
        assert_same(one[name], other[name])


def test_a_diverging_member_is_frozen_and_does_not_change_the_others(blocks_LxSxBxD):
    five = trained(blocks_LxSxBxD, lr=(1e-3, 3e-4, 1e9, 3e-3, 1e-4))
    four = trained(blocks_LxSxBxD, lr=(1e-3, 3e-4, 3e-3, 1e-4))
    lost = five["relu-f48-l6-lr1e9-s0"]
    assert lost["failed"] >= 0 and all(np.isfinite(value).all() for value in lost.values())
    assert len(four) == 4
    for name, params in four.items():
        assert params["failed"] == -1
        assert_same(params, five[name])


def test_every_kind_learns_in_one_program_and_is_exported(tmp_path, caplog):
    """Ten kinds at two layers: the exported files reconstruct held-out rows at the requested sparsity."""
    stores = [make_store(tmp_path / f"store{layer}", windows=2000, seed=layer, layer=layer, text=0) for layer in (0, 3)]
    config = TrainConfig(activation=tuple(KINDS), hidden_dim=128, k=8, target_l0=8, epochs=6, lr=3e-3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        results = train(config, stores, RunDirectory(tmp_path / "run", {"train": config.to_json()}))
    compiled = [r for r in caplog.records if r.message.startswith("Compiling jit(train_block)")]
    assert len(compiled) == 1, "also for the last block, which is shorter"
    assert len(results["members"]) == 2 * len(KINDS)
    for member in results["members"]:
        metrics, store = member["metrics"], stores[member["layer"] != 0]
        assert metrics["explained_variance"] > (0.5 if member["activation"] != "matryoshka" else 0.4), member
        assert metrics["l0"] == pytest.approx(8, rel=0.15), member
        sae = load_dictionary(tmp_path / "run" / "members" / member["id"]).sae
        x = store.held_out.read(0, 1000).astype(np.float32)
        left_over = np.square(x - np.asarray(sae(x))).sum() / np.square(x - x.mean(0)).sum()
        assert 1 - left_over == pytest.approx(metrics["explained_variance"], abs=0.05), member
