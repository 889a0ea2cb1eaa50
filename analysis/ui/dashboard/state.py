"""What the pages share: the run and member that the address names, read once and kept while the server runs.

Statistics are mapped, not read; a dictionary and the language model are read when a page needs them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from string import punctuation
from typing import Any, NamedTuple

import streamlit as st

from analysis.comparison import shared_features as comparison
from analysis.features.statistics import Features, load_or_compute_features
from analysis.pages import feature_table as feature_list
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.wording import visible
from harvest.errors import InputError

DICTIONARIES = 4  # kept in memory: one of 16,384 features has 100 MB and more


class Chosen(NamedTuple):
    """By what the caches hash: the run's path, and the member's id."""

    path: str
    member: str

    @property
    def run(self) -> FinishedRun:
        return run_at(self.path)


def arguments() -> tuple[dict[str, str], Path]:
    """({name of a run: its path}, the cache directory): as the launcher gives them."""
    cache_dir, *paths = sys.argv[1:]
    names = [Path(path).resolve().name for path in paths]
    return {name if names.count(name) == 1 else path: path for name, path in zip(names, paths, strict=True)}, Path(
        cache_dir
    )


def follow(name: str, options: list[str], container: Any) -> str:
    """A choice that the address keeps, too: a link to it opens the same."""
    asked = st.query_params.get(name)
    if asked is not None and asked not in options:
        container.error(plain(f"{asked}: there is no such {name}; shown is {options[0]}"))
        asked = options[0]
    if asked or st.session_state.get(name) not in options:
        st.session_state[name] = asked or options[0]

    def changed() -> None:
        st.query_params[name] = st.session_state[name]

    value = container.selectbox(name, options, key=name, on_change=changed)
    st.query_params[name] = value
    return value


def chosen() -> Chosen:
    """The run and the member of this page, as app.py has let the user choose."""
    return st.session_state["chosen"]


def go(page: str, **query: object) -> None:
    """To another page, whose address says what is shown there."""
    at = chosen()
    names = {path: name for name, path in arguments()[0].items()}
    asked = {"run": names[at.path], "member": at.member} | query
    st.switch_page(f"screens/{page}.py", query_params={name: str(value) for name, value in asked.items()})


@contextmanager
def errors_shown():
    """What the user can mend is said on the page; a defect still shows its traceback."""
    try:
        yield
    except InputError as error:
        st.error(plain(without_flags(str(error))))
        st.stop()


def without_flags(text: str) -> str:
    """As it is said where nothing is typed: `(--flag ...)`, how to do it on the command line, is left out."""
    return re.sub(r" \(--[^)]*\)", "", text)


def plain(text: str) -> str:
    """Text for Streamlit's Markdown, which shows it as it stands: all that is not of this program's words."""
    return "".join(f"\\{c}" if c in punctuation else c for c in visible(text))


def fitted(figure: Any) -> Any:
    """A figure as Streamlit takes it: with a padding for each side."""
    return figure.properties(padding=dict.fromkeys(("left", "right", "top", "bottom"), 12))


@st.cache_resource(show_spinner=False)
def run_at(path: str) -> FinishedRun:
    return FinishedRun.open(Path(path))


@st.cache_resource(show_spinner=False)
def saved_features(path: str, member: str, changed: float) -> Features | None:
    return Features.load(features_path(path, member), mapped=True)


def features_path(path: str, member: str) -> Path:
    return Path(path) / "analysis" / "features" / f"{member}.npz"


def features() -> Features:
    """Of the chosen member; where the run has none yet, the page offers to compute them, and ends there."""
    at = chosen()
    file = features_path(*at)
    found = saved_features(*at, file.stat().st_mtime) if file.exists() else None
    if found is None:
        st.info("What this member's features do is not computed yet: one pass over the activations, some minutes.")
        if st.button("Compute it now"):
            bar = st.progress(0.0, "reading")
            with errors_shown():
                load_or_compute_features(at.run, [at.member], arguments()[1], shown_in(bar))
            st.rerun()
        st.stop()
    return found


def choose_asked_feature(last: int) -> None:
    """The feature that the address names becomes the one that is chosen; where it names none, the one looked at last.

    An error is shown if the member has no such feature.
    """
    seen = min(st.session_state.get("seen", 0), last)
    asked = st.query_params.get("feature", str(seen))
    if asked.isdecimal() and len(asked) <= len(str(last)) and int(asked) <= last:
        st.session_state["feature"] = int(asked)
    else:
        st.error(plain(f"feature {asked}: {chosen().member} has 0 to {last}"))


def see(feature: int) -> None:
    """The address names it, and other pages begin with it."""
    st.session_state["seen"] = feature
    st.query_params["feature"] = str(feature)


def clicked_row(rows: list[dict], key: str, formats: Mapping[str, str] | None = None, **columns: Any) -> dict | None:
    """Show the rows as a table and return the one that was clicked; `formats` are those of columns of numbers."""
    columns |= {name: st.column_config.NumberColumn(format=form) for name, form in (formats or {}).items()}
    table = st.dataframe(
        rows, hide_index=True, on_select="rerun", selection_mode="single-cell", key=key, column_config=columns
    )
    cells = table["selection"]["cells"]
    return rows[cells[0][0]] if cells else None


def shown_in(bar: Any):
    """A callback of progress that moves Streamlit's bar."""
    return lambda phase, done, total: bar.progress(min(1.0, done / max(1, total)), phase)


@st.cache_resource(show_spinner=False)
def tokenizer_at(location: str):
    from harvest.model.tokenizer import load_tokenizer

    return load_tokenizer(location)


def tokenizer():
    return tokenizer_at(chosen().run.model_location)


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES)
def dictionary(path: str, member: str):
    return run_at(path).dictionary(member)


@st.cache_resource(show_spinner=False)
def store(path: str, member: str):
    run = run_at(path)
    return run.store(run.site(member), arguments()[1])


def compared(path: str) -> comparison.Comparison | None:
    """The study's comparison of all members, or None as long as there is none."""
    record = Path(path) / "analysis" / "comparison.json"
    return read_comparison(path, record.stat().st_mtime) if record.exists() else None


@st.cache_resource(show_spinner=False)
def read_comparison(path: str, changed: float) -> comparison.Comparison | None:
    return comparison.read_shared_features(Path(path) / "analysis", list(run_at(path).members))


@st.cache_resource(show_spinner=False)
def listed(path: str, member: str, changed: float) -> feature_list.FeatureList:
    found = saved_features(path, member, changed)
    assert found is not None
    return feature_list.compute_feature_table(found, tokenizer_at(run_at(path).model_location))


def the_list() -> feature_list.FeatureList:
    """Of the chosen member; ends the page where `features` does."""
    features()
    at = chosen()
    return listed(*at, features_path(*at).stat().st_mtime)


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES)
def places(path: str, member: str):
    return feature_list.places(Path(path) / "analysis", member, dictionary(path, member).tensors["W_dec"])
