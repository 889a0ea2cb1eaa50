"""The largest difference of our activations from plain transformers, by family, hook and number format, as Markdown.

    PYTHONPATH=.:tests python tests/benchmarks/families.py

Each family is a random model of three layers. A cell has the differences in the middle layer in float32, bfloat16 and
float16, relative to the largest value; one number if all are equal.
"""

import tempfile
from pathlib import Path

import numpy as np
from plain_hooks import MODULES, differences
from tiny_models import write_model

from harvest.request import HOOKS, MODEL_DTYPES


def main() -> None:
    tokens_WxT = np.random.default_rng(0).integers(5, 4096, (6, 12), dtype=np.int32)
    print("| family |", " | ".join(f"`{hook}`" for hook in HOOKS), "|")
    print("|" + "---|" * (1 + len(HOOKS)))
    for family in MODULES:
        with tempfile.TemporaryDirectory() as directory:
            write_model(family, Path(directory))
            apart = [differences(family, Path(directory), tokens_WxT, dtype) for dtype in MODEL_DTYPES[1:]]
        cells = [", ".join(dict.fromkeys(written(of_dtype[hook]) for of_dtype in apart)) for hook in HOOKS]
        print(f"| {family} |", " | ".join(cells), "|", flush=True)


def written(apart: float | None) -> str:
    return "refused" if apart is None else f"{apart:.0e}".replace("e-0", "e-") if apart else "0"


if __name__ == "__main__":
    main()
