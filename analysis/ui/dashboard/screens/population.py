"""The page with all members of a run: a sortable table, and explained variance against sparsity."""

import streamlit as st

from analysis.plots.frontier import members_chart
from analysis.runs.member_table import member_rows
from analysis.ui.dashboard.state import chosen, clicked_row, escaped, fitted, go
from analysis.ui.terminal.wording import failure_text

FORMATS = {"explained_variance": "%.3f", "l0": "%.1f", "dead_fraction": "%.3f", "ce_recovered": "%.3f"}
FORMATS |= {"mse": "%.4g", "cosine": "%.3f", "lr": "%.1e"}

choice = chosen()
st.title("Population")
st.caption(f"{len(choice.run.members)} members, measured on held-out rows. Click one to see its features.")
for failed in (member for member in choice.run.results["members"] if member["failed"]):
    st.error(escaped(f"{failed['id']} failed: {failure_text(failed)}"))
rows = member_rows(choice.run.members)
picked = st.altair_chart(
    fitted(members_chart(choice.run.members, "picked")), theme=None, on_select="rerun", key="pareto"
)
if row := clicked_row(rows, "members", FORMATS, member=st.column_config.TextColumn(pinned=False, width="medium")):
    go("features", member=row["member"])
if points := picked["selection"].get("picked"):
    go("features", member=points[0]["member"])
