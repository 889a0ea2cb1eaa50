"""Commands name the member that they use if the user did not type its whole id."""

from __future__ import annotations

from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.live import Terminal


def say_found(run: FinishedRun, member: str | tuple[str, ...] | None, terminal: Terminal) -> None:
    """Print the id that `best` or a part of an id means, for the value or the values of --member."""
    for text in (member,) if isinstance(member, str) else member or ():
        if (found := run.only(text)) != text:
            terminal.say(f"--member {text}: {found}")
