"""Families are built from settings: each setting that changes results separates members, whatever their ids are."""

from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from finished_runs import finished_run
from populations import SITES
from rows import make_store

from analysis.comparison import frontier, shared_features, splitting
from analysis.comparison.matching import Decoder
from analysis.runs import families
from analysis.study.measures import PopulationMeasures
from harvest.errors import InputError
from sae_jax.config import AXES, TrainConfig
from sae_jax.members import Member, member_id, members_of
from sae_jax.presets import preset_named

SEEDS = (0, 1, 2)
UNUSUAL = {  # settings that once made every member a separate kind
    "dead rule": {"dead_rule": "anthropic"},
    "normalization": {"normalization": "mean_norm"},
    "warm-up": {"warmup": 0.1},
    "AuxK": {"aux_coefficient": 0.0},
    "all": {"dead_rule": "anthropic", "normalization": "mean_norm", "warmup": 0.1, "aux_coefficient": 0.0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "rows", windows=60)


@pytest.fixture
def run_of(tmp_path, store):
    return lambda name="run", *stores, **values: finished_run(
        tmp_path / name, TrainConfig(**values), stores or (store,)
    )


def settings(run) -> dict[str, dict]:
    return {name: families.settings_of(run, member) for name, member in run.members.items()}


def gathered_of(run) -> PopulationMeasures:
    return PopulationMeasures(run, settings(run), {}, {}, {}, {}, {}, None, [])


def decoders_of(run) -> dict[str, Decoder]:
    rng = np.random.default_rng(0)
    widths = {name: member["hidden_dim"] for name, member in run.members.items()}
    return {
        name: Decoder(of, rng.standard_normal((widths[name], 16)), np.ones(widths[name], bool))
        for name, of in settings(run).items()
    }


def another(value: object) -> object:
    """Another value of the same type; a number if the value is None."""
    return f"{value} too" if isinstance(value, str) else (value or 0) + 1


def other_value(name: str) -> object:
    """A valid value of a field of TrainConfig that is not the default."""
    for value in (False, 2, 0.5, "bfloat16"):
        try:
            if TrainConfig(**{name: value}) != TrainConfig():
                return value
        except InputError:
            continue
    raise AssertionError(f"no other value of {name} is known here")


# Settings that change results separate members.


@pytest.mark.parametrize("name", [field.name for field in fields(Member) if field.name != "id"])
@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_every_field_of_a_member_is_in_its_id_and_all_but_the_seed_change_its_family(run_of, kind, name):
    run = run_of(activation=kind)
    (result,), (member,) = run.members.values(), members_of(TrainConfig(activation=kind), SITES)
    levels = dict.fromkeys(families.CONTROLS) if name in families.CONTROLS else {}  # a member has only one
    other = replace(member, **levels | {name: another(getattr(member, name))})
    assert member_id(other, several_sites=True) != member_id(member, several_sites=True)
    assert other != member and replace(member, id="another") == member
    changed = {**result, **asdict(other), "layer": 0, "hook": "resid_pre"}
    both = {"a": families.settings_of(run, result), "b": families.settings_of(run, changed)}
    both["b"] |= {site: getattr(other, site) for site in ("layer", "hook")}  # these come from a store otherwise
    assert families.alike(both, but_for="seed") == ([["a", "b"]] if name == "seed" else [["a"], ["b"]])
    assert len(set(families.labels(both).values())) == 2


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig) if f.name not in (*AXES, "members")])
def test_every_setting_of_the_training_makes_another_family_and_another_curve(run_of, name):
    values = {"activation": "topk", "k": (4, 8)}
    one, other = run_of("one", **values), run_of("other", **values, **{name: other_value(name)})
    both = {(run.path.name, member): of for run in (one, other) for member, of in settings(run).items()}
    assert families.differing(list(both.values())) == ["sparsity", name]
    assert all(len(names) == 1 for names in families.alike(both, but_for="seed"))
    assert len(frontier.compute_frontier(one.path, other.path).panels) == 0  # no feature fires: nothing is drawn,
    assert (
        len({point.panel for point in frontier.compute_frontier(one.path, other.path).points}) == 2
    )  # but all is there


@pytest.mark.parametrize("values", UNUSUAL.values(), ids=UNUSUAL)
def test_seeds_form_one_family_for_any_ids(run_of, values):
    run = run_of(activation=("relu", "topk"), hidden_dim=(8, 16), k=4, target_l0=4.0, seed=SEEDS, **values)
    assert not any(name.endswith("-s0") for name in run.members if name.startswith("topk"))
    labelled = gathered_of(run).families
    assert list(labelled) == [f"{kind}, {width} features" for kind in ("relu", "topk") for width in (8, 16)]
    assert all([run.members[name]["seed"] for name in names] == list(SEEDS) for names in labelled.values())
    decoders = decoders_of(run)
    compared = shared_features.compute_shared_features(decoders)
    assert compared.other_seeds == dict.fromkeys(run.members, 2) and set(compared.found_again_F) == set(run.members)
    assert [len(family) for family in splitting.families(decoders)] == [2] * 6
    assert {point.seeds for point in frontier.compute_frontier(run.path).points} == {SEEDS}


def test_the_frontier_preset_has_fifteen_families_of_three_seeds(run_of):
    flags = preset_named("frontier").flags
    run = run_of(**{name: flags[name] for name in flags.keys() & {field.name for field in fields(TrainConfig)}})
    labelled = gathered_of(run).families
    assert len(run.members) == 45 and [len(names) for names in labelled.values()] == [3] * 15
    assert list(labelled)[:4] == ["relu, L0 16", "relu, L0 32", "relu, L0 64", "jump_relu, L0 16"]


def test_two_settings_of_auxk_are_two_complete_families(run_of):
    run = run_of(activation="topk", hidden_dim=8, k=4, aux_coefficient=(0.0, 0.5), seed=SEEDS)
    compared = shared_features.compute_shared_features(decoders_of(run))
    assert compared.other_seeds == dict.fromkeys(run.members, 2)
    labelled = gathered_of(run).families
    assert list(labelled) == ["topk, aux coefficient 0.0", "topk, aux coefficient 0.5"]
    assert {group.differ for group in compared.groups} == {
        "other seed",
        "other aux coefficient",
        "other seed and aux coefficient",
    }


def test_a_target_l0_and_an_equal_coefficient_are_different(run_of, tmp_path):
    path = tmp_path / "members.json"
    path.write_text('[{"target_l0": 8}, {"sparsity": 8}]')
    run = run_of(members=path, seed=SEEDS)
    assert list(gathered_of(run).families) == ["relu, L0 8", "relu, coefficient 8"]
    assert [(p.seeds, p.panel) for p in frontier.compute_frontier(run.path).points] == [
        (SEEDS, "by target_l0"),
        (SEEDS, "by sparsity"),
    ]


# Words.


def test_kinds_are_named_by_the_settings_that_differ(run_of):
    def named(name, **values):
        return list(families.by_seed(gathered_of(run_of(name, **{"seed": SEEDS, **values})).settings))

    assert named("a") == ["relu"] and named("b", activation=("relu", "topk")) == ["relu", "topk"]
    assert named("c", activation=("relu", "topk"), target_l0=(8, 16.5), k=(8, 16)) == [
        "relu, L0 8",
        "relu, L0 16.5",
        "topk, L0 8",
        "topk, L0 16",
    ]
    assert named("d", lr=(1e-3, 0.00100000001)) == ["relu, learning rate 0.001", "relu, learning rate 0.00100000001"]


def test_layers_differ_in_one_setting_and_not_in_their_store(run_of, tmp_path, store):
    other = make_store(tmp_path / "other", windows=60, layer=1, seed=1)
    run = run_of("two layers", store, other, seed=(0, 1))
    assert list(gathered_of(run).families) == ["relu, layer 0", "relu, layer 1"]
    assert {g.differ for g in shared_features.compute_shared_features(decoders_of(run)).groups} == {
        "other layer",
        "other seed",
        "other layer and seed",
    }


def test_members_on_other_rows_are_not_other_seeds(run_of, tmp_path, store):
    """All settings with a name are equal, but the rows are not."""
    other = make_store(tmp_path / "other", windows=60, seed=7)
    one, more = run_of("one", seed=(0, 1)), run_of("more", other, seed=(2, 3))
    points = frontier.compute_frontier(one.path, more.path).points
    assert [point.seeds for point in points] == [(0, 1), (2, 3)] and all("store" in p.panel for p in points)
    same = frontier.compute_frontier(one.path, run_of("same", seed=(2, 3)).path).points
    assert [(point.seeds, point.panel) for point in same] == [((0, 1, 2, 3), "")]


# Ids.


def test_the_same_member_twice_is_refused_however_its_numbers_are_written(tmp_path):
    path = tmp_path / "members.json"
    path.write_text('[{"warmup": 1}, {"warmup": 1.0}]')
    with pytest.raises(InputError, match="two members would be the same"):
        members_of(TrainConfig(members=path), SITES)


def test_the_same_member_is_not_compared_with_itself(run_of):
    run = run_of(hidden_dim=8, target_l0=4.0)
    (decoder,) = decoders_of(run).values()
    with pytest.raises(InputError, match="a and b have the same settings and the same seed"):
        shared_features.compute_shared_features({"a": decoder, "b": decoder})
