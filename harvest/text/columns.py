"""The column of a table that holds texts, token ids or chats, and the conversion of its values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.text.chat import Chat, chat_in, is_message

TEXT, BYTES, NULL, IDS, CHAT = "text", "bytes", "null", "token ids", "chat"  # null: only missing values
KNOWN = {"input_ids": IDS, "tokens": IDS, "messages": CHAT, "conversations": CHAT}  # names in many data sets

Document = str | np.ndarray | Chat


def column_to_read(location: str, kinds: Mapping[str, str], asked: str | None = None) -> str:
    """The column of a table with {column: kind} that is read as texts, token ids or chats.

    This is the one that was asked for, or else the one named text, one with a name and kind of KNOWN, or the only one
    that holds text. A column named text with only nulls holds empty texts. Bytes count as text in a column
    that was asked for or is named text, and in a table of one column. Raises InputError if no column or several are
    found.
    """
    names = [name for name in kinds if "." not in name]
    fix = f"the columns are {', '.join(kinds if asked else names)}: choose one with --text-column"
    if asked and asked not in kinds:
        raise InputError(f"--text-column {asked}: --dataset {location} has no such column; {fix}")
    texts = [name for name in names if kinds[name] == TEXT or (kinds[name] == BYTES and len(names) == 1)]
    known = [name for name, kind in KNOWN.items() if kinds.get(name) == kind]
    named = asked or ("text" if "text" in names else None)
    if named and kinds[named] not in (TEXT, BYTES, NULL, IDS, CHAT):
        raise InputError(f"--dataset {location}: its column {named} holds {kinds[named]} and not text; {fix}")
    if named or known:
        return named or known[0]
    if len(texts) != 1:
        raise InputError(
            f"--dataset {location}: the text column is not known, because none is named text and {len(texts)} hold "
            f"strings; {fix}"
        )
    return texts[0]


def kinds_of_schema(location: str, schema) -> dict[str, str]:
    """The kind of each column of an Arrow schema: text, bytes or Arrow's type. Raises InputError for equal names."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise InputError(f"--dataset {location}: several columns are named {', '.join(twice)}: rename or remove some")
    return dict(_kinds_of_fields(schema))


def _kinds_of_fields(fields: Iterable, within: str = "") -> Iterator[tuple[str, str]]:
    """(name, kind) of each field, and of the fields of a struct by names such as meta.text."""
    import pyarrow.types as types

    for field in fields:
        yield f"{within}{field.name}", _kind_of_type(field.type)
        if types.is_struct(field.type):
            yield from _kinds_of_fields(field.type, f"{within}{field.name}.")


def _kind_of_type(arrow_type) -> str:
    import pyarrow.types as types

    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        if types.is_integer(arrow_type.value_type):
            return IDS
        if types.is_struct(arrow_type.value_type) and is_message([field.name for field in arrow_type.value_type]):
            return CHAT
    if types.is_dictionary(arrow_type):
        return _kind_of_type(arrow_type.value_type)
    if types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return TEXT
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type) or types.is_binary_view(arrow_type):
        return BYTES
    return str(arrow_type)


def kinds_of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The kind of each column, and of fields such as meta.text within one, from many rows.

    It is text, bytes or token ids if all values except nulls are, and otherwise names their types.
    """
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in fields_of(row):
            kinds.setdefault(name, set()).update(() if value is None else (_kind_of_value(value),))
    return {name: " and ".join(sorted(seen)) or NULL for name, seen in kinds.items()}


def fields_of(row: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of each column of a row, and of the fields within a column by names such as meta.text."""
    for name, value in row.items():
        yield f"{within}{name}", value
        if isinstance(value, Mapping):
            yield from fields_of(value, f"{within}{name}.")


def value_in(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field within one; None if the row has none."""
    return row[column] if column in row else dict(fields_of(row)).get(column)


def _kind_of_value(value: Any) -> str:
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return IDS
        if all(isinstance(item, Mapping) and is_message(item) for item in value):
            return CHAT
    return {"str": TEXT, "bytes": BYTES}.get(type(value).__name__, type(value).__name__)


def document_in(value: object, column: str, place: str) -> Document:
    """A value as text or, if it is a list, as token ids, int32 [T], or as a chat.

    Raises InputError, naming `place`, for other values.
    """
    if not isinstance(value, list):
        return text_in(value, column, place)
    if all(type(item) is int and 0 <= item < 2**31 for item in value):
        return np.array(value, np.int32)
    if all(isinstance(item, Mapping) and is_message(item) for item in value):
        return chat_in(value, column, place)
    raise InputError(
        f"--dataset {place}: {column!r} must hold token ids, 0 or more, or messages with a role and a content: "
        "remove or correct it"
    )


def text_in(value: object, column: str, place: str) -> str:
    """A value as text: null is empty, bytes are UTF-8. Raises InputError, naming `place`, for other types."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InputError(
            f"--dataset {place}: {column!r} must be text, not {type(value).__name__}: remove or correct it"
        )
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"--dataset {place}: not UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8"
        ) from error
