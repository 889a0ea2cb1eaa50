"""Conversations: their text by the chat template of a tokenizer, and the tokens that each role says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from harvest.errors import InputError

KEYS = (("role", "content"), ("from", "value"))  # of a message, as transformers and ShareGPT write them
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names, and those that templates know


class Message(NamedTuple):
    role: str
    content: str


class Chat(tuple[Message, ...]):
    """The messages of a conversation."""

    @property
    def text(self) -> str:
        return "\n".join(message.content for message in self)

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(message.role for message in self))


def is_message(value: Any) -> bool:
    """Whether a value has the keys of a message: a dict, or the names of the fields of a table's type."""
    return any(all(key in value for key in keys) for keys in KEYS)


def chat_in(value: list[Any], column: str, place: str) -> Chat:
    """The conversation in a list of messages. Raises InputError, naming `place`, if one is no message."""
    messages = []
    for item in value:
        role, content = next((item[k] for k in keys) for keys in KEYS if all(k in item for k in keys))
        if not (isinstance(role, str) and isinstance(content, str)):
            raise InputError(
                f"--dataset {place}: {column!r} has a message whose role or content is no text: correct it"
            )
        messages.append(Message(ROLES.get(role, role), content))
    return Chat(messages)


def chat_tokens(tokenizer: Any, chat: Chat, roles: Collection[str], special: np.ndarray) -> np.ndarray:
    """The ids of a conversation, and whether each becomes a row, int32 [2, T].

    Rows are the tokens of the contents of the messages of these roles, or of all if there are none. The words and
    special tokens that the template adds give no row. Raises InputError if the tokenizer has no template, cannot tell
    the positions of its tokens, or has a template that does not contain the messages as they are.
    """
    if not tokenizer.chat_template or not tokenizer.is_fast:
        lacks = "chat template" if not tokenizer.chat_template else "fast version, which tells the positions of tokens"
        raise InputError(f"the tokenizer of the model has no {lacks}, so it cannot read a chat: use another model")
    text = tokenizer.apply_chat_template([message._asdict() for message in chat], tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids_T = np.array(encoded["input_ids"], np.int32)
    start_T, end_T = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    is_row_T, at = np.zeros(len(ids_T), bool), 0
    for message in chat:
        content = message.content.strip()
        at = text.find(content, at)
        if at < 0:
            raise InputError(
                f"the chat template of the tokenizer changes the messages ({content[:40]!r} is not in the text that it "
                "makes): use another model, or texts without roles"
            )
        if not roles or message.role in roles:
            is_row_T |= (start_T < at + len(content)) & (end_T > at)
        at += len(content)
    return np.stack([ids_T, is_row_T & ~np.isin(ids_T, special)])
