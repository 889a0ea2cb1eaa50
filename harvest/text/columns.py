"""The text column of a table, and the conversion of its values to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harvest.errors import InputError

TEXT, BYTES, NULL = "text", "bytes", "null"  # null: only missing values


def text_column(location: str, kinds: Mapping[str, str]) -> str:
    """The text column of a table with {column: kind}: the one named text, or else the only one that holds text.

    Bytes count as text in a column named text and in a table of one column. A column named text with only nulls holds
    empty texts. Raises InputError if no column or several are found.
    """
    if "text" in kinds and kinds["text"] not in (TEXT, BYTES, NULL):
        raise InputError(
            f"--dataset {location}: its column text holds {kinds['text']} and not text; the columns are "
            f"{', '.join(kinds)}: rename the text column to text"
        )
    texts = [name for name, kind in kinds.items() if kind == TEXT or (kind == BYTES and len(kinds) == 1)]
    if "text" not in kinds and len(texts) != 1:
        raise InputError(
            f"--dataset {location}: the text column is not known, because none is named text and {len(texts)} hold "
            f"strings; the columns are {', '.join(kinds)}: rename the text column to text"
        )
    return "text" if "text" in kinds else texts[0]


def kinds_of_schema(location: str, schema) -> dict[str, str]:
    """The kind of each column of an Arrow schema: text, bytes or Arrow's type. Raises InputError for equal names."""
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise InputError(f"--dataset {location}: several columns are named {', '.join(twice)}: rename or remove some")
    return {field.name: _kind_of_type(field.type) for field in schema}


def _kind_of_type(arrow_type) -> str:
    import pyarrow.types as types

    if types.is_dictionary(arrow_type):
        return _kind_of_type(arrow_type.value_type)
    if types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return TEXT
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type) or types.is_binary_view(arrow_type):
        return BYTES
    return str(arrow_type)


def kinds_of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The kind of each column from many rows: text or bytes if all values except nulls are, else their types."""
    types: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            types.setdefault(name, set()).update(() if value is None else (type(value),))
    names = {"str": TEXT, "bytes": BYTES}
    return {
        name: " and ".join(sorted(names.get(kind.__name__, kind.__name__) for kind in seen)) or NULL
        for name, seen in types.items()
    }


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
