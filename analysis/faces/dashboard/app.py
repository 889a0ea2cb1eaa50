"""The dashboard's frame: which run and which member, and the pages. Started by `python main.py dashboard RUN...`."""

import streamlit as st

from analysis.faces.dashboard.opened import Chosen, arguments, errors_shown, follow, run_at

st.set_page_config("sae-jax", page_icon=":material/blur_on:", layout="wide", initial_sidebar_state="auto")
page = st.navigation(
    [
        st.Page("pages/population.py", title="Population", icon=":material/scatter_plot:", default=True),
        st.Page("pages/features.py", title="Features", icon=":material/list:"),
        st.Page("pages/feature.py", title="One feature", icon=":material/search:"),
        st.Page("pages/text.py", title="Type text", icon=":material/edit:"),
        st.Page("pages/concept.py", title="Find a concept", icon=":material/lightbulb:"),
        st.Page("pages/steer.py", title="Steer", icon=":material/tune:"),
    ]
)
runs, _ = arguments()
path = runs[follow("run", list(runs), st.sidebar)]
with errors_shown():
    members = list(run_at(path).members)
st.session_state["chosen"] = Chosen(path, follow("member", members, st.sidebar))
page.run()
