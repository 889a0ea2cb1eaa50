"""The page with all features of a member, as a table that can be searched, filtered and sorted, and as a map."""

import numpy as np
import streamlit as st

from analysis.pages.feature_table import ORDERS, choose_features, found_tokens
from analysis.pages.notes import read_notes
from analysis.plots.feature_map import feature_map
from analysis.ui.dashboard.address import KEPT, go
from analysis.ui.dashboard.state import chosen, clicked_row, draw, errors_shown, escaped, places, the_list

MOST_ROWS = 500
# In pixels. Together with the density, they fit beside the menu on a screen of 1280 pixels.
WIDTHS = {
    "feature": 65,
    "note": 100,
    "found": 100,
    "strongest on": 145,
    "promotes": 210,
    "specialized on": 195,
    "one token": 85,
}
EXPLAINED = {
    "found": "Found: the tokens, of the 20 that it promotes most and those on which it fires, that match the search.",
    "specialized on": "Specialized on: the specialization, and the label with the largest share of rows on which the "
    "feature fires. A rare label can have the largest share without most of the firings.",
    "one token": "One token: the share of the firings that are on the most frequent token.",
    "density": "Density: the share of all rows, training and held-out, on which it fires.",
}
DENSITIES = [0.0, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]

choice = chosen()
has_tokens = choice.run.has_language_model
st.title("Features")
listed = the_list()
words = st.text_input(
    "Search", placeholder="tokens on which a feature fires, or that it promotes", key="search", **KEPT
)
density_column, special_column, order_column = st.columns(3)
density = density_column.select_slider(
    "Density", DENSITIES, (0.0, 1.0), format_func=lambda share: f"{share:g}", key="density", **KEPT
)
special = special_column.slider(
    "Specialization, at least",
    -0.1,
    1.0,
    -0.1,
    0.05,
    key="specialization",
    **KEPT,
    help="minus that with shuffled labels; 1: fires on one label only",
)
orders = [name for name in ORDERS if has_tokens or name not in ("most specialized", "most of one token")]
first = orders.index("most specialized" if has_tokens else "most frequent")
order = order_column.selectbox("Order", orders, first, key="order", **KEPT)
chosen_N = choose_features(listed, words, density, special if special > -0.1 else float("-inf"), order)
with errors_shown():
    notes = read_notes(choice.run.path, choice.member)
if notes and st.toggle("Only features with a star or a note", key="noted", **KEPT):
    chosen_N = chosen_N[np.isin(chosen_N, list(notes))]
shown = f", the first {MOST_ROWS} in the table" if len(chosen_N) > MOST_ROWS else ""
st.caption(f"{len(chosen_N):,} of {len(listed.density_F):,} features{shown}. Click a feature to open its page.")
if not len(chosen_N):
    st.info("No feature matches: shorten the search, or widen the filters.")
    st.stop()
view = st.segmented_control("View", ["Table", "Map"], default="Table", label_visibility="collapsed", key="view", **KEPT)
if view == "Map":
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
        "note": f"{'★' * notes[feature].star} {notes[feature].text}".strip() if feature in notes else "",
        **({"found": found_tokens(listed, feature, words)} if words.split() else {}),
        "strongest on": listed.strongest_F[feature],
        "promotes": listed.promotes_F[feature],
        "specialized on": f"{listed.specialization_F[feature]:.2f} {listed.label_F[feature]}",
        "one token": f"{listed.token_share_F[feature]:.0%} {listed.token_F[feature]}",
        "density": float(listed.density_F[feature]),
    }
    for feature in chosen_N[:MOST_ROWS].tolist()
]
left_out = set() if notes else {"note"}
left_out |= set() if has_tokens else {"promotes", "specialized on", "one token"}
rows = [{name: value for name, value in row.items() if name not in left_out} for row in rows]
st.caption(" ".join(EXPLAINED[name] for name in rows[0] if name in EXPLAINED))
widths = WIDTHS | ({"promotes": 120} if "found" in rows[0] else {})
narrow = {name: st.column_config.Column(width=wide) for name, wide in widths.items() if name in rows[0]}
if row := clicked_row(rows, "features", {"density": "%.4f"}, **narrow):
    go("feature", feature=row["feature"])
