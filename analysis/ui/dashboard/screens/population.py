"""The page with all members of a run: a sortable table, and explained variance against sparsity."""

import streamlit as st

from analysis.plots.frontier import members_chart
from analysis.ui.dashboard.address import go
from analysis.ui.dashboard.state import RIGHT, chosen, clicked_row, draw, escaped
from analysis.ui.terminal.screen import BEST
from analysis.ui.terminal.wording import counted, failure_text, share_text
from sae_jax.best_member import best_members_of_results
from sae_jax.members import Member

SHARES = {"explained_variance": "explained variance", "explained_variance_train": "train"}
SHARES |= {"ce_recovered": "CE recovered"}
FORMATS = {"L0": "%.1f", "target": "%g", "dead": "percent"}

choice = chosen()
run = choice.run
best = best_members_of_results(run.members)


def row_of(name: str) -> dict:
    """The row of a member: what it is, and its metrics with their intervals."""
    member = run.members[name]
    metrics, intervals = member["metrics"], member.get("intervals") or {}
    row = {
        "": "★" if name in best else "",
        "kind": Member.from_results(member).kind,
        "site": f"{member['layer']} {member['hook']}",
        "features": member["hidden_dim"],
        "target": Member.from_results(member).l0_asked,
        "L0": metrics["l0"],
    }
    row |= {title: share_text(metrics.get(metric), intervals.get(metric)) for metric, title in SHARES.items()}
    return row | {"dead": metrics["dead_fraction"], "lr": f"{member['lr']:g}", "member": name}


def worth_showing(rows: list[dict]) -> list[dict]:
    """The rows without the columns that are empty, or that say the same of all members and were not measured."""
    told = {name for name in rows[0] if any(row[name] not in (None, "") for row in rows)}
    told -= {name for name in ("site", "features", "lr") if len({row[name] for row in rows}) == 1}
    return [{name: value for name, value in row.items() if name in told} for row in rows]


st.title("Population")
st.caption(
    f"{counted(len(run.members), 'member')}, measured on held-out rows. train: explained variance on training rows. "
    "Click one to see its features." + f" ★: {BEST}." * bool(best)
)
for failed in (member for member in run.results["members"] if member["failed"]):
    st.error(escaped(f"{failed['id']} failed: {failure_text(failed)}"))
picked = draw(members_chart(run.members, "picked"), on_select="rerun", key="pareto")
rows = worth_showing([row_of(name) for name in run.members])
columns = {"member": st.column_config.TextColumn(width="medium")}
columns |= {name: RIGHT for name in (*SHARES.values(), "lr") if name in rows[0]}
if row := clicked_row(rows, "members", {name: form for name, form in FORMATS.items() if name in rows[0]}, **columns):
    go("features", member=row["member"])
if points := picked["selection"].get("picked"):
    go("features", member=points[0]["member"])
