"""Harvesting the activations of a language model into stores. Importing this package loads neither torch nor jax."""

from typing import Any

__all__ = ["TransformerActivationDataset"]


def __getattr__(name: str) -> Any:
    if name == "TransformerActivationDataset":  # loads torch only when it is used
        from harvest.dataset import TransformerActivationDataset

        return TransformerActivationDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
