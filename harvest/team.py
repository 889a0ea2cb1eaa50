"""The processes that harvest and train together, on one machine or several. Imports neither torch nor jax."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harvest.errors import InputError, shortened


def _only_mine(text: str) -> list[str]:
    return [text]


@dataclass(frozen=True)
class Team:
    """Process number `index` of `count` that work together in one cache directory, which all of them must see.

    `exchange` takes a text and returns those of all processes, in the order of their numbers, as soon as each has given
    one. All processes call it equally often. It must raise an exception if one of them has ended. Process 0 leads: it
    locks the stores and writes their manifests.
    """

    index: int = 0
    count: int = 1
    exchange: Callable[[str], Sequence[str]] = _only_mine

    @property
    def leads(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Return once all processes have come here. Raises InputError, as all methods here, if one has ended."""
        self._values_of_all(None)

    def agree(self, value: Any) -> Any:
        """The value of process 0, of JSON types, in all processes."""
        return self._values_of_all(value)[0]

    def refuse_differences(self, facts: Mapping[str, Any]) -> None:
        """Raise InputError in all processes if one of them has other facts, of JSON types, than process 0."""
        first, *others = self._values_of_all(facts)
        for number, found in enumerate(others, 1):
            for name in first:
                if found[name] != first[name]:
                    raise InputError(
                        f"processes 0 and {number} differ in {name} ({shortened(first[name])}, not "
                        f"{shortened(found[name])}): give all of them the same settings, files and versions"
                    )

    def _values_of_all(self, value: Any) -> list[Any]:
        try:
            texts = self.exchange(json.dumps(value))
        except Exception as error:  # its kind depends on how the processes talk to each other
            raise InputError(
                f"another process has ended ({shortened(error) or type(error).__name__}): see what it says. The "
                "finished part of the work is kept; start all processes again, with --resume if training had begun"
            ) from error
        return [json.loads(text) for text in texts]


ALONE = Team()
