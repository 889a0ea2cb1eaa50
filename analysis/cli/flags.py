"""Flags from dataclasses: each field `name` becomes a flag --name, with the field's default and help text."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from analysis.cli.completion import complete, completer_of
from analysis.training import keep_compiled
from analysis.ui.terminal.wording import pasted, program
from harvest.errors import InputError
from harvest.files import refuse_as_target
from harvest.flags import Flags, flag, named, nearest, translated

T = TypeVar("T", bound=Flags)

MEMBER = "the member, by its id, a part of it or `best`; needed if the run has several"


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that shows a flag with several values as `--layer INT ...`, because the default repeats long choices."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+":
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises InputError instead of printing its usage, and accepts no abbreviated flags."""

    def __init__(self, command: str, description: str | None):
        super().__init__(
            prog=f"{program()} {command}",
            description=pasted(description or ""),
            formatter_class=Help,
            allow_abbrev=False,
        )

    def parse_args(self, args: list[str], namespace=None):  # type: ignore[override]
        complete(self)
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(next((word for word in unknown if word.startswith("--")), unknown[0]), args)
        return values

    def refuse(self, word: str, args: list[str]) -> NoReturn:
        """Raise InputError for a word of `args` that is not understood."""
        place = args.index(word)
        if word.startswith("--"):
            name, _, value = word.partition("=")
            ours = translated(name, value or " ".join(args[place + 1 : place + 2]))
            known = ours.split(" ")[0] in self._option_string_actions
            meant = f": did you mean {ours}?" if known else nearest(name, self._option_string_actions)
            self.error(f"{name}: there is no such flag{meant}")
        if ours := translated(args[place - 1], word):
            self.error(f"{args[place - 1]} takes no value: did you mean {ours}?")
        if args[place - 1] == "--resume" and (Path(word) / "config.json").exists():
            self.error(f"--resume takes no value: `show {word}` prints the command that continues this run")
        self.error(f"{word}: one word too many: leave it out, or put a text of several words in quotes")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string.strip():
            fix = "leave the flag out, or give a value" if action.option_strings else "give a value"
            raise argparse.ArgumentError(action, f"an empty text, perhaps from a shell variable that is not set: {fix}")
        if getattr(action, "split_by_spaces", False) and "," in arg_string:
            raise argparse.ArgumentError(action, f"{arg_string}: separate several values by spaces")
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")

    def add_flags(self, cls: type[Flags], title: str | None = None) -> None:
        """Add the fields of a dataclass as flags, and those that `place` declares as positional arguments."""
        group, hints = self.add_argument_group(title) if title else self, get_type_hints(cls)
        for field in fields(cls):
            add_flag(group, field, hints[field.name])


def place(metavar: str, help: str, default: Any = MISSING) -> Any:
    """A dataclass field that is a positional argument on the command line, which may be left out with a default."""
    return flag(default, help, place=metavar)


def parsed(command: str, description: str | None, argv: list[str], *classes: type[Flags]) -> dict[str, Any]:
    """The values that a command was given for the fields of these dataclasses, for `filled`."""
    parser = Parser(command, description)
    for cls in classes:
        parser.add_flags(cls)
    values = vars(parser.parse_args(argv))
    if "cache_dir" in values:
        keep_compiled(values["cache_dir"])
    return values


def filled(cls: type[T], values: dict[str, Any]) -> T:
    """The dataclass with its fields filled from the parsed values; lists become tuples.

    Raises InputError if a file that the command will write at its end cannot be written.
    """
    chosen = {field.name: values[field.name] for field in fields(cls)}
    for field in fields(cls):
        if field.metadata.get("written") and chosen[field.name]:  # checked before the command's long work
            refuse_as_target(chosen[field.name])
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def add_flag(group: Any, field: Field, hint: Any) -> None:
    name, default, help = named(field.name), field.default, field.metadata["help"]
    if default not in (None, (), MISSING):
        help = f"{help} (default: {shown(default)})"
    kind = next((k for k in (int, float, Path) if k is hint or k in get_args(hint)), str)
    parse = whole_number if kind is int else kind
    several = "+" if get_origin(hint) is tuple else None
    if metavar := field.metadata.get("place"):
        often = several if default is MISSING else "?"
        group.add_argument(field.name, type=parse, nargs=often, default=default, metavar=metavar, help=help)
        return
    if hint is bool:
        group.add_argument(name, dest=field.name, action="store_true", default=default, help=help)
        if default:
            off = name.replace("--", "--no-")
            group.add_argument(off, dest=field.name, action="store_false", help=f"turn {name} off")
        return
    choices = field.metadata.get("choices", ())
    metavar = "|".join(choices) or kind.__name__.upper()
    action = group.add_argument(name, type=parse, nargs=several, default=default, metavar=metavar, help=help)
    action.completer = completer_of(field.name, choices)
    action.split_by_spaces = several and (choices or kind is not str)  # no such value has a comma of its own
    for short, value in field.metadata.get("shorthands", {}).items():
        one = (value,) if several else value
        group.add_argument(
            short, dest=field.name, action="store_const", const=one, default=default, help=f"same as {name} {value}"
        )


def whole_number(text: str) -> int:
    """The number that a text such as 300, 1e6, 10k, 1.5M or 2B stands for."""
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower())
    try:
        number = Fraction(text[:-1]) * factor if factor else Fraction(text)
    except ValueError:
        number = None
    if number is None or number.denominator > 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number")
    return number.numerator


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return " ".join(map(shown, default))
    return f"{default:g}" if isinstance(default, float) else str(default)
