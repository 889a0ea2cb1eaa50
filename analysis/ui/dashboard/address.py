"""The address of a page: it holds what the page shows, so that a copied link opens the same again.

Most widgets are in the address by Streamlit's means (`**KEPT`), under their key. Here are the others: those whose text
in the address must not be that of their label, and the run, the member and the feature, which pages share.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.runs.finished import FinishedRun
from analysis.ui.dashboard.state import arguments, chosen, escaped
from harvest.errors import InputError

# For widgets that are kept in the address, and keep what was chosen while another page is open.
KEPT: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}


def follow(name: str, options: list[str], container: Any, first: str | None = None) -> str:
    """A select box whose choice is kept in the address, so that a link opens the same choice.

    It starts with `first`, or else with the first of the options.
    """
    first = first or options[0]
    asked = st.query_params.get(name)
    if asked is not None and asked not in options:
        container.error(escaped(f"{asked}: there is no such {name}, so {first} is shown"))
        asked = first
    if asked or st.session_state.get(name) not in options:
        st.session_state[name] = asked or first

    def changed() -> None:
        st.query_params[name] = st.session_state[name]

    value = container.selectbox(name, options, key=name, on_change=changed)
    st.query_params[name] = value
    return value


def complete_member(run: FinishedRun) -> InputError | None:
    """Replace a part of an id in the address by the id that it means. Returns the error if it means none or several.

    That text is taken out of the address. It is no error if the user has just changed from a run that has the member.
    """
    asked = st.query_params.get("member")
    try:
        if asked is not None:
            st.query_params["member"] = run.only(asked)
    except InputError as error:
        del st.query_params["member"]
        earlier = st.session_state.get("chosen")
        return error if earlier is None or Path(earlier.path) == run.path else None
    return None


def go(page: str, **query: object) -> None:
    """Open another page, with the run, the member and `query` in its address."""
    choice = chosen()
    names = {path: name for name, path in arguments()[0].items()}
    asked = {"run": names[choice.path], "member": choice.member} | query
    st.switch_page(f"screens/{page}.py", query_params={name: str(value) for name, value in asked.items()})


def choose_asked_feature(last: int) -> None:
    """Choose the feature in the address, or the last shown one if the address has none.

    Shows an error if the member has no such feature.
    """
    seen = min(st.session_state.get("seen", 0), last)
    asked = st.query_params.get("feature", str(seen))
    if asked.isdecimal() and len(asked) <= len(str(last)) and int(asked) <= last:
        st.session_state["feature"] = int(asked)
    else:
        st.error(escaped(f"feature {asked} does not exist: {chosen().member} has features 0 to {last}"))


def see(feature: int) -> None:
    """Keep a feature in the address, and as the first choice of other pages."""
    st.session_state["seen"] = feature
    st.query_params["feature"] = str(feature)


def start_as_asked(key: str, name: str, options: Iterable[int]) -> None:
    """Let a new widget start with the option that the address holds under `name`, if it is one of the options."""
    asked = next((option for option in options if str(option) == st.query_params.get(name)), None)
    if asked is not None and key not in st.session_state:
        st.session_state[key] = asked


def keep(name: str, value: int | None) -> None:
    """Write a value into the address, or take it out of it if it is None."""
    if value is None:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(value)
