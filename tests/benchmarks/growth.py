"""The time of a step by number of members and by width, as a table and a figure.

    PYTHONPATH=. python tests/benchmarks/growth.py topk --d 768 --batch 256 --figure sae_jax/growth

k is 32, and compilation is not counted. The last column is the time per member and feature, which is constant if the
time grows linearly.
"""

import argparse
from pathlib import Path

import altair as alt
from step import measure

from analysis.plots.style import save
from sae_jax.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="?", default="topk")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--figure", type=Path, help="a path without an ending, for .png and .svg")
    args = parser.parse_args()
    print("| members | F | ms a step | ms a step, member and 1024 features |\n|---|---|---|---|")
    first, points = args.widths[0], []
    sizes = [("members", n, n, first) for n in args.members] + [("features", w / first, 1, w) for w in args.widths]
    for what, factor, members, width in sizes:
        config = TrainConfig(args.activation, width, batch_size=args.batch, seed=tuple(range(members)))
        milliseconds = 1e3 * measure(config, args.d, block_steps=4, blocks=3, first_steps=4)["seconds_per_step"]
        points.append({"grows": what, "factor": factor, "ms": milliseconds})
        print(f"| {members} | {width} | {milliseconds:.1f} | {milliseconds / members / width * 1024:.2f} |", flush=True)
    if args.figure:
        title = (
            f"{args.activation}, D {args.d}, batch {args.batch}, k 32: a step from one member of {first} features on"
        )
        save(chart(points, title), args.figure)


def chart(points: list[dict], title: str) -> alt.Chart:
    level = points[0]["ms"]
    linear = [{"grows": "linear", "factor": p["factor"], "ms": level * p["factor"]} for p in points]
    x = alt.X("factor:Q", title="times as many").scale(type="log", base=4).axis(values=[1, 4, 16, 64])
    y = alt.Y("ms:Q", title="ms a step").scale(type="log")
    colours = {"members": "#0072B2", "features": "#D55E00", "linear": "#999999"}
    colour = alt.Color("grows:N", title=None).scale(domain=list(colours), range=list(colours.values()))
    base = alt.Chart(alt.Data(values=points + linear), title=title).encode(x=x, y=y, color=colour)
    dotted = alt.condition(alt.datum.grows == "linear", alt.value([3, 3]), alt.value([1, 0]))
    return (base.mark_line().encode(strokeDash=dotted) + base.mark_point(filled=True)).properties(width=420, height=280)


if __name__ == "__main__":
    main()
