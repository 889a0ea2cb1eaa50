"""Groups, states and hyperparameters of populations without a store, for tests of the training step."""

import jax
import jax.numpy as jnp
import numpy as np

from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.members import Member, members_of
from sae_jax.training.axes import Axes
from sae_jax.training.mesh import Placement
from sae_jax.training.population import Group, Rows, State, groups_of, hyper_of, stack, start_group

SITES = (Site(0, "resid_pre"),)


def member_of(**settings) -> Member:
    (member,) = members_of(TrainConfig(**settings), SITES)
    return member


def raw_rows(d: int, site: int = 0) -> Rows:
    return Rows(site, np.zeros(d), np.ones(d), np.ones(d))


def one_member(config: TrainConfig, d: int, total_steps: int) -> tuple[Group, dict]:
    (group,) = groups_of(members_of(config, SITES), config, d)
    return group, hyper_of(group.members[0], raw_rows(d), config, total_steps)


def grouped(
    config: TrainConfig,
    d: int,
    total_steps: int,
    rows: Rows | None = None,
    split: bool = False,
    sites: tuple[Site, ...] = SITES,
) -> tuple[tuple[Group, ...], list[dict]]:
    """(groups, hypers) of all members of a config, for rows of width d."""
    groups = groups_of(members_of(config, sites), config, d, split)

    def hyper(member: Member) -> dict:
        site = sites.index(Site(member.layer, member.hook))
        return hyper_of(member, rows or raw_rows(d, site), config, total_steps)

    return groups, [stack([hyper(member) for member in group.members]) for group in groups]


def prepare(
    config: TrainConfig,
    total_steps: int,
    x_NxD,
    rows: Rows | None = None,
    split: bool = False,
    sites: tuple[Site, ...] = SITES,
) -> tuple[tuple[Group, ...], list[State], list[dict]]:
    """(groups, states before the first step, hypers) for normalized rows x, from which members of all sites start."""
    groups, hypers = grouped(config, x_NxD.shape[1], total_steps, rows, split, sites)
    states = [start_group(g, hyper, lambda member: jnp.asarray(x_NxD)) for g, hyper in zip(groups, hypers, strict=True)]
    return groups, states, hypers


def placed(
    config: TrainConfig, total_steps: int, x_NxD, axes: Axes | None = None, sites: tuple[Site, ...] = SITES
) -> tuple[Placement, list[State], list[dict], tuple[Group, ...]]:
    """(placement, states, hypers, groups) on these axes, by default on as many devices as there are members."""
    split = axes is not None and axes.splits_members
    groups, states, hypers = prepare(config, total_steps, x_NxD, split=split, sites=sites)
    axes = axes or Axes(members=min(len(jax.devices()), sum(len(group.members) for group in groups)))
    placement = Placement(groups, jax.devices(), axes)
    return placement, placement.place(states), placement.place(hypers), groups
