"""The figures of sae_jax/SCALE.md, from the estimates that choose a mesh: its tables and lists as Markdown.

    PYTHONPATH=. python tests/benchmarks/scale.py

Nothing is trained, and no accelerator is needed. A test compares what is printed with the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.members import members_of
from sae_jax.models.registry import KINDS
from sae_jax.training.axes import Axes
from sae_jax.training.memory import in_gb, needed
from sae_jax.training.mesh_plan import Machine, MeshPlan, best_mesh, bytes_on_device
from sae_jax.training.population import Group, groups_of
from sae_jax.training.roofline import DEVICES, FEED, H100, ROW_BYTES, Device, network_bytes, products, step_seconds

ROWS, D, BATCH = 10**9, 2304, 4096
USABLE = 0.9  # share of a device's memory that JAX may use
POPULATIONS = {"24 × F 65,536": (1 << 16, 24), "1 × F 1,048,576": (1 << 20, 1)}
H200 = next(device for device in DEVICES if device.name == "H200")


class Case:
    """A population on a number of devices, on the mesh that is asked for or chosen."""

    def __init__(
        self, population: str, devices: int, device: Device = H100, axes: Axes | None = None, **values: str
    ) -> None:
        features, members = POPULATIONS[population]
        seeds = tuple(range(members))
        self.config = replace(TrainConfig("relu", features, batch_size=BATCH, seed=seeds), **values)
        sites = (Site(0, "resid_pre"),)
        self.groups: Sequence[Group] = groups_of(members_of(self.config, sites), self.config, D)
        self.machine = Machine(devices, device, int(USABLE * device.memory))
        self.mesh: MeshPlan = best_mesh(self.groups, self.config, self.machine, axes)
        self.seconds = step_seconds(self.groups, self.config, self.mesh.axes, device, self.mesh.side_by_side)
        self.bytes = bytes_on_device(self.groups, self.config, *self.mesh)

    @property
    def fits(self) -> bool:
        return sum(self.bytes.values()) <= self.machine.memory

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, for all members on it."""
        (group,) = self.groups
        slots = -(-len(group.members) // self.mesh.axes.members)
        return slots * sum(network_bytes(group.signature, self.config, self.mesh.axes).values())

    @property
    def hours(self) -> float:
        return ROWS / BATCH * self.seconds.total / 3600


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def answer() -> str:
    header = (
        "population",
        "on",
        "mesh",
        "at a time",
        "memory of each",
        "a step",
        "limited by",
        "1B rows",
        "device hours",
    )
    rows = []
    for population in POPULATIONS:
        for devices, device in ((1, H100), (1, H200), (8, H100), (64, H100)):
            case = Case(population, devices, device)
            cells = [population, f"{devices} {device.name}"]
            if case.fits:
                cells += [named(case.mesh.axes), str(case.mesh.side_by_side), in_gb(sum(case.bytes.values()))]
                cells += [milliseconds(case.seconds.total), case.seconds.limit, hours(case.hours)]
                cells.append(f"{case.hours * devices:,.0f}")
            else:
                needs, there = in_gb(sum(case.bytes.values())), in_gb(case.machine.memory)
                cells += [f"refused: needs {needs}, and {there} are available", *[""] * 6]
            rows.append(cells)
    return table(header, rows)


def by_axis() -> str:
    header = (
        "population",
        "on 8 H100 as",
        "weights and moments",
        "weights in a step",
        "batch in a step",
        "fits",
        "sent",
        "a step",
    )
    rows = []
    for population, (_, members) in POPULATIONS.items():
        for axes in (Axes(members=8), Axes(data=8), Axes(features=8)):
            if axes.members <= members:
                case = Case(population, 8, axes=axes)
                parts = [in_gb(size) for size in case.bytes.values()]
                sent = in_gb(case.sent) if case.sent else "nothing"
                fits = "yes" if case.fits else "no"
                rows.append([population, named(axes), *parts, fits, sent, milliseconds(case.seconds.computing)])
    return table(header, rows)


def by_limit() -> str:
    header = ("population", "on", "arithmetic", "memory", "network", "feed")
    rows = []
    for population in POPULATIONS:
        for devices in (8, 64):
            case = Case(population, devices)
            rows.append([population, f"{devices} H100", *map(milliseconds, case.seconds)])
    return table(header, rows)


def by_kind() -> str:
    kinds_of: dict[int, list[str]] = {}
    hours_of = {}
    for kind in KINDS:
        case = Case("24 × F 65,536", 8, activation=(kind,))
        count = products(case.groups[0].signature)
        kinds_of.setdefault(count, []).append(f"`{kind}`")
        hours_of[count] = hours(case.hours)
    rows = [[", ".join(kinds), f"{2 * count} D F", hours_of[count]] for count, kinds in sorted(kinds_of.items())]
    return table(("kinds", "operations a row", "1B rows, 24 × F 65,536, 8 H100"), rows)


def by_device() -> str:
    header = (
        "device",
        "float32",
        "bfloat16",
        "memory",
        "its bandwidth",
        "link",
        "beyond",
        "24 × F 65,536 on 8",
        "in bfloat16",
    )
    rows = []
    for device in DEVICES:
        speeds = [f"{device.flops[dtype] / 1e12:.0f} TFLOP/s" for dtype in ("float32", "bfloat16")]
        rates = [f"{rate / 1e9:,.4g} GB/s" for rate in (device.bandwidth, device.link, device.beyond)]
        cases = [Case("24 × F 65,536", 8, device, dtype=dtype) for dtype in ("float32", "bfloat16")]
        times = [hours(case.hours) if case.fits else "refused" for case in cases]
        rows.append([device.name, *speeds, in_gb(device.memory), *rates, *times])
    return table(header, rows)


def facts() -> str:
    size, feeding = ROWS * D * ROW_BYTES, BATCH * D * ROW_BYTES / FEED
    enough = {population: Case(population, 8).seconds.computing * 8 / feeding for population in POPULATIONS}
    lines = [
        f"1B rows of D {D:,} in float16 are {in_gb(size)}, half of it in int8. One reader gives {in_gb(FEED)} a second "
        f"(measured on a CPU core), so it needs {hours(size / FEED / 3600)}.",
    ]
    for population, count in enough.items():
        case = Case(population, 8)
        lines.append(f"{population}: on more than {count:.0f} H100, one reader is slower than the arithmetic.")
        host = needed(case.groups, case.config, size, case.mesh.axes, on_host=False, side_by_side=1).host
        purpose = max(host, key=lambda name: host[name])
        lines.append(
            f"{population}: the process needs about {in_gb(sum(host.values()))} of the machine's own memory, "
            f"most of it for {purpose}."
        )
    return "\n".join(f"- {line}" for line in lines)


def named(axes: Axes) -> str:
    """The axes that are split, as `--mesh` takes them."""
    split = [f"{axis}={parts}" for axis, parts in axes._asdict().items() if parts > 1]
    return f"`{','.join(split)}`" if split else "one device"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds else "0"


def hours(count: float) -> str:
    return f"{count:.3g} h"


BLOCKS = (answer, by_axis, by_limit, facts, by_kind, by_device)

if __name__ == "__main__":
    print("\n\n".join(block() for block in BLOCKS))
