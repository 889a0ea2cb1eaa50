"""A run on Weights & Biases: its curves during training, its tables and figures at the end.

What is logged goes into a queue, and a thread passes it to W&B, so that training waits neither for a network nor for a
disk. An error of W&B is reported once, and training continues. The files of W&B lie in RUN/wandb. RUN/wandb.json names
the run on W&B, so that a resumed training continues it.

    with WandbLog(run.path, config, terminal.say) as log:
        log.training_progress(progress)
        log.results(results)
"""

from __future__ import annotations

import io
import math
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.features.density import density_histogram, density_statistics
from analysis.geometry import FEWEST, embed
from analysis.plots import densities
from analysis.plots.feature_map import density_map
from analysis.plots.style import png_of
from harvest.files import read_arrays, read_json, write_json
from sae_jax.members import Member
from sae_jax.run_directory import WRITTEN_AGAIN
from sae_jax.training.snapshots import read_snapshots

if TYPE_CHECKING:
    from sae_jax.training.progress import Progress

RECORD = "wandb.json"  # {"step": the last logged step, "run": the id of the W&B run}
NO_ANSWER_SECONDS = 15.0  # a server that is silent for longer counts as unreachable
DRAW_SECONDS = 600.0  # longest wait for the remaining figures at the end, which include a map for each kind
SEND_SECONDS = 60.0  # longest wait after that for the remaining uploads
PIXELS_PER_INCH = 144


class WandbLog:
    """Logs a run to W&B. This context manager has the same methods as a Terminal.

    `say` is called only from the caller's thread. Points are at least `log_freq` steps apart. A resumed run does not
    log again what was logged before it was interrupted.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        say: Callable[[str], None],
        project: str = "sae-interpretability",
        log_freq: int = 100,
    ) -> None:
        self._path, self._config, self._say = path, config, say
        self._project, self._log_freq = project, log_freq
        self._fed: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._drawn = threading.Event()
        self._broken = False
        self._exit_code = 0
        self._run: Any = None  # the run object of W&B
        self._record: dict[str, Any] = {}

    def __enter__(self) -> WandbLog:
        self._attempt(
            lambda: import_module("wandb")
        )  # imported here, because it may fail in the thread beside other imports
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._exit_code = 0 if kind is None else 1
        self._fed.put(None)
        drawn = self._drawn.wait(DRAW_SECONDS if kind is None else SEND_SECONDS)
        self._thread.join(SEND_SECONDS if drawn else 0)
        self._say_notes()
        if not drawn:
            self._say(f"W&B does not respond: upload what it has with `wandb sync {self._path}/wandb/*run-*`")
        elif self._thread.is_alive():
            self._say(f"W&B did not upload all in {SEND_SECONDS:.0f} s: use `wandb sync {self._path}/wandb/*run-*`")

    def training_progress(self, progress: Progress) -> None:
        self._fed.put(lambda: self._log_progress(progress))
        self._say_notes()

    def results(self, results: dict[str, Any]) -> None:
        """The table, figures and histograms of a finished run, from the content of results.json and its files."""
        self._fed.put(lambda: self._log_results(results))
        self._say_notes()

    def _say_notes(self) -> None:
        while not self._notes.empty():
            self._say(self._notes.get())

    # These methods run in the thread.

    def _work(self) -> None:
        try:
            while task := self._fed.get():
                self._attempt(task)
        finally:
            self._drawn.set()
        if self._run:
            self._attempt(lambda: self._run.finish(exit_code=self._exit_code))

    def _attempt(self, task: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            task()
        except Exception as error:  # no error of W&B should stop a training
            self._broken = True
            self._notes.put(
                f"W&B stopped, training continues without it: {' '.join(str(error).split()) or type(error).__name__}"
            )

    def _open(self) -> None:
        """Begin the run on W&B, or continue that of an interrupted training; offline if there is no login."""
        if self._run:
            return
        import wandb

        record = self._path / RECORD
        self._record = read_json(record, "delete it, so that a new W&B run begins") if record.exists() else {"step": -1}
        self._record.setdefault("run", secrets.token_hex(4))
        mode: Any = os.environ.get("WANDB_MODE", "online")
        wandb.setup(wandb.Settings(silent=True))
        if mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            self._notes.put(
                "W&B: you are not logged in, so the run is kept offline: run `wandb login` to upload later runs"
            )
            mode = "offline"
        try:
            self._run = self._begin(mode)
        except wandb.errors.CommError as error:
            self._notes.put(f"W&B cannot be reached, so the run is kept offline: {' '.join(str(error).split())}")
            mode = "offline"
            wandb.teardown()  # otherwise the service keeps the id reserved for the run that did not begin
            self._run = self._begin(mode)
        write_json(record, self._record)
        if mode == "offline":
            self._notes.put(f"W&B offline: `wandb sync {self._path}/wandb/offline-run-*` sends it")
        elif mode != "disabled":
            self._notes.put(f"W&B: {self._run.url}")

    def _begin(self, mode: Any) -> Any:
        import wandb

        run = wandb.init(
            project=self._project,
            id=self._record["run"],
            resume="allow",
            name=self._path.name,
            config=self._config,
            dir=self._path,
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, init_timeout=NO_ANSWER_SECONDS
            ),
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    def _log_progress(self, progress: Progress) -> None:
        self._open()
        last, step, every = self._record["step"], progress.step, self._log_freq
        if step <= last or (step // every == last // every and step < progress.total_steps):
            return
        speed = {"rows_per_second": progress.rows_per_second, "data_wait": progress.data_wait}
        curves = {
            f"{metric}/{name}": value
            for name, metrics in progress.members.items()
            for metric, value in metrics.items()
            if math.isfinite(value)
        }
        self._run.log({"step": step, **curves, **speed})
        self._record["step"] = step
        write_json(self._path / RECORD, self._record)

    def _log_results(self, results: dict[str, Any]) -> None:
        self._open()
        members = {member["id"]: member for member in results["members"] if not member["failed"]}
        stats = {name: read_arrays(self._path / "members" / name / "stats.npz", WRITTEN_AGAIN) for name in members}
        density = {name: arrays["density"] for name, arrays in stats.items()}
        self._run.log(dict(self._pictures(members, density)))
        for name, member in members.items():
            measured = {**member["metrics"], **density_statistics(density[name])}
            self._run.summary.update({f"final/{key}/{name}": value for key, value in measured.items()})
        self._run.summary.update({f"timing/{key}": value for key, value in results["timing"].items()})
        self._run.log({"results": table(members, density)})

    def _pictures(
        self, members: dict[str, dict[str, Any]], density: dict[str, np.ndarray]
    ) -> Iterator[tuple[str, Any]]:
        """Yield histograms and figures by name. Maps are slow to draw, so there is one map per kind."""
        import wandb

        from sae_jax.formats import load_dictionary

        kinds = {name: Member.from_results(members[name]).kind for name in density}
        yield "figures/densities", image(densities.densities_chart(density, kinds))
        living = [name for name, density_F in density.items() if (density_F > 0).sum() >= FEWEST]
        first_of_kind = {kinds[name]: name for name in reversed(living)}
        for name, density_F in density.items():
            yield f"density/{name}", wandb.Histogram(np_histogram=density_histogram(density_F))
            if snapshots := read_snapshots(self._path, name):
                heat = densities.density_heatmap(name, {step: snapshot.density for step, snapshot in snapshots.items()})
                yield f"figures/activation_heatmap/{name}", image(heat)
            if name in first_of_kind.values():
                W_dec_FxD = load_dictionary(self._path / "members" / name).tensors["W_dec"]
                living_F = density_F > 0
                feature_map = density_map(name, density_F[living_F], *embed(W_dec_FxD[living_F]))
                yield f"figures/feature_map/{name}", image(feature_map)


def table(members: dict[str, dict[str, Any]], density: dict[str, np.ndarray]) -> Any:
    """A W&B table with a row for each member: its settings, held-out metrics, and how often its features fire."""
    import wandb

    records = [
        {**{k: v for k, v in member.items() if not isinstance(v, dict | list)}, **member["metrics"]}
        | density_statistics(density[name])
        for name, member in members.items()
    ]
    columns = list(dict.fromkeys(key for record in records for key in record))
    return wandb.Table(columns=columns, data=[[record.get(column) for column in columns] for record in records])


def image(figure: Any) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png_of(figure, PIXELS_PER_INCH))))
