"""Groups, states and numbers of a population without a store, for tests of the step."""

import jax
import jax.numpy as jnp
import numpy as np

from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.grid import Member, members_of
from sae_jax.placement import Placement
from sae_jax.population import Group, Rows, State, groups_of, hyper_of, stack, start_group

SITES = (Site(0, "resid_pre"),)


def member_of(**settings) -> Member:
    (member,) = members_of(TrainConfig(**settings), SITES)
    return member


def raw_rows(d: int) -> Rows:
    return Rows(0, np.zeros(d), np.ones(d))


def one_member(config: TrainConfig, d: int, total_steps: int) -> tuple[Group, dict]:
    (group,) = groups_of(members_of(config, SITES), config, d)
    return group, hyper_of(group.members[0], raw_rows(d), config, total_steps)


def prepare(
    config: TrainConfig, total_steps: int, x_NxD, rows: Rows | None = None
) -> tuple[tuple[Group, ...], list[State], list[dict]]:
    """(groups, states before the first step, hypers); `x_NxD` are normalized rows."""
    d = x_NxD.shape[1]
    groups = groups_of(members_of(config, SITES), config, d)
    hypers = [stack([hyper_of(m, rows or raw_rows(d), config, total_steps) for m in g.members]) for g in groups]
    states = [start_group(g, hyper, lambda member: jnp.asarray(x_NxD)) for g, hyper in zip(groups, hypers, strict=True)]
    return groups, states, hypers


def placed(
    config: TrainConfig, total_steps: int, x_NxD, devices: int | None = None
) -> tuple[Placement, list[State], list[dict], tuple[Group, ...]]:
    """The same over so many devices; without a number over all, but no more than there are members."""
    groups, states, hypers = prepare(config, total_steps, x_NxD)
    devices = devices or sum(len(group.members) for group in groups)
    placement = Placement(groups, jax.devices()[:devices])
    return placement, placement.place(states), placement.place(hypers), groups
