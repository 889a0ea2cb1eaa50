"""The page with all features of a member, as a table that can be searched, filtered and sorted, and as a map."""

import numpy as np
import streamlit as st

from analysis.pages.feature_table import ORDERS, choose_features
from analysis.pages.notes import read_notes
from analysis.plots.feature_map import feature_map
from analysis.ui.dashboard.state import chosen, clicked_row, draw, errors_shown, escaped, go, places, the_list

MOST_ROWS = 500
DENSITIES = [0.0, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]

choice = chosen()
st.title("Features")
listed = the_list()
words = st.text_input("Search", placeholder="tokens on which a feature fires, or that it promotes")
density_column, special_column, order_column = st.columns(3)
density = density_column.select_slider("Density", DENSITIES, (0.0, 1.0), format_func=lambda share: f"{share:g}")
special = special_column.slider(
    "Specialization, at least",
    -0.1,
    1.0,
    -0.1,
    0.05,
    help="minus that with shuffled labels; 1: fires on one label only",
)
order = order_column.selectbox("Order", list(ORDERS), list(ORDERS).index("most specialized"))
chosen_N = choose_features(listed, words, density, special if special > -0.1 else float("-inf"), order)
with errors_shown():
    notes = read_notes(choice.run.path, choice.member)
if notes and st.toggle("Only features with a star or a note"):
    chosen_N = chosen_N[np.isin(chosen_N, list(notes))]
shown = f", the first {MOST_ROWS} in the table" if len(chosen_N) > MOST_ROWS else ""
st.caption(f"{len(chosen_N):,} of {len(listed.density_F):,} features{shown}. Click a feature to open its page.")
if not len(chosen_N):
    st.info("No feature matches: shorten the search, or widen the filters.")
    st.stop()
if st.segmented_control("View", ["Table", "Map"], default="Table", label_visibility="collapsed") == "Map":
    xy_Fx2, what = places(*choice)
    st.caption(f"Decoder directions: {escaped(what)}")
    texts = {"strongest on": listed.strongest_F, "promotes": listed.promotes_F, "label": listed.label_F}
    chart = feature_map(chosen_N, xy_Fx2, listed.density_F, texts, "picked")
    picked = draw(chart, on_select="rerun", key="map")
    if points := picked["selection"].get("picked"):
        go("feature", feature=points[0]["feature"])
    st.stop()
rows = [
    {
        "feature": feature,
        "★": "★" if feature in notes and notes[feature].star else "",
        "note": notes[feature].text if feature in notes else "",
        "strongest on": listed.strongest_F[feature],
        "promotes": listed.promotes_F[feature],
        "highest rate on": listed.label_F[feature],
        "specialization": float(listed.specialization_F[feature]),
        "density": float(listed.density_F[feature]),
        "max": float(listed.maximum_F[feature]),
        "most frequent token": listed.token_F[feature],
        "its share": float(listed.token_share_F[feature]),
    }
    for feature in chosen_N[:MOST_ROWS].tolist()
]
st.caption(
    "Its share: of the firings on the most frequent token. Highest rate on: the label with the largest share of rows "
    "on which the feature fires. A rare label can have the highest rate without most of the firings."
)
FORMATS = {"density": "%.4f", "max": "%.2f", "its share": "percent", "specialization": "%.2f"}
rows = [row if notes else {name: value for name, value in row.items() if name not in ("★", "note")} for row in rows]
narrow = {name: st.column_config.TextColumn(width=150) for name in ("strongest on", "promotes", "highest rate on")}
if row := clicked_row(rows, "features", FORMATS, **narrow):
    go("feature", feature=row["feature"])
