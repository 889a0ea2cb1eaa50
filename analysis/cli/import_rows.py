"""Make a store of rows that another program computed, to train on.

python main.py import-rows images.npy --to image-rows       # one row per image
python main.py --rows image-rows --activation topk          # then train on them
python main.py import-rows acts.npy --tokens tokens.npy --model-name gpt2 --layer 6 --hook resid_pre --to gpt2-rows
python main.py import-rows CACHE --model-name gpt2 --to gpt2-rows   # what SAELens' CacheActivationsRunner wrote

Files are .npy, .safetensors, .parquet, .zarr, or the folder of an Arrow data set. They hold rows × width, or windows ×
positions × width with tokens of windows × positions, and are read piece by piece. The rows of a language model are
compared with what it gives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from analysis.cli.flags import filled, parsed, place
from analysis.cli.output import Output
from analysis.ui.terminal.wording import pasted
from harvest.errors import InputError
from harvest.files import refuse_taken
from harvest.flags import TEXT, Flags, flag
from harvest.imports.importing import ImportSettings, store_of_rows
from harvest.imports.pieces import DOCUMENTS, TOKENS, Arrays, arrays_in
from harvest.request import Site


@dataclass(frozen=True)
class Options(Flags):
    files: tuple[Path, ...] = place("FILE", "files of rows, in their order")
    to: Path | None = flag(None, "a new or empty directory for the store")
    column: str | None = flag(None, "column or array of the files that holds the rows (default: the only one)", TEXT)
    tokens: tuple[Path, ...] = flag((), f"files of the tokens of the rows (default: a column {' or '.join(TOKENS)})")
    documents: tuple[Path, ...] = flag(
        (),
        "files of a number for each row or window: the document, image or protein that it belongs to; all rows of one "
        f"are held out together (default: a column {' or '.join(DOCUMENTS)}, or each row or window is one)",
    )


def run(argv: list[str]) -> None:
    values = parsed("import-rows", __doc__, argv, Options, ImportSettings, Output)
    options, output = filled(Options, values), filled(Output, values)
    if options.to is None:
        raise InputError("--to is missing: give a new or empty directory to write to")
    refuse_taken(options.to)
    with output.terminal() as terminal:
        terminal.begin("opening the files")
        arrays = arrays_in(options.files, options.column, options.tokens, options.documents)
        settings = filled(ImportSettings, values | place_in_model(values, arrays))
        if arrays.tokens and settings.model_name is None:
            if options.tokens:
                raise InputError("--tokens needs the model whose tokens they are: add --model-name, or leave it out")
            terminal.say(f"{arrays.tokens.label} is not used, because --model-name is not given")
        store = store_of_rows(
            arrays.pieces(),
            options.to,
            origin=f"rows of {', '.join(path.name for path in options.files)}",
            on_progress=terminal.progress,
            say=terminal.say,
            total=len(arrays),
            **asdict(settings),
        )
        train, held_out = len(store.train), len(store.held_out)
        where = f"of width {store.d_model} in {store.manifest['dtype']}, in {store.directory}"
        terminal.say(f"{train:,} training rows and {held_out:,} held-out rows {where}")
        terminal.say(pasted(f"next: python main.py --rows {quote(str(options.to))} --activation topk"))
    facts = ("hook_name", "d_model", "dtype", "seq_len", "max_norm", "candidate_rows")
    record = {name: store.manifest[name] for name in facts if name in store.manifest}
    output.write({"store": str(store.directory), "rows": train, "held_out_rows": held_out, **record})


def place_in_model(values: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """The layer and hook after which SAELens has named the column of the rows, unless they are given."""
    site = Site.named(arrays.rows.name)
    if site is None or values["model_name"] is None:
        return {}
    return {name: value for name, value in site._asdict().items() if values[name] is None}
