"""Browse a run's members and features in a local web page.

python main.py dashboard RUN                     # serves http://127.0.0.1:8501 until Ctrl-C
python main.py dashboard RUN RUN --port 9000     # several runs

The address bar always holds a link to the page that is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path

from analysis.cli.flags import filled, parsed, place
from analysis.runs.finished import FinishedRun
from analysis.ui.dashboard.server import ADDRESS, PORT, need_free, serve
from harvest.errors import InputError
from harvest.flags import DEVICE, WHERE, Allowed, Flags, flag
from harvest.request import default_cache_dir


@dataclass(frozen=True)
class Options(Flags):
    runs: tuple[Path, ...] = place("RUN", "directories of finished runs")
    port: int = flag(
        PORT, "port of the server", Allowed(Integral, lambda v: 1 <= v < 2**16, "a whole number, 1 to 65535")
    )
    address: str = flag(
        ADDRESS, "address that the server listens on; any other value lets other machines in without a password"
    )
    host: tuple[str, ...] = flag(
        (), "further host names that browsers may use for the server, for example that of a proxy"
    )
    device: str = flag("auto", WHERE, DEVICE)
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")


def run(argv: list[str]) -> None:
    options = filled(Options, parsed("dashboard", __doc__, argv, Options))
    runs = list(dict.fromkeys(options.runs))
    for path in runs:
        FinishedRun.open(path, options.device)
    if find_spec("streamlit") is None:
        raise InputError("the dashboard needs streamlit: pip install 'sae-jax[dashboard]'")
    need_free(options.address, options.port)
    print(f"starting the dashboard at http://{options.address}:{options.port}; Ctrl-C stops it", flush=True)
    serve(options.address, options.port, options.host, [str(options.cache_dir), options.device, *map(str, runs)])
