"""A model's tokenizer alone: to write tokens as text needs neither its weights nor the seconds that they take."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from harvest.model.library_errors import explained
from harvest.sources import official_name


def load_tokenizer(location: str) -> Any:
    """Of a hub name, an alias or a local directory. Raises InputError, with the reason, where there is none."""
    with explained(f"{location}: its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(official_name(location))
