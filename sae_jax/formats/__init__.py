"""Dictionaries on disk: `load_dictionary` reads SAELens' (old and new) and dictionary_learning's, `save_dictionary`
writes SAELens'. Nothing that is read is executed."""

from __future__ import annotations

from pathlib import Path

from harvest.errors import InputError
from harvest.files import refuse_irregular
from sae_jax.formats import dictionary_learning, saelens
from sae_jax.formats.dictionary import Dictionary

save_dictionary = saelens.write


def is_dictionary(directory: Path) -> bool:
    return (directory / saelens.CFG).exists() or (directory / dictionary_learning.WEIGHTS).exists()


def load_dictionary(directory: Path | str, d_model: int | None = None) -> Dictionary:
    """The dictionary of a directory, its format found by its files, checked as a whole.

    `d_model`: the width of the rows it is meant for, where that is known. Raises InputError for a directory that holds
    no dictionary, a damaged one, one for rows of another width, or one that could not be used exactly.
    """
    directory = Path(directory)
    if not is_dictionary(directory):
        if not directory.is_dir():
            raise InputError(f"{directory} is no directory: a dictionary is one, by SAELens or dictionary_learning")
        inside = sorted(str(p.relative_to(directory)) for p in directory.glob("*/*/") if is_dictionary(p))
        inside += sorted(p.name for p in directory.iterdir() if is_dictionary(p))
        raise InputError(
            f"{directory} holds no dictionary ({saelens.CFG} with {saelens.WEIGHTS}, or dictionary_learning's "
            f"{dictionary_learning.WEIGHTS} with {dictionary_learning.CONFIG})"
            + (f"; there is one in {', '.join(inside[:3])}: name it" if inside else "")
        )
    for name in (
        saelens.CFG,
        saelens.WEIGHTS,
        saelens.SPARSITY,
        dictionary_learning.CONFIG,
        dictionary_learning.WEIGHTS,
    ):
        refuse_irregular(directory / name)
    read = saelens.read if (directory / saelens.CFG).exists() else dictionary_learning.read
    dictionary = read(directory)
    dictionary.check(directory)
    if d_model is not None and dictionary.d_in != d_model:
        raise InputError(f"{directory} is for rows of {dictionary.d_in} dimensions, and these have {d_model}")
    return dictionary
