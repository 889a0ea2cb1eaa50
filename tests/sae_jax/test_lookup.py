"""Finding a member by what a screen printed, by a part of its id, and by `best`."""

from pathlib import Path

import pytest

from analysis.ui.terminal.screen import Screen
from harvest.errors import InputError
from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.lookup import chosen_members, found_member, only_member, told_apart
from sae_jax.members import members_of

RUN = Path("runs/first")
CONFIG = TrainConfig(activation=("relu", "topk"), k=(3, 32), target_l0=(32,), lr=(1e-3, 3e-4), seed=(0, 1, 10))
IDS = [member.id for member in members_of(CONFIG, (Site(0, "resid_pre"),))]
METRICS = {"explained_variance": 0.5, "l0": 32.0}


def records(ids=IDS, **metrics: dict) -> list[dict]:
    from dataclasses import asdict

    members = members_of(CONFIG, (Site(0, "resid_pre"),))
    return [
        {**asdict(m), "failed": None, "metrics": METRICS | metrics.get(m.activation, {})}
        for m in members
        if m.id in ids
    ]


@pytest.mark.parametrize("name", IDS)
def test_what_a_screen_makes_of_an_id_means_the_id(name):
    short = told_apart(IDS)[IDS.index(name)]
    for printed in (name, f"{name} ★", short, f"{short} ★", f"runs/first/members/{name}", f"members/{name}/"):
        assert found_member(RUN, records(), printed) == name


@pytest.mark.parametrize("columns", [24, 18])
def test_an_id_that_was_shortened_in_the_middle_means_the_id(columns):
    import io

    for name in IDS:
        printed = Screen(io.StringIO(), redraws=False).shorten(name, columns)
        try:
            assert found_member(RUN, records(), printed) == name
        except InputError as error:  # what is left of two ids may be the same
            assert "is in several ids" in str(error) and name in str(error)


def test_a_part_that_only_one_id_has():
    assert found_member(RUN, records(), "k3-lr3e-4-s1") == "topk-f256-k3-lr3e-4-s1"
    assert found_member(RUN, records(IDS[:3]), "s1") == IDS[1], "a whole part, rather than the beginning of s10"
    assert found_member(RUN, records(IDS[:3]), "s10") == IDS[2] == found_member(RUN, records(IDS[2:3]), "s1")
    assert chosen_members(RUN, records(), ["k3-lr3e-4-s1", "topk-f256-k3-lr3e-4-s1"]) == ["topk-f256-k3-lr3e-4-s1"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("topk-k3", "--member topk-k3 is in several ids of runs/first: give more of one of topk-f256-k3-lr1e-3-s0, "),
        ("topk", "and 7 more (`show` lists all)"),
        ("topk-f256-k4-lr1e-3-s0", "is not in runs/first: did you mean topk-f256-k3"),
        ("nothing", "is not in runs/first: give one of relu-f256-l32-lr1e-3-s0, "),
    ],
)
def test_a_text_that_means_no_member_or_several(text, message):
    with pytest.raises(InputError) as error:
        found_member(RUN, records(), text)
    assert message in str(error.value) and str(error.value).count("-lr") <= 5


def test_the_best_member():
    found = records(topk={"explained_variance": 0.9})
    assert found_member(RUN, found, "best") == "topk-f256-k32-lr1e-3-s0" == only_member(RUN, found, "best")
    assert found_member(RUN, records(IDS[4:5]), "best") == IDS[4], "the only one is the best"
    with pytest.raises(InputError, match="no member of runs/first has an L0 within a tenth of its target"):
        found_member(RUN, records(relu={"l0": 100.0}, topk={"l0": 100.0}), "best")
    with pytest.raises(InputError, match="--member is missing and the run has several: give best, or one of relu"):
        only_member(RUN, found, None)


def test_a_failed_member_is_not_given():
    found = [record | {"failed": {"step": 3, "reason": ""}, "metrics": None} for record in records(IDS[:1])]
    with pytest.raises(InputError, match="failed at step 3"):
        found_member(RUN, found, "relu")
