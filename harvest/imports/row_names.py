"""Names of rows that were imported without a text: the number of each row stands for it."""

from __future__ import annotations

from collections.abc import Iterable


class RowNames:
    """Reads the numbers of rows where analyses read tokens with a tokenizer: number 7 is "row 7"."""

    def decode(self, numbers: Iterable[int]) -> str:
        return "".join(map(_name, numbers))

    def batch_decode(self, batch: Iterable[Iterable[int]], **_: object) -> list[str]:
        return [self.decode(numbers) for numbers in batch]

    def convert_ids_to_tokens(self, numbers: Iterable[int]) -> list[str]:
        return [_name(number) for number in numbers]


def _name(number: int) -> str:
    return f"row {number:,}"
