"""The speed of the dashboard in a browser with a large run: 24 members of 16,384 features.

    PYTHONPATH=.:tests python tests/benchmarks/dashboard_speed.py RUN --cache-dir CACHE --to DIR

RUN is a small finished run with feature statistics. A large run is written to DIR, with RUN's records and store, random
dictionaries, repeated statistics, and snapshots. Prints the seconds until the first page is complete (after the start
of the command, and for a later browser), the seconds of each click, the server's memory, and its address.
"""

import argparse
import json
import subprocess
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from dashboard_browser import serving, visiting

from analysis.features.statistics import Features
from analysis.runs.finished import FinishedRun
from harvest.files import write_json
from sae_jax.formats import save_dictionary
from sae_jax.formats.dictionary import Dictionary

MEMBERS, FEATURES, STEPS = 24, 16_384, (0, 100, 1000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    if not options.to.exists():
        make(FinishedRun.open(options.run), options.to)
    began = time.perf_counter()
    with serving(options.cache_dir, options.to) as (address, pid):
        with visiting(address) as visitor:
            visitor.open("/", "Population")
            print(f"from the command to the first page: {time.perf_counter() - began:.2f} s")
            measure(visitor, pid)
        with visiting(address) as visitor:
            print(f"another browser opens it: {visitor.open('/', 'Population'):.2f} s")
            print(f"memory: {memory_mb(pid):,.0f} MB")
        listening = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True).stdout.splitlines()
        print("\n".join(line for line in listening if f"pid={pid}," in line))


def measure(visitor, pid: int) -> None:
    """Seconds of the first visit to each page, which reads its data, and of a second visit."""
    members = [f"member={name(number)}" for number in range(3)]
    print(f"memory: {memory_mb(pid):,.0f} MB")
    for link, title in (("Features", "Features"), ("One feature", "Feature 0"), ("Population", "Population")):
        for turn in ("first", "again"):
            print(f"{link}, {turn}: {visitor.turn_to(link, title):.2f} s")
            if turn == "first":
                visitor.turn_to("Steer", "Steer")
    visitor.open(f"/feature?{members[1]}&feature=77", "Feature 77")
    for number in (78, 79):
        began = time.perf_counter()
        visitor.page.get_by_test_id("stNumberInputStepUp").click()
        visitor.settled(f"Feature {number}")
        print(f"the next feature: {time.perf_counter() - began:.2f} s")
    visitor.open(f"/features?{members[1]}", "Features")
    for words in ("you", "ship"):
        began = time.perf_counter()
        visitor.page.get_by_role("textbox", name="Search").fill(words)
        visitor.page.keyboard.press("Enter")
        time.sleep(0.05)
        visitor.settled()
        print(f"search for {words}: {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    visitor.page.get_by_role("radio", name="Map").click()
    time.sleep(0.05)
    visitor.settled()
    print(f"map: {time.perf_counter() - began:.2f} s")
    print(f"memory: {memory_mb(pid):,.0f} MB")


def memory_mb(pid: int) -> float:
    """Resident memory of the server."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def name(number: int) -> str:
    return f"{'jump_relu' if number % 2 else 'topk'}-f16384-s{number}"


def make(run: FinishedRun, to: Path) -> None:
    rng = np.random.default_rng(0)
    bases = {run.members[member]["activation"]: member for member in run.members}
    members = []
    for number in range(MEMBERS):
        base = bases["jump_relu" if number % 2 else "topk"]
        dictionary = widened(run.dictionary(base), rng)
        save_dictionary(dictionary, to / "members" / name(number))
        of = Features.load(run.path / "analysis" / "features" / f"{base}.npz")
        assert of is not None
        repeated(of).save(to / "analysis" / "features" / f"{name(number)}.npz")
        for step in STEPS:
            W_dec_FxD, ones_F = dictionary.tensors["W_dec"], np.ones(FEATURES)
            arrays = {
                "direction": W_dec_FxD.astype(np.float16),
                "norm": ones_F,
                "density": ones_F,
            }
            path = to / "snapshots" / f"{step:09d}" / f"{name(number)}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **arrays)
        members.append(run.members[base] | {"id": name(number), "hidden_dim": FEATURES, "seed": number})
    write_json(to / "config.json", run.config)
    write_json(to / "results.json", json.loads(json.dumps(run.results | {"members": members})))


def widened(dictionary: Dictionary, rng: np.random.Generator) -> Dictionary:
    """A wide dictionary of random directions, with the repeated thresholds and biases of a small one."""
    d, b_dec = dictionary.d_in, dictionary.tensors["b_dec"]
    W_dec_FxD = rng.standard_normal((FEATURES, d), np.float32)
    W_dec_FxD /= np.linalg.norm(W_dec_FxD, axis=1, keepdims=True)
    of_features = {k: np.resize(t, FEATURES) for k, t in dictionary.tensors.items() if t.ndim == 1 and k != "b_dec"}
    tensors = of_features | {"b_dec": b_dec, "W_dec": W_dec_FxD, "W_enc": np.ascontiguousarray(W_dec_FxD.T)}
    cfg = dictionary.cfg | {"d_sae": FEATURES}
    return replace(dictionary, cfg=cfg, tensors=tensors, log_sparsity_F=None)


def repeated(of: Features) -> Features:
    """Statistics in which each feature is repeated many times."""
    place_F = np.arange(FEATURES) % len(of.density_F)
    taken = {
        f.name: getattr(of, f.name)[place_F]
        for f in fields(of)
        if f.name.endswith(("_F", "_FxQ", "_FxK", "_FxR", "_FxB", "_FxH"))
    }
    taken |= {f.name: getattr(of, f.name)[place_F] for f in fields(of) if f.name.endswith(("_FxP", "_FxJ", "_FxT"))}
    count = {label: count_FxL[place_F] for label, count_FxL in of.label_count.items()}
    score = {label: score_ExSxF[:, :, place_F] for label, score_ExSxF in of.label_score.items()}
    return replace(of, **taken, label_count=count, label_score=score)


if __name__ == "__main__":
    main()
