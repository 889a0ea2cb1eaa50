"""The page that shows which features fire on a typed text."""

import numpy as np
import streamlit as st

from analysis.pages.typed_text import ranked
from analysis.ui.dashboard import state
from analysis.ui.dashboard.state import chosen, errors_shown, escaped, go
from analysis.ui.dashboard.token_html import coloured, passage

MOST_ROWS = 100

choice = chosen()


st.title("Type text")
text = st.text_area("Text", key="typed", placeholder="The ships lay in the harbour, and the sea was calm.")
st.button("Read it", type="primary")
if not text.strip():
    st.caption("Each token is coloured by one feature. The table below has all features that fire, strongest first.")
    st.stop()
with errors_shown(), st.spinner("reading the text"):
    typed = state.read(*choice, text)
listed = state.the_list()
position = st.pills(
    "Click a token for the features that fire at it",
    range(len(typed.tokens)),
    format_func=lambda number: escaped(repr(typed.tokens[number])[1:-1]),
    key=f"token of {text}",
)
firing = ranked(typed, position)
if not firing:
    st.info("No feature fires there. No feature ever fires at the first token if training left that position out.")
    st.stop()
promotes = {feature: listed.promotes_F[feature] for feature, *_ in firing[:MOST_ROWS]}
shown = st.selectbox("Colour by feature", list(promotes), format_func=lambda feature: f"{feature}: {promotes[feature]}")
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
many = f"; the first {MOST_ROWS}" if len(firing) > MOST_ROWS else ""
st.caption(f"{len(firing):,} features fire{many}. Click one to open its page.")
if row := state.clicked_row(rows, f"firing {position} of {text}"):
    go("feature", feature=row["feature"])
