"""Numbers, ids and settings of a run as text for people."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import Any

# Control characters except the line feed, marks that change the writing direction, and unpaired surrogates.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with every character replaced that a terminal would obey instead of showing."""
    return CONTROL.sub("\ufffd", text)


def folded(text: str, columns: int) -> str:
    """The text in lines of at most so many columns, broken between words only, so that a path can be copied.

    A command, in backticks or up to the end of its line, is one word, so that it can be pasted.
    """
    command = re.compile(rf"`[^`]*`|{re.escape(program())} .*")
    one_word = command.sub(lambda found: found[0].replace(" ", "\0"), text)
    lines = (fill(line, columns, break_long_words=False, break_on_hyphens=False) for line in one_word.splitlines())
    return "\n".join(lines).replace("\0", " ")


def number_cells(metrics: dict[str, float]) -> list[str]:
    """The loss (the mean squared error), explained variance, L0 and dead fraction as text."""
    loss, variance, l0, dead = (
        math.nan if (value := metrics.get(name)) is None else float(value)
        for name in ("mse", "explained_variance", "l0", "dead_fraction")
    )
    loss_text = f"{loss:.4g}" if abs(loss) >= 1e4 or 0 < abs(loss) < 1e-3 else f"{loss:#.4g}".rstrip(".")
    variance_text = f"{variance:.3f}" if abs(variance) < 100 else f"{variance:.2g}"
    return [loss_text, variance_text, f"{l0:.1f}", percent_text(dead, digits=1)]


def ranges_text(members: list[dict[str, float]]) -> str:
    names = {"mse": ("loss", "{:.4g}"), "explained_variance": ("EV", "{:.3f}"), "l0": ("L0", "{:.1f}")}
    parts = []
    for name, (label, number) in names.items():
        finite = [m[name] for m in members if math.isfinite(m.get(name, math.nan))]
        if finite:
            parts.append(f"{label} {number.format(min(finite))} to {number.format(max(finite))}")
    return "  ".join(parts)


def percent_done(share: float) -> str:
    """The share in percent, rounded down so that 100% means done."""
    return f"{math.floor(100 * share)}%"


def percent_text(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else "nan"


def signed(value: float, digits: int) -> str:
    """The value with its sign, or without one if it is rounded to 0."""
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def share_text(value: float | None, interval: list | None = None) -> str:
    """A share with three digits, and its interval in parentheses; a dash if the share is None."""
    if value is None:
        return "-"
    if interval is None or None in interval:
        return f"{value:.3f}"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def rate_text(rate: float, unit: str) -> str:
    """A rate with its unit, such as members/s, or nothing if it is not known yet. A rate below 1 is a time for each."""
    if not math.isfinite(rate) or not rate:
        return ""
    if rate < 0.95:
        return f"{duration_text(1 / rate)} for each"
    return f"{rate:,.0f} {unit}" if rate >= 10 else f"{rate:.1f} {unit}"


def counted(number: int, what: str) -> str:
    """The number with its noun, in the singular for 1."""
    if number == 1:
        return f"{number:,} {what}"
    return f"{number:,} {what.removesuffix('y')}ies" if what.endswith("ary") else f"{number:,} {what}s"


def basis_text(rows: int, measured_on: dict[str, int], loss_recovered: dict[str, int] | None, calibrated: bool) -> str:
    """On how many held-out rows, windows and documents the numbers of a table rest.

    `calibrated` says that other held-out rows calibrated thresholds, so that fewer are measured than were harvested.
    """
    windows, documents = (counted(measured_on[name], name.removesuffix("s")) for name in ("windows", "documents"))
    of_windows = f" of {windows}" if measured_on["windows"] != rows else ""  # imported rows may be windows of one row
    from_documents = f" from {documents}" if measured_on["documents"] != rows else ""
    text = f"measured on {counted(rows, 'row')}{of_windows}{from_documents}"
    text += f", without the held-out {'windows' if of_windows else 'rows'} set aside for thresholds" * calibrated
    if loss_recovered and loss_recovered.get("windows"):
        windows, documents = (
            counted(loss_recovered[name], name.removesuffix("s")) for name in ("windows", "documents")
        )
        text += f"; CE recovered on {windows} from {documents}"
    return text


def duration_text(seconds: float) -> str:
    """A duration in its two largest units: "42 h 05 min", "10 min 05 s" or "7 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def left_text(share: float, seconds: float) -> str:
    if share >= 1:
        return "done"
    return f"{duration_text(seconds)} left" if math.isfinite(seconds) else ""


def head_line(phase: str, share: float, left: str, counts: list[str]) -> str:
    return "  ".join(filter(None, [phase, counts[0], percent_done(share), *counts[1:], left]))


def member_name(member: dict[str, Any]) -> str:
    """The member's id, preceded by its activation function if the id does not contain it."""
    member_id, activation = str(member["id"]), str(member["activation"])
    return member_id if activation in member_id else f"{activation} {member_id}"


def results_cells(members: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, a row for each member) of the table of results, from the members of results.json."""
    from sae_jax.members import Member  # here, so that the live view of a training loads nothing for it

    header, rows = ["member", "loss (mse)", "sparsity", "expl. var.", "train", "L0 (target)", "dead"], []
    measured = any("ce_recovered" in (member.get("metrics") or {}) for member in members)
    header += ["CE rec."] if measured else []
    for member in members:
        asked = Member.from_results(member).l0_asked
        metrics = member.get("metrics") or {}
        loss, variance, l0, dead = number_cells(metrics)
        loss = "failed" if member.get("failed") else loss
        sparsity = percent_text(metrics.get("sparsity", math.nan), digits=2)
        train = share_text(metrics.get("explained_variance_train"))
        rows.append([member_name(member), loss, sparsity, variance, train, f"{l0} ({asked:g})" if asked else l0, dead])
        rows[-1] += [share_text(metrics.get("ce_recovered"))] if measured else []
    return header, rows


def failure_text(member: dict[str, Any]) -> str:
    return f"stopped at step {member['failed']['step']:,}: {member['failed']['reason']}"


def sites_text(members: list[dict[str, Any]]) -> str:
    """The layers and hooks that members read."""
    return ", ".join(dict.fromkeys(place_text(member["hook"], member["layer"]) for member in members))


def place_text(hook: str, layer: int) -> str:
    """A hook of a layer, as in "head 3 of z of layer 2"."""
    from harvest.request import IMPORTED, IMPORTED_ROWS, OUTER, Site  # imported here, because it needs numpy

    if hook == IMPORTED:
        return IMPORTED_ROWS
    site = Site(layer, hook)
    head = "" if site.head is None else f"head {site.head} of "
    return hook if hook in OUTER else f"{head}{site.heads} of layer {layer}"


def source_text(source: dict[str, Any]) -> str:
    """The model or the text of a run."""
    return f"{source['name']} (fallback: the hub cannot be reached)" if source["fell_back"] else str(source["name"])


def times_text(timing: dict[str, float | None]) -> str:
    """The time that each phase of a run took."""
    rate = rate_text(timing.get("rows_per_second") or math.nan, "rows/s")
    training = f" ({rate} with compiling{waits_text(timing)})" if rate else ""
    phases = {"harvest": "harvest", "training": "training", "evaluation": "export and evaluation"}
    return ", ".join(
        f"{words} {duration_text(seconds)}" + (training if phase == "training" else "")
        for phase, words in (phases | {"loss_recovered": "loss recovered"}).items()
        if (seconds := timing.get(f"{phase}_seconds"))
    )


def waits_text(timing: dict[str, float | None]) -> str:
    """Text on the shares of time in which training and language model waited for each other; "" without a stream."""
    if (producer_wait := timing.get("producer_wait")) is None:
        return ""
    data_wait = percent_done(timing.get("data_wait") or 0.0)
    return f"; it waited {data_wait} of the time for rows, the language model {percent_done(producer_wait)} for it"


def program() -> str:
    """The words with which the user has started the program."""
    script = Path(sys.argv[0])
    if script.name == "main.py":
        return f"python {quote(sys.argv[0])}"
    if script.name == "__main__.py" and script.parent.name == "sae_jax":
        return "python -m sae_jax"
    return "sae-jax" if script.name == "sae-jax" else "python main.py"


def pasted(text: str) -> str:
    """The text with its commands as this user can paste them into the shell."""
    return text.replace("python main.py", program())
