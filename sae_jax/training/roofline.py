"""The time of a training step by a roofline: the slowest of arithmetic, memory, network and feed of rows.

Devices are described by published figures. What a step reaches of them is assumed, as stated below. The time to launch
programs is not counted, so steps of less than a millisecond take longer than estimated.

Shapes: B rows of a batch, D width of the model, F features, N positions of the members' axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sae_jax.config import TrainConfig
from sae_jax.training.axes import Axes
from sae_jax.training.population import Group, Signature
from sae_jax.training.shares import shares_of

REACHED = 0.4  # share of the peak speed of products that a step is assumed to reach
WEIGHT_PASSES = 11  # reads and writes of a parameter: 2 in the products, 2 of its gradient, 7 in clipping and Adam
VALUE_PASSES = 10  # reads and writes of the feature values [B, F] in the forward and backward pass
BISECTIONS = 31  # reads of them to find the k-th largest, each with a count per row over all features
LATENCY = 10e-6  # assumed seconds of a sum over devices that transfers next to nothing
FEED = 1.0e9  # bytes of shuffled rows per second from one reader (tests/benchmarks/feed.py, on a CPU core)
ROW_BYTES = 2  # of a value of a row in the feed: float16

PRODUCTS = 5  # of size B x D x F in a dense step: two in the forward pass, three in the backward pass
AUXK_PRODUCTS = 4  # decoding the dead features, and the gradients of the values, the decoder and the encoder


class Extra(NamedTuple):
    """The additional work in a dense step of a kind: products of size B x D x F, and reconstructions [B, D]."""

    products: int = 0
    reconstructions: int = 0


EXTRA = {"gated": Extra(2, 1), "multi_topk": Extra(3, 1), "matryoshka": Extra(3, 5)}


@dataclass(frozen=True)
class Device:
    """An accelerator by its maker's figures, without sparsity. Rates are per second and in one direction."""

    name: str
    kinds: tuple[str, ...]  # beginnings of its name in JAX
    flops: dict[str, float]  # by the format of operands; JAX multiplies float32 in TF32 on GPUs, in bfloat16 on TPUs
    memory: float  # bytes
    bandwidth: float  # bytes of its memory
    link: float  # bytes sent along a ring of devices that are linked directly
    linked: int  # devices of one machine or pod, which are linked directly
    beyond: float  # bytes sent to other machines or pods
    source: str

    def sends(self, parts: int, stride: int) -> float:
        """Bytes that a device sends per second in a sum over so many devices, of which each is `stride` from the next.

        Between machines, the devices of a machine that take part in the sum use their network adapters together.
        """
        if parts * stride <= self.linked:
            return self.link
        return min(self.link, self.beyond * max(1, self.linked // stride))


HOPPER = {"float32": 494.7e12, "bfloat16": 989.4e12}  # the data sheet gives twice as much, with sparsity
NVIDIA, DGX = "https://www.nvidia.com/en-us/data-center", "https://docs.nvidia.com/dgx"  # an adapter for each GPU
TPU = "https://cloud.google.com/tpu/docs"  # two links of a chip belong to one axis of the torus
H100 = Device("H100", ("NVIDIA H100",), HOPPER, 80e9, 3.35e12, 450e9, 8, 50e9, f"{NVIDIA}/h100, {DGX}")
DEVICES = (
    Device("H200", ("NVIDIA H200",), HOPPER, 141e9, 4.8e12, 450e9, 8, 50e9, f"{NVIDIA}/h200, {DGX}"),
    H100,
    Device(
        *("A100", ("NVIDIA A100",), {"float32": 156e12, "bfloat16": 312e12}, 80e9, 2.039e12),
        *(300e9, 8, 25e9, f"{NVIDIA}/a100, {DGX}"),
    ),
    Device(
        *("TPU v5e", ("TPU v5e", "TPU v5 lite"), {"float32": 197e12, "bfloat16": 197e12}, 16e9, 0.819e12),
        *(100e9, 256, 3.125e9, f"{TPU}/v5e"),
    ),
    Device(
        *("TPU v5p", ("TPU v5p", "TPU v5"), {"float32": 459e12, "bfloat16": 459e12}, 95e9, 2.765e12),
        *(200e9, 8960, 6.25e9, f"{TPU}/v5p"),
    ),
)


def device_named(kind: str) -> Device | None:
    """The device that JAX calls by this name, or None if it is not in the table."""
    return next((device for device in DEVICES if kind.startswith(device.kinds)), None)


class Seconds(NamedTuple):
    """The seconds of a step by what takes them. Rows are fed during the step; sums over devices wait for products."""

    arithmetic: float
    memory: float
    network: float
    feed: float

    @property
    def computing(self) -> float:
        return max(self.arithmetic, self.memory) + self.network

    @property
    def total(self) -> float:
        return max(self.computing, self.feed)

    @property
    def limit(self) -> str:
        """The name of the part that takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def step_seconds(
    groups: Sequence[Group], config: TrainConfig, axes: Axes, device: Device, side_by_side: int
) -> Seconds:
    """The time of one step of a population, on the position of the members' axis that takes longest.

    One reader feeds all devices, so the time of the feed does not depend on the axes.
    """
    members = [member for group in groups for member in group.members]
    sites = len({(member.layer, member.hook) for member in members})
    feed = sites * config.batch_size * groups[0].signature.d_model * ROW_BYTES / FEED
    arithmetic_N, memory_N, network_N = np.zeros((3, axes.members))
    for group, share in zip(groups, shares_of(groups, axes.members), strict=True):
        n, slots, signature = list(share.positions), max(share.counts), group.signature
        together = -(-slots // side_by_side)  # members side by side wait for a sum together
        arithmetic_N[n] += slots * flops_of_member(signature, config, axes) / (REACHED * device.flops[signature.dtype])
        memory_N[n] += slots * memory_traffic(signature, config, axes) / device.bandwidth
        network_N[n] += slots * network_seconds(signature, config, axes, device)
        network_N[n] += together * sums(signature, axes) * LATENCY
    slowest = np.argmax(np.maximum(arithmetic_N, memory_N) + network_N)
    return Seconds(float(arithmetic_N[slowest]), float(memory_N[slowest]), float(network_N[slowest]), feed)


def flops_of_member(signature: Signature, config: TrainConfig, axes: Axes) -> float:
    """Floating-point operations of a step of one member on each of its devices."""
    values = config.batch_size * signature.hidden_dim / (axes.data * axes.features)
    return 2 * products(signature) * signature.d_model * values


def products(signature: Signature) -> int:
    """The matrix products of size B x D x F in a dense step, as XLA counts them."""
    auxk = AUXK_PRODUCTS if signature.kind.has_auxk else 0
    return PRODUCTS + auxk + EXTRA.get(signature.activation, Extra()).products


def reconstructions(signature: Signature) -> int:
    """The arrays [B, D] that are decoded in a step."""
    return 1 + signature.kind.has_auxk + EXTRA.get(signature.activation, Extra()).reconstructions


def selections(signature: Signature) -> int:
    """The number of times that a step looks for the k-th largest feature value of rows or batches."""
    return (2 if signature.kind.has_auxk else 0) + (signature.kind.ranks_per_k > 1)


def memory_traffic(signature: Signature, config: TrainConfig, axes: Axes) -> float:
    """Bytes that a device reads and writes in a step of one member."""
    weights = 2 * signature.hidden_dim * signature.d_model / axes.features
    values = config.batch_size * signature.hidden_dim / (axes.data * axes.features)
    return 4 * (WEIGHT_PASSES * weights + (VALUE_PASSES + BISECTIONS * selections(signature)) * values)


def network_bytes(signature: Signature, config: TrainConfig, axes: Axes) -> dict[str, float]:
    """Bytes that a device sends in a step of one member, by axis, in ring all-reduces of what is added up.

    Over data, these are the gradients; over features, the reconstructions and the counts that find the k-th largest.
    """
    gradients = (2 * signature.hidden_dim * signature.d_model + signature.hidden_dim) / axes.features
    rows = config.batch_size / axes.data
    added = rows * (reconstructions(signature) * signature.d_model + BISECTIONS * selections(signature))
    sizes = {"data": gradients + signature.d_model, "features": added}
    return {axis: 4 * size * 2 * (1 - 1 / getattr(axes, axis)) for axis, size in sizes.items()}


def network_seconds(signature: Signature, config: TrainConfig, axes: Axes, device: Device) -> float:
    """Neighbours on the axis of features are next to each other; those on the axis of data are that many apart."""
    sent = network_bytes(signature, config, axes)
    over_data = sent["data"] / device.sends(axes.data, axes.features)
    return over_data + sent["features"] / device.sends(axes.features, 1)


def sums(signature: Signature, axes: Axes) -> int:
    """The sums over devices in a step, which wait for each other."""
    over_features = reconstructions(signature) + BISECTIONS * selections(signature) + 1  # the norm of the gradients
    return (axes.data > 1) + (over_features if axes.features > 1 else 0)
