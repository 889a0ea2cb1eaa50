"""The three axes along which a population is split over devices, as `--mesh` names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from harvest.errors import InputError

AUTO = "auto"


class Axes(NamedTuple):
    """The number of parts into which the members, the rows of a batch and the features are split."""

    members: int = 1
    data: int = 1
    features: int = 1

    @property
    def devices(self) -> int:
        return self.members * self.data * self.features

    @property
    def splits_members(self) -> bool:
        """Return whether one member is on several devices, which add up their parts in each step."""
        return self.data * self.features > 1

    def __str__(self) -> str:
        return ",".join(f"{axis}={parts}" for axis, parts in self._asdict().items())


def axes_asked(text: str) -> Axes | None:
    """The axes of `--mesh`, such as `members=4,features=2`, or None for `auto`. Axes that are not named have one part.

    Raises InputError if the text has another form.
    """
    if text == AUTO:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        axes = Axes(**{axis.strip(): int(parts) for axis, parts in pairs})
    except (ValueError, TypeError):
        axes = None
    if axes is None or min(axes) < 1 or len({axis for axis, *_ in pairs}) < len(pairs):
        raise InputError(
            f"--mesh {text}: use {AUTO}, or the parts of each axis, such as members=4 or members=2,data=2,features=2"
        )
    return axes


def possible_axes(devices: int) -> Iterator[Axes]:
    """All ways to use a number of devices."""
    for members in range(1, devices + 1):
        for data in range(1, devices // members + 1):
            if devices % (members * data) == 0:
                yield Axes(members, data, devices // (members * data))


def refuse_axes(axes: Axes, members: int, micro_batch: int, widths: list[int], devices: int) -> None:
    """Raise InputError unless there are enough devices, and the axes divide the rows of a batch and all widths."""
    if axes.devices > devices:
        raise InputError(
            f"--mesh {axes} needs {axes.devices} devices, but there are {devices}: use fewer parts (on a CPU, "
            f"JAX_NUM_CPU_DEVICES={axes.devices} makes as many devices)"
        )
    if axes.members > members:
        raise InputError(f"--mesh {axes}: the number of members is only {members}; use members={members} or fewer")
    if micro_batch % axes.data:
        raise InputError(
            f"--mesh {axes}: the {micro_batch} rows of a batch (or micro-batch) are not a multiple of {axes.data}; "
            "change --batch-size or data="
        )
    if odd := next((width for width in widths if width % axes.features), None):
        raise InputError(f"--mesh {axes}: {odd} features are not a multiple of {axes.features}; change features=")
