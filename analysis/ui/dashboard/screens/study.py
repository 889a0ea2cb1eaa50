"""The page with what is known of all members: how they were trained, the study's answers, and benchmarks."""

from shlex import quote
from statistics import mean

import streamlit as st

from analysis.features.statistics import Features, features_path
from analysis.plots.theme import figure_html
from analysis.runs.shapes import Absorption, SparseProbing, SpuriousCorrelation
from analysis.study.tables import lines_of
from analysis.ui.dashboard.state import RIGHT, chosen, errors_shown, escaped
from analysis.ui.report import figures
from analysis.ui.report.contents import saved_answers
from analysis.ui.terminal.wording import pasted, share_text
from sae_jax.shapes import Shape, read_shaped

BENCHMARK_AGAIN = "delete it, and run `saebench` again"

choice = chosen()
run = choice.run
path = quote(str(run.path))
study = pasted(f"python main.py study {path}")


def show(section: figures.Section) -> None:
    """The figures of a section, or why there are none."""
    if isinstance(section, str):
        st.caption(escaped(section))
        return
    for drawn in section:
        html = figure_html(drawn.figure, f"figure-{drawn.name}", drawn.alt)
        st.markdown(html.replace("\n", " "), unsafe_allow_html=True)  # st.html would remove the SVG


def statistics() -> dict[str, Features]:
    """Those that were computed before."""
    loaded = {name: Features.load(features_path(run.path, name), mapped=True) for name in run.members}
    return {name: features for name, features in loaded.items() if features}


def benchmarks() -> list[dict]:
    """A row for each member with the results of `saebench` that are in the run."""
    rows: dict[str, dict] = {}
    shapes: dict[str, type[Shape]] = {
        "sparse_probing": SparseProbing,
        "absorption": Absorption,
        "spurious_correlation": SpuriousCorrelation,
    }
    for name, shape in shapes.items():
        if not (path := run.path / "analysis" / f"{name}.json").exists():
            continue
        for member, result in read_shaped(path, BENCHMARK_AGAIN, shape)["members"].items():
            cells: dict[str, float | None]
            if shape is SparseProbing:
                cells = {"probe on one feature": mean(probe["accuracy"]["1"] for probe in result.values())}
            elif shape is Absorption:
                cells = {"absorption": result["fraction"]}
            else:
                cells = {f"SCR, n={n}": score for n, score in result["score"].items()}
            texts = {name: share_text(value) for name, value in cells.items()}
            rows.setdefault(member, {"member": member}).update(texts)
    return list(rows.values())


st.title("Training and study")
with errors_shown():
    answers = saved_answers(run)
    known = statistics()
for answer in answers:
    st.markdown(f"- {escaped(answer['question'])} {escaped(answer['answer'])}")
st.header("Training")
show(figures.training(run, lambda text: None))
if known.keys() == run.members.keys():
    st.header("Densities")
    show(figures.densities(run, known))
    st.header("Comparison")
    with errors_shown(), st.spinner("comparing"):
        show(figures.features_in_common(run, known, study))
st.header("SAEBench")
with errors_shown():
    rows = benchmarks()
if rows:
    st.dataframe(rows, hide_index=True, column_config={name: RIGHT for name in rows[0] if name != "member"})
elif not run.has_language_model:
    st.caption("It needs a language model, but the rows were imported without one.")
else:
    st.caption(escaped(f"It was not measured: {pasted(f'python main.py saebench {path}')}"))
st.header("Five questions")
if not answers:
    st.caption(escaped(f"The study was not run: {study}"))
for number, answer in enumerate(answers, 1):
    st.subheader(escaped(f"{number}. {answer['question']}"))
    st.markdown("\n".join([escaped(answer["answer"]), "", *(f"- {escaped(f)}" for f in answer.get("findings", []))]))
    show(figures.answered(number, answer))
    with st.expander("The numbers, and what was measured"):
        st.markdown(escaped(answer["measured"]))
        names = ["measure", *answer["table"]]
        st.dataframe(
            [dict(zip(names, [measure, *cells], strict=True)) for measure, cells in lines_of(answer["table"])],
            height="content",
            column_config=dict.fromkeys(answer["table"], RIGHT),
        )
        st.markdown(escaped(f"Limits: {answer['not_shown']}"))
for uncertainty in dict.fromkeys(answer["uncertainty"] for answer in answers):
    st.caption(escaped(f"Uncertainty of the numbers: {uncertainty}"))
