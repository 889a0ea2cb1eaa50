"""The compiled programs of a population: the blocks of all members, mapped over the members, on a mesh of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sae_jax.models.base import Arrays
from sae_jax.training.mesh import MEMBERS, Placement, on_mesh, split_over_features
from sae_jax.training.population import Group, State
from sae_jax.training.step import make_block


def unless_failed(block: Callable) -> Callable:
    """The block, but skipped if all its members have failed; the metrics are then NaN."""

    def guarded(hyper: Arrays, state: State, *rows: jax.Array):
        def nothing(hyper: Arrays, state: State, *rows: jax.Array):
            _, metrics = jax.eval_shape(block, hyper, state, *rows)
            metrics = {name: jnp.full(m.shape, jnp.nan, m.dtype) for name, m in metrics.items() if name != "failed"}
            return state, metrics | {"failed": state.failed}

        return jax.lax.cond((state.failed < 0).any(), block, nothing, hyper, state, *rows)

    return guarded


def over_members(block: Callable, side_by_side: int) -> Callable:
    """The block of a whole group, from the block of one member.

    Members that run one at a time are in a plain loop, because a vmap, even of one member, computes both branches of
    every `cond`. The loops write the members back into the given state, so there is no second copy of the state.
    """

    def chunked(hyper: Arrays, state: State, *rows: jax.Array):
        def together(state: State, start: jax.Array | int, count: int):
            part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, count), (hyper, state))
            part, metrics = jax.vmap(lambda *member: block(*member, *rows))(*part)
            put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
            return jax.tree.map(put, state, part), metrics

        count = min(side_by_side, len(state.failed))
        chunks, rest = divmod(len(state.failed), count)
        state, metrics = jax.lax.scan(
            lambda state, chunk: together(state, chunk * count, count), state, jnp.arange(chunks)
        )
        metrics = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), metrics)
        if rest:
            state, last = together(state, chunks * count, rest)
            metrics = jax.tree.map(lambda *parts: jnp.concatenate(parts), metrics, last)
        return state, metrics

    def in_turn(hyper: Arrays, state: State, *rows: jax.Array):
        def turn(state: State, at: tuple[jax.Array, Arrays]):
            p, hyper = at
            one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, p, keepdims=False), state)
            one, metrics = unless_failed(block)(hyper, one, *rows)
            put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=p, axis=0)
            return jax.tree.map(put, state, one), metrics

        return jax.lax.scan(turn, state, (jnp.arange(len(state.failed)), hyper))

    return in_turn if side_by_side == 1 else unless_failed(chunked)


class Program(NamedTuple):
    """The compiled blocks of the groups that are on the same positions of a mesh, by the numbers of the groups."""

    mesh: Mesh
    groups: list[int]
    run: Any  # the jitted function


def make_train_block(groups: tuple[Group, ...], side_by_side: int = 1, placement: Placement | None = None) -> Callable:
    """(states, hypers, raw_LxSxBxD, calibration_LxNxD[, steps]) → (states, metrics), one entry per group.

    States are donated. Without `steps`, there is a step for each batch of the block; see `make_block`.

    At each position of the mesh, `side_by_side` members of a group run in one vmap, and the next ones after them.
    States and hypers are laid out by `placement.place`, rows by `placement.rows`, calibration rows and steps by
    `placement.everywhere`. Without a placement, everything is on one device. Groups on the same positions are compiled
    as one program, and the programs run at the same time.
    """
    if placement is None:
        return jax.jit(block_of(groups, side_by_side), donate_argnums=0)
    programs = make_programs(groups, side_by_side, placement)

    def train_blocks(states: list[State], hypers: list[Arrays], *rows: jax.Array):
        results: dict[int, tuple[State, Arrays]] = {}
        for mesh, numbers, run in programs:
            arguments = ([trees[number] for number in numbers] for trees in (states, hypers))
            outputs = run(*arguments, [on_mesh(array, mesh) for array in rows])
            results |= zip(numbers, zip(*outputs, strict=True), strict=True)
        return [results[number][0] for number in range(len(groups))], [results[n][1] for n in range(len(groups))]

    return train_blocks


def make_programs(groups: Sequence[Group], side_by_side: int, placement: Placement) -> list[Program]:
    splits, shares, everywhere = placement.axes.splits_members, PartitionSpec(MEMBERS), PartitionSpec()
    programs = []
    for mesh, numbers in placement.programs():
        block = block_of([groups[number] for number in numbers], side_by_side, splits)

        def train_block(states: list[State], hypers: list[Arrays], rows: list[jax.Array], block=block):
            return block(states, hypers, *rows)

        sharded = jax.shard_map(
            train_block,
            mesh=mesh,
            in_specs=(shares, shares, everywhere),
            out_specs=shares,
            axis_names={MEMBERS} if splits else set(mesh.axis_names),  # XLA splits the products over the other axes
            check_vma=False,  # positions do not communicate
        )
        programs.append(Program(mesh, numbers, jax.jit(sharded, donate_argnums=0)))
    return programs


def block_of(groups: Sequence[Group], side_by_side: int, splits: bool = False) -> Callable:
    """The block of all members of the groups. If it `splits` members over devices, their layout is kept."""

    def block_of_group(group: Group) -> Callable:
        block = make_block(group.signature, side_by_side == 1)

        def laid_out(hyper: Arrays, state: State, *rows: jax.Array):
            state, metrics = block(hyper, state, *rows)
            return split_over_features(state, group.signature.hidden_dim), metrics

        return over_members(laid_out if splits else block, side_by_side)

    blocks = [block_of_group(group) for group in groups]

    def train_block(states: list[State], hypers: list[Arrays], *rows: jax.Array):
        results = [block(hyper, state, *rows) for block, state, hyper in zip(blocks, states, hypers, strict=True)]
        return [state for state, _ in results], [metrics for _, metrics in results]

    return train_block
