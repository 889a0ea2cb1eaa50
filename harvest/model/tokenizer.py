"""Loading only the tokenizer of a model, which is much faster than loading its weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from harvest.model.library_errors import explained
from harvest.sources import official_name


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a hub name, an alias or a local directory. Raises InputError if it cannot be loaded."""
    with explained(f"{location}: its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(official_name(location))
