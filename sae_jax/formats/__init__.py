"""SAEs ("dictionaries") on disk. `load_dictionary` reads the formats of SAELens (old and new) and dictionary_learning,
`save_dictionary` writes that of SAELens. No code in a file is executed."""

from __future__ import annotations

from pathlib import Path

from harvest.errors import InputError
from harvest.files import refuse_irregular
from sae_jax.formats import dictionary_learning, saelens
from sae_jax.formats.dictionary import Dictionary

save_dictionary = saelens.write
WEIGHTS = (saelens.WEIGHTS, dictionary_learning.WEIGHTS)
FILES = (saelens.CFG, saelens.SPARSITY, saelens.SCALER, dictionary_learning.CONFIG, *WEIGHTS)  # that are read


def is_dictionary(directory: Path) -> bool:
    needed = (dictionary_learning.WEIGHTS, dictionary_learning.CONFIG)
    return (directory / saelens.CFG).exists() or all((directory / name).exists() for name in needed)


def load_dictionary(directory: Path | str, d_in: int | None = None) -> Dictionary:
    """Read and check the dictionary in a directory. Its format is recognized by its files.

    `d_in` is the width of the activations that the dictionary will be used on, if known. Raises InputError for a
    directory without a dictionary, and for a dictionary that is damaged, is for activations of another width, or needs
    something that this project cannot compute exactly.
    """
    directory = Path(directory)
    if not is_dictionary(directory):
        if not directory.is_dir():
            raise InputError(
                f"{directory} is no directory: give the directory that SAELens or dictionary_learning wrote"
            )
        inside = sorted(str(p.relative_to(directory)) for p in directory.glob("*/*/") if is_dictionary(p))
        inside += sorted(p.name for p in directory.iterdir() if is_dictionary(p))
        fix = f"give one of {', '.join(inside[:3])} inside it" if inside else "give the directory of a dictionary"
        raise InputError(
            f"{directory} holds no dictionary ({saelens.CFG} with {saelens.WEIGHTS}, or dictionary_learning's "
            f"{dictionary_learning.WEIGHTS} with {dictionary_learning.CONFIG}): {fix}"
        )
    for name in FILES:
        refuse_irregular(directory / name)
    read = saelens.read if (directory / saelens.CFG).exists() else dictionary_learning.read
    dictionary = read(directory)
    dictionary.check(directory)
    if d_in is not None and dictionary.d_in != d_in:
        raise InputError(
            f"{directory} is for activations of {dictionary.d_in} dimensions, but those given have {d_in}: "
            "use the model and hook that it was trained on"
        )
    return dictionary
