"""The page that shows which features fire on a typed text."""

import numpy as np
import streamlit as st

from analysis.pages.typed_text import ranked
from analysis.ui.dashboard import state
from analysis.ui.dashboard.address import KEPT, go, keep, start_as_asked
from analysis.ui.dashboard.state import chosen, errors_shown, escaped, need_language_model
from analysis.ui.dashboard.token_html import coloured, passage

MOST_ROWS = 100

choice = chosen()


def forget(*names: str) -> None:
    """Take choices out of the address that belong to the text or the token before."""
    for name in names:
        keep(name, None)


st.title("Type text")
need_language_model()
text = st.text_area(
    "Text",
    key="typed",
    **KEPT,
    on_change=forget,
    args=("token", "colour"),
    placeholder="The ships lay in the harbour, and the sea was calm.",
)
st.button("Read it", type="primary")
if not text.strip():
    st.caption(
        "When a text is read, its tokens are coloured by one feature, and a table has all features that fire, "
        "strongest first."
    )
    st.stop()
with errors_shown(), st.spinner("reading the text"):
    typed = state.read(*choice, text)
listed = state.the_list()
token_key = f"token of {text}"
start_as_asked(token_key, "token", range(len(typed.tokens)))
position = st.pills(
    "Click a token for the features that fire at it",
    range(len(typed.tokens)),
    format_func=lambda number: escaped(repr(typed.tokens[number])[1:-1]),
    key=token_key,
    on_change=forget,
    args=("colour",),
)
keep("token", position)
firing = ranked(typed, position)
if not firing:
    st.info("No feature fires there. No feature ever fires at the first token if training left that position out.")
    st.stop()
promotes = {feature: listed.promotes_F[feature] for feature, *_ in firing[:MOST_ROWS]}
colour_key = f"colour of {position} of {text}"
start_as_asked(colour_key, "colour", promotes)
shown = st.selectbox(
    "Colour by feature", list(promotes), format_func=lambda feature: f"{feature}: {promotes[feature]}", key=colour_key
)
keep("colour", shown)
values_T = np.asarray(typed.values_TxF[:, [shown]].toarray()).ravel()
st.html(passage(coloured(typed.tokens, values_T.tolist(), float(np.abs(values_T).max()), position)))
rows = [
    {
        "feature": feature,
        "activation": round(value, 3),
        "at": typed.tokens[token],
        "fires on tokens": count,
        "strongest on": listed.strongest_F[feature],
        "promotes": promotes[feature],
        "density": round(float(listed.density_F[feature]), 4),
    }
    for feature, value, token, count in firing[:MOST_ROWS]
]
fire = "1 feature fires" if len(firing) == 1 else f"{len(firing):,} features fire"
many = f"; the first {MOST_ROWS}" if len(firing) > MOST_ROWS else ""
st.caption(f"{fire}{many}. Click one to open its page.")
narrow = {name: st.column_config.TextColumn(width=170) for name in ("strongest on", "promotes")}
if row := state.clicked_row(rows, f"firing {position} of {text}", None, **narrow):
    go("feature", feature=row["feature"])
