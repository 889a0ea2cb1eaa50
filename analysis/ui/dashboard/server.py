"""The dashboard's web server. It answers this machine only, unless it is told otherwise."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

from harvest.errors import InputError

ADDRESS, PORT = "127.0.0.1", 8501  # where the dashboard listens by default
LOOPBACK = ["127.0.0.1", "localhost", "::1"]
APP = Path(__file__).parent / "app.py"


def feature_link(run: Path, member: str, feature: int) -> str:
    """The address of a feature's page, if the dashboard of this run alone is served in the default place."""
    query = urlencode({"run": run.resolve().name, "member": member, "feature": feature})
    return f"http://{ADDRESS}:{PORT}/feature?{query}"


def need_free(address: str, port: int) -> None:
    """Raise InputError if the server cannot listen on this address and port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            raise InputError(
                f"cannot listen on --address {address} --port {port} ({error.strerror}): "
                "give another --port or --address"
            ) from error


def warm() -> None:
    """Import slow modules in the background while the user reads the first page, so that the first click is fast."""
    for module in ("harvest.model.tokenizer", "analysis.pages.feature", "analysis.interventions.ablation"):
        import_module(module)
    import_module("jax").numpy.zeros(1)  # initializes JAX, which is slow


def hosts(address: str, further: Sequence[str]) -> list[str]:
    """Host names that requests may carry: the loopback names, and this machine's names if others may connect."""
    from streamlit import net_util

    if address in LOOPBACK:
        return [*LOOPBACK, *further]
    this_machine = (address, socket.gethostname(), socket.getfqdn(), net_util.get_internal_ip())
    return [*LOOPBACK, *further, *filter(None, this_machine)]


def serve(address: str, port: int, further_hosts: Sequence[str], arguments: list[str]) -> None:
    """Serve the dashboard until the process is stopped. `arguments` are those of app.py.

    The settings replace Streamlit's defaults, which listen on every address, send usage statistics and watch files.
    """
    from streamlit import net_util
    from streamlit.web import bootstrap

    net_util.get_external_ip = lambda: None  # else Streamlit asks a server on the internet for this machine's address
    settings = {
        "server_address": address,
        "server_port": port,
        "server_headless": True,
        "server_enableXsrfProtection": True,
        "server_allowedHosts": hosts(address, further_hosts),  # protects against DNS rebinding
        "server_fileWatcherType": "none",
        "browser_gatherUsageStats": False,
        "client_toolbarMode": "minimal",
        "client_showErrorDetails": "full",
        "global_developmentMode": False,
    }
    Thread(target=warm, daemon=True).start()
    bootstrap.load_config_options(settings)
    bootstrap.run(str(APP), False, arguments, settings)
