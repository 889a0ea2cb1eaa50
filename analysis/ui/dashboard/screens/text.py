"""The page that shows which features fire on a typed text."""

import numpy as np
import streamlit as st

from analysis.pages.typed_text import TypedText, ranked, read_text
from analysis.ui.dashboard import state
from analysis.ui.dashboard.state import chosen, errors_shown, go
from analysis.ui.dashboard.token_html import coloured, passage

MOST_ROWS = 100
ANYWHERE = "anywhere"

choice = chosen()


@st.cache_data(show_spinner=False, max_entries=32)
def read(path: str, member: str, text: str) -> TypedText:
    return read_text(state.run_at(path), member, text)


st.title("Type text")
text = st.text_area("Text", key="typed", placeholder="The ships lay in the harbour, and the sea was calm.")
st.button("Read it", type="primary")
if not text.strip():
    st.caption("Each token is coloured by one feature. The table below has all features that fire, strongest first.")
    st.stop()
with errors_shown(), st.spinner("reading the text"):
    typed = read(*choice, text)
listed = state.the_list()
token_names = [ANYWHERE, *(f"{number}: {token!r}" for number, token in enumerate(typed.tokens))]
where = st.selectbox("Which features fire", token_names, help="anywhere in the text, or at one token")
position = None if where == ANYWHERE else token_names.index(where) - 1
firing = ranked(typed, position)
if not firing:
    st.info("No feature fires there. No feature ever fires at the first token if training left that position out.")
    st.stop()
promotes = {feature: listed.promotes_F[feature] for feature, *_ in firing[:MOST_ROWS]}
shown = st.selectbox("Colour by feature", list(promotes), format_func=lambda feature: f"{feature}: {promotes[feature]}")
values_T = np.asarray(typed.values_TxF[:, [shown]].toarray()).ravel()
st.html(passage(coloured(typed.tokens, values_T.tolist(), float(np.abs(values_T).max()), position)))
if st.button(f"Open feature {shown}"):
    go("feature", feature=shown)
rows = [
    {
        "feature": feature,
        "activation": round(value, 3),
        "at": typed.tokens[token],
        "fires on tokens": count,
        "promotes": promotes[feature],
        "density": round(float(listed.density_F[feature]), 4),
    }
    for feature, value, token, count in firing[:MOST_ROWS]
]
st.caption(f"{len(firing):,} features fire" + (f"; the first {MOST_ROWS}" if len(firing) > MOST_ROWS else ""))
st.dataframe(rows, hide_index=True)
