"""Which column of a table is the text, and its values as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harvest.errors import InputError

TEXT, BYTES, NULL = "text", "bytes", "null"  # the last: nothing but missing values


def text_column(location: str, kinds: Mapping[str, str]) -> str:
    """The column named text, or else the only one that holds text, of {column: kind}. Raises InputError otherwise.

    Bytes are text in a column named text, and in a lone column. A column text of nulls alone holds empty texts.
    """
    if "text" in kinds and kinds["text"] not in (TEXT, BYTES, NULL):
        raise InputError(
            f"--dataset {location}: its column text holds no text but {kinds['text']}; the columns are "
            f"{', '.join(kinds)}: rename the one that is meant to text"
        )
    texts = [name for name, kind in kinds.items() if kind == TEXT or (kind == BYTES and len(kinds) == 1)]
    if "text" not in kinds and len(texts) != 1:
        raise InputError(
            f"--dataset {location}: which column is the text? None is named text, and {len(texts)} hold strings; "
            f"the columns are {', '.join(kinds)}: rename the one that is meant to text"
        )
    return "text" if "text" in kinds else texts[0]


def kinds_of_schema(location: str, schema) -> dict[str, str]:
    """The kind of each column of an Arrow schema: text, bytes, or Arrow's own name of it. Each name occurs once."""
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
    """The kind of each column, from many rows: text or bytes where all values but nulls are, else the types seen."""
    types: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            types.setdefault(name, set()).update(() if value is None else (type(value),))
    names = {"str": TEXT, "bytes": BYTES}
    return {
        name: " and ".join(sorted(names.get(of.__name__, of.__name__) for of in seen)) or NULL
        for name, seen in types.items()
    }


def text_in(value: object, column: str, place: str) -> str:
    """A value as text: null is an empty one, bytes are UTF-8. Raises InputError, which names the place, for another."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InputError(
            f"--dataset {place}: there is no text under {column!r} but a value of type {type(value).__name__}"
        )
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--dataset {place}: not UTF-8 (byte {error.object[error.start]:#04x})") from error
