"""Loading only the tokenizer of a model, which is much faster than loading its weights, and what begins a text."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from harvest.errors import InputError
from harvest.model.library_errors import explained
from harvest.sources import official_name


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a hub name, an alias or a local directory. Raises InputError if it cannot be loaded."""
    with explained(f"{location}: its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(official_name(location))


def begin_of_text(tokenizer: Any, bos: str, location: str) -> tuple[int, ...]:
    """The tokens that `bos` ("auto", "on" or "off") puts in front of a text.

    With "auto", they are those that the tokenizer itself puts there, because the model was trained with them: none for
    GPT-2, <s> for Llama, [CLS] for BERT. With "on", a tokenizer that puts none there gives its token for BOS. Raises
    InputError if it has none.
    """
    if bos == "off":
        return ()
    text_T, whole_T = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    at = next(i for i in range(len(whole_T)) if whole_T[i : i + len(text_T)] == text_T)
    if at or bos == "auto":
        return tuple(whole_T[:at])
    if tokenizer.bos_token_id is None:
        raise InputError(f"--bos on: the tokenizer of {location} has no token that begins a text: use --bos off")
    return (tokenizer.bos_token_id,)
