"""Every flag for a number has a range, on the command line and in Python."""

import re
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import main
from analysis.cli import train
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
    value = TOO_LARGE[kind] if name != "tokens" else 2**63  # a budget of tokens may be larger than a number of windows
    with pytest.raises(InputError, match=f"^{named(name)} {re.escape(str(value))}: must be "):
        options(**places, **{name: (value,) if several else value})


@pytest.mark.parametrize(
    "text, number", [("300", 300), ("10k", 10_000), ("2.3B", 2_300_000_000), ("1.5m", 1_500_000), ("1e4", 10_000)]
)
def test_whole_numbers_may_be_written_with_a_letter(text, number):
    assert train.parse(["--tokens", text, "--seq-len", "30"])[0].n_samples == number // 30
    if number <= 10_000:
        assert train.parse(["--n-samples", text])[0].n_samples == number


@pytest.mark.parametrize("text", ["1.5", "k", "1.0005k", "ten", "1e-6"])
def test_other_texts_are_no_whole_number(text):
    with pytest.raises(InputError, match=f"argument --n-samples: .*{text}"):
        train.parse(["--n-samples", text])


def test_tokens_and_windows_are_not_both_given():
    with pytest.raises(InputError, match="--tokens and --n-samples both say how much text is read"):
        train.parse(["--tokens", "1M", "--n-samples", "300"])
    assert train.parse(["--preset", "frontier", "--tokens", "640k"])[0].n_samples < 10_000


REFUSED = [
    ("evaluate RUN --ce-windows -3", "--ce-windows -3: must be a whole number, 0 to 2147483647"),
    ("evaluate RUN --held-out 7", "--held-out 7.0: must be a share over 0 and at most 1"),
    ("evaluate RUN --hook foo", "--hook foo: must be one of resid_pre, "),
    ("evaluate RUN --n-samples -1", "--n-samples -1: must be a whole number, at least 2"),
    ("saebench RUN --seed -1", "--seed -1: must be a whole number, 0 to"),
    ("saebench RUN --k 1 1", "--k 1 1: give at least one value, and none twice"),
    ("study RUN --documents -5", "--documents -5: must be a whole number, 800 or more"),
    ("attribute RUN --steps 0", "--steps 0: must be a whole number, 1 or more"),
    ("dashboard RUN --port 65536", "--port 65536: must be a whole number, 1 to 65535"),
    ("find-feature RUN PHRASE --fdr 1", "--fdr 1.0: must be between 0 and 1"),
    ("steer RUN --feature 1 --top-p 0", "--top-p 0.0: must be a share over 0"),
    ("--seed 0,1,2", "argument --seed: 0,1,2: separate several values by spaces"),
    ("--activation relu,topk", "argument --activation: relu,topk: separate several values by spaces"),
    ("find-feature RUN the sea", "sea: one word too many: leave it out, or put a text of several words in quotes"),
]


@pytest.mark.parametrize("argv, message", REFUSED, ids=[argv for argv, _ in REFUSED])
def test_flags_are_checked_before_a_run_is_opened(argv, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        main.main(argv.split())


def test_an_empty_text_can_be_left_out_only_if_it_is_a_flags():
    with pytest.raises(InputError, match="argument PHRASE: an empty text, .* is not set: give a value"):
        main.main(["find-feature", "RUN", ""])
    with pytest.raises(InputError, match="argument --dataset: an empty text, .*: leave the flag out, or give a value"):
        main.main(["--dataset", ""])


@pytest.mark.parametrize(
    "other, ours",
    {
        "--activation jumprelu": "jump_relu",
        "--activation standard": "relu",
        "--activation top_k": "topk",
        "--activation batchtopk": "batch_topk",
        "--activation matryoshka_batchtopk": "matryoshka",
        "--normalize-activations expected_average_only_in": "--normalization mean_norm",
        "--hook blocks.2.hook_resid_pre": "--hook-name blocks.2.hook_resid_pre",
        "--hook blocks.2.attn.hook_z": "--hook-name blocks.2.attn.hook_z",
    }.items(),
)
def test_values_of_saelens_are_answered_with_ours(other, ours):
    with pytest.raises(InputError, match=f": did you mean {ours}\\?"):
        main.main(other.split())
