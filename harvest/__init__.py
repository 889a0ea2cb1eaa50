"""Text through a language model into an activation store. Importing this package loads neither torch nor jax."""

from typing import Any

__all__ = ["TransformerActivationDataset"]


def __getattr__(name: str) -> Any:
    if name == "TransformerActivationDataset":  # torch is loaded where it is used
        from harvest.dataset import TransformerActivationDataset

        return TransformerActivationDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
