"""Browse a run's members and features in a local web page.

python main.py dashboard RUN                     # serves http://127.0.0.1:8501 until Ctrl-C
python main.py dashboard RUN RUN --port 9000     # several runs

The address bar always holds a link to the page that is shown.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from analysis.cli.flags import filled, parsed, place
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.request import default_cache_dir, flag

ADDRESS, PORT = "127.0.0.1", 8501  # where the dashboard listens by default
LOOPBACK = ["127.0.0.1", "localhost", "::1"]
APP = Path(__file__).parents[1] / "ui" / "dashboard" / "app.py"


@dataclass(frozen=True)
class Options:
    runs: tuple[Path, ...] = place("RUN", "directories of finished runs")
    port: int = flag(PORT, "port of the server")
    address: str = flag(
        ADDRESS, "address that the server listens on; any other value lets other machines in without a password"
    )
    host: tuple[str, ...] = flag(
        (), "further host names that browsers may use for the server, for example that of a proxy"
    )
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: must be between 1 and 65535")


def run(argv: list[str]) -> None:
    options = filled(Options, parsed("dashboard", __doc__, argv, Options))
    runs = list(dict.fromkeys(options.runs))
    for path in runs:
        FinishedRun.open(path)
    if find_spec("streamlit") is None:
        raise InputError("the dashboard needs streamlit: pip install 'sae-jax[dashboard]'")
    need_free(options)
    serve(options, [str(path) for path in runs])


def need_free(options: Options) -> None:
    """Raise InputError if the server cannot listen on its address and port."""
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((options.address, options.port))
        except OSError as error:
            raise InputError(
                f"cannot listen on --address {options.address} --port {options.port} ({error.strerror}): "
                "give another --port or --address"
            ) from error


def warm() -> None:
    """Import slow modules in the background while the user reads the first page, so that the first click is fast."""
    for module in ("harvest.model.tokenizer", "analysis.pages.feature", "analysis.interventions.ablation"):
        import_module(module)
    import_module("jax").numpy.zeros(1)  # initializes JAX, which is slow


def hosts(options: Options) -> list[str]:
    """Host names that requests may carry: the loopback names, and this machine's names if others may connect."""
    from streamlit import net_util

    if options.address in LOOPBACK:
        return [*LOOPBACK, *options.host]
    this_machine = (options.address, socket.gethostname(), socket.getfqdn(), net_util.get_internal_ip())
    return [*LOOPBACK, *options.host, *filter(None, this_machine)]


def serve(options: Options, runs: list[str]) -> None:
    """Serve the dashboard until the process is stopped.

    The settings replace Streamlit's defaults, which listen on every address, send usage statistics and watch files.
    """
    from streamlit import net_util
    from streamlit.web import bootstrap

    net_util.get_external_ip = lambda: None  # else Streamlit asks a server on the internet for this machine's address
    settings = {
        "server_address": options.address,
        "server_port": options.port,
        "server_headless": True,
        "server_enableXsrfProtection": True,
        "server_allowedHosts": hosts(options),  # protects against DNS rebinding
        "server_fileWatcherType": "none",
        "browser_gatherUsageStats": False,
        "client_toolbarMode": "minimal",
        "client_showErrorDetails": "full",
        "global_developmentMode": False,
    }
    Thread(target=warm, daemon=True).start()
    bootstrap.load_config_options(settings)
    bootstrap.run(str(APP), False, [str(options.cache_dir), *runs], settings)
