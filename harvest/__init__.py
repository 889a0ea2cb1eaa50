"""Harvesting the activations of a language model into stores. Importing this package loads neither torch nor jax."""

from typing import Any

__all__ = ["Piece", "TransformerActivationDataset", "import_rows"]


def __getattr__(name: str) -> Any:
    if name == "TransformerActivationDataset":  # loads torch only when it is used
        from harvest.dataset import TransformerActivationDataset

        return TransformerActivationDataset
    if name in ("Piece", "import_rows"):
        from harvest.imports import importing

        return getattr(importing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
