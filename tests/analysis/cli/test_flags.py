"""Every flag for a number has a range, on the command line and in Python."""

import re
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import main
from harvest.errors import InputError
from harvest.flags import Flags, named

for command in ("train", *main.COMMANDS):
    import_module(f"analysis.cli.{command.replace('-', '_')}")

TOO_LARGE = {int: 2**31, float: float("inf")}  # for every flag of this type
NUMBERS = [
    pytest.param(options, flag.name, kind, isinstance(flag.default, tuple), id=f"{options.__module__} {flag.name}")
    for options in Flags.__subclasses__()
    for flag in fields(options)
    for kind in TOO_LARGE
    if kind in (hint := get_type_hints(options)[flag.name], *get_args(hint))
]


@pytest.mark.parametrize("options, name, kind, several", NUMBERS)
def test_every_number_has_a_range(options, name, kind, several):
    places = {flag.name: Path("run") for flag in fields(options) if flag.default is MISSING}
    with pytest.raises(InputError, match=f"^{named(name)} {re.escape(str(TOO_LARGE[kind]))}: must be "):
        options(**places, **{name: (TOO_LARGE[kind],) if several else TOO_LARGE[kind]})


REFUSED = [
    ("evaluate RUN --ce-windows -3", "--ce-windows -3: must be a whole number, 0 to 2147483647"),
    ("evaluate RUN --held-out 7", "--held-out 7.0: must be a share over 0 and at most 1"),
    ("evaluate RUN --hook foo", "--hook foo: must be one of resid_pre, "),
    ("evaluate RUN --n-samples -1", "--n-samples -1: must be a whole number, at least 2"),
    ("saebench RUN --seed -1", "--seed -1: must be a whole number, 0 to"),
    ("saebench RUN --k 1 1", "--k 1 1: give at least one value, and none twice"),
    ("study RUN --documents -5", "--documents -5: must be a whole number, 1 or more"),
    ("attribute RUN --steps 0", "--steps 0: must be a whole number, 1 or more"),
    ("dashboard RUN --port 65536", "--port 65536: must be a whole number, 1 to 65535"),
    ("find-feature RUN PHRASE --fdr 1", "--fdr 1.0: must be between 0 and 1"),
    ("steer RUN --feature 1 --top-p 0", "--top-p 0.0: must be a share over 0"),
]


@pytest.mark.parametrize("argv, message", REFUSED, ids=[argv for argv, _ in REFUSED])
def test_flags_are_checked_before_a_run_is_opened(argv, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        main.main(argv.split())
