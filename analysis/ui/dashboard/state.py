"""State that the pages share: the chosen run and member, and data that is kept while the server runs.

Statistics are memory maps. Dictionaries and the language model are loaded when a page needs them.
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

from analysis.comparison import shared_features
from analysis.features.statistics import Features, features_path, load_or_compute_features
from analysis.pages import feature_table
from analysis.pages.typed_text import TypedText, read_text
from analysis.plots.theme import bare, words_of
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.wording import visible
from harvest.errors import InputError

ROW, MOST_ROWS = 35, 30  # height in pixels of a row of a table, and rows that are seen without scrolling in it
RIGHT = st.column_config.TextColumn(alignment="right")  # for numbers that are shown as texts
DICTIONARIES = 4  # dictionaries to keep in memory, at most: one with 16,384 features takes over 100 MB


class Chosen(NamedTuple):
    """The chosen run and member, as the path and the id that the caches are keyed by."""

    path: str
    member: str

    @property
    def run(self) -> FinishedRun:
        return run_at(self.path)

    @property
    def features_file(self) -> Path:
        return features_path(Path(self.path), self.member)


def arguments() -> tuple[dict[str, str], Path, str]:
    """({name of a run: its path}, the cache directory, --device), as `main.py dashboard` passes them on.

    A run whose name is not unique is named by its path.
    """
    cache_dir, device, *paths = sys.argv[1:]
    names = [Path(path).resolve().name for path in paths]
    named = {name if names.count(name) == 1 else path: path for name, path in zip(names, paths, strict=True)}
    return named, Path(cache_dir), device


def chosen() -> Chosen:
    """The run and the member that the user has chosen in app.py."""
    return st.session_state["chosen"]


@contextmanager
def errors_shown():
    """Show InputErrors as messages on the page. Bugs still show their traceback."""
    try:
        yield
    except InputError as error:
        st.error(escaped(without_flags(str(error))))
        st.stop()


def need_language_model() -> None:
    """End the page with the reason if the chosen run has no language model."""
    with errors_shown():
        chosen().run.need_language_model()


def without_flags(text: str) -> str:
    """The text without hints for the command line, which are in parentheses: `(--flag ...)`."""
    return re.sub(r" \(--[^)]*\)", "", text)


def escaped(text: str) -> str:
    """The text escaped for Streamlit's Markdown. Used for everything that is not written by this program."""
    return "".join(f"\\{c}" if c in punctuation else c for c in visible(text))


def draw(figure: Any, container: Any = st, **options: Any) -> Any:
    """Show a figure of one panel at the width of its container. Returns what was selected in it."""
    spec = figure.to_dict()
    title, subtitle = words_of(spec)
    if title:
        container.markdown(f"**{escaped(title)}**  \n:small[{escaped(subtitle)}]")
    spec = bare(spec) | {"width": "container", "usermeta": {"embedOptions": {"renderer": "svg"}}}
    spec.setdefault("config", {}).setdefault("legend", {}).update(orient="bottom", columns=3)
    return container.vega_lite_chart(spec, theme=None, **options)


@st.cache_resource(show_spinner=False)
def run_at(path: str) -> FinishedRun:
    return FinishedRun.open(Path(path), arguments()[2])


@st.cache_resource(show_spinner=False)
def saved_features(path: str, member: str, changed: float) -> Features | None:
    return Features.load(Chosen(path, member).features_file, mapped=True)


def features() -> Features:
    """The statistics of the chosen member. If there are none yet, the page ends with an offer to compute them."""
    choice = chosen()
    file = choice.features_file
    saved = saved_features(*choice, file.stat().st_mtime) if file.exists() else None
    if saved is None:
        st.info("The statistics of this member's features are not computed yet. This takes up to some minutes.")
        if st.button("Compute it now"):
            bar = st.progress(0.0, "reading")
            with errors_shown():
                load_or_compute_features(choice.run, [choice.member], arguments()[1], shown_in(bar))
            st.rerun()
        st.stop()
    return saved


def clicked_row(rows: list[dict], key: str, formats: Mapping[str, str] | None = None, **columns: Any) -> dict | None:
    """Show rows as a table and return the row that was clicked, if any. `formats` are for columns of numbers."""
    columns |= {name: st.column_config.NumberColumn(format=form) for name, form in (formats or {}).items()}
    table = st.dataframe(
        rows,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-cell",
        key=key,
        column_config=columns,
        height=ROW * (1 + min(len(rows), MOST_ROWS)) + 2,  # the header, whole rows and the borders
        row_height=ROW,
    )
    cells = table["selection"]["cells"]
    return rows[cells[0][0]] if cells else None


@st.cache_data(show_spinner=False, max_entries=32)
def read(path: str, member: str, text: str) -> TypedText:
    """The activations of a member's features on a typed text."""
    return read_text(run_at(path), member, text)


def shown_in(bar: Any):
    """A progress callback that moves a Streamlit progress bar."""
    return lambda phase, done, total: bar.progress(min(1.0, done / max(1, total)), phase)


@st.cache_resource(show_spinner=False)
def tokenizer(path: str):
    return run_at(path).tokenizer


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES)
def dictionary(path: str, member: str):
    return run_at(path).dictionary(member)


@st.cache_resource(show_spinner=False)
def store(path: str, member: str):
    run = run_at(path)
    return run.store(run.site(member), arguments()[1])


def compared(path: str) -> shared_features.Comparison | None:
    """The study's comparison of all members, or None if the study has not been run."""
    record = Path(path) / "analysis" / "comparison.json"
    return read_comparison(path, record.stat().st_mtime) if record.exists() else None


@st.cache_resource(show_spinner=False)
def read_comparison(path: str, changed: float) -> shared_features.Comparison | None:
    return shared_features.read_shared_features(Path(path) / "analysis", list(run_at(path).members))


@st.cache_resource(show_spinner=False)
def listed(path: str, member: str, changed: float) -> feature_table.FeatureList:
    features = saved_features(path, member, changed)
    assert features is not None
    return feature_table.compute_feature_table(features, tokenizer(path))


def the_list() -> feature_table.FeatureList:
    """The table of the chosen member's features. Like `features`, ends the page if they are not computed yet."""
    features()
    choice = chosen()
    return listed(*choice, choice.features_file.stat().st_mtime)


@st.cache_resource(show_spinner=False, max_entries=DICTIONARIES)
def places(path: str, member: str):
    return feature_table.places(Path(path) / "analysis", member, dictionary(path, member).tensors["W_dec"])
