"""Data sets for tests: records as lines of JSON and as a table."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def lines(path: Path, *records: dict) -> str:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(path)


def table(path: Path, *records: dict) -> str:
    pq.write_table(pa.Table.from_pylist(list(records)), path.with_suffix(".parquet"))
    return str(path.with_suffix(".parquet"))
