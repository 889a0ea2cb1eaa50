"""The dashboard's server in a separate process, and a Chromium browser that visits it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import ROOT, environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]
# Checked at every frame, because a locator would only check after 100 and 500 ms.
SETTLED = """title => (!title || [...document.querySelectorAll("h1")].some(h => h.innerText.trim() === title))
    && document.querySelector('[data-test-script-state="notRunning"]')
    && !document.querySelector("[data-testid=stSkeleton], [data-stale=true]")"""
OWN_PROBES = ("_stcore/health", "_stcore/host-config")  # Streamlit looks for its server below the page's path, too


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def serving(cache: Path, *runs: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server that is ready."""
    port = free_port()
    command = [sys.executable, ROOT / "main.py", "dashboard", *runs, "--port", str(port), "--cache-dir", cache]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment(cache) | {"PYTHONPATH": str(ROOT)})
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health").close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(20)


class Visitor:
    """A browser page that records requests to other servers and all reported errors."""

    def __init__(self, page, address: str):
        self.page, self.address = page, address
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        own = (address, address.replace("http", "ws"), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or self.outside.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.said)
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    def said(self, message) -> None:
        if message.type == "error" and not message.location["url"].endswith(OWN_PROBES):
            self.errors.append(f"{message.text} {message.location['url']}")

    def open(self, path: str, title: str) -> float:
        """The seconds until a newly opened page is complete."""
        began = time.perf_counter()
        self.page.goto(self.address + path)
        self.settled(title)
        return time.perf_counter() - began

    def turn_to(self, link: str, title: str) -> float:
        """The seconds until a page is complete after a click in the menu, which is folded away on a narrow screen."""
        box = self.page.get_by_role("link", name=link, exact=True).bounding_box()
        if not box or box["x"] < 0:  # a menu that is moved out to the left still counts as visible
            self.page.get_by_test_id("stExpandSidebarButton").click()
            self.page.wait_for_timeout(600)  # until it has moved in
        began = time.perf_counter()
        self.page.get_by_role("link", name=link, exact=True).click()
        self.settled(title)
        seconds, menu = time.perf_counter() - began, self.page.get_by_test_id("stSidebar").bounding_box()
        if menu and menu["x"] >= 0 and menu["width"] > self.page.viewport_size["width"] / 2:  # the menu covers the page
            self.page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").click()
            self.page.wait_for_timeout(600)
        return seconds

    def settled(self, title: str = "") -> None:
        """Wait until the page has this title and nothing runs any more."""
        self.page.wait_for_function(SETTLED, arg=title, timeout=120_000)
        trouble = self.page.get_by_test_id("stException")
        assert not trouble.count(), trouble.first.inner_text()


@contextmanager
def visiting(address: str, width: int = 1280, height: int = 900, **options) -> Iterator[Visitor]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        yield Visitor(context.new_page(), address)
        browser.close()
