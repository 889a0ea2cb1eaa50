"""A sign of life from programs that have nothing to report: while libraries load, compile or compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

SILENT_SECONDS = 2.5  # from which on a sign of life is shown
LOOK_SECONDS = 0.25  # between two looks at the clock

Method = TypeVar("Method", bound=Callable[..., Any])


class Pulse:
    """Calls `beat(seconds since the last news)` in a thread, whenever nothing was shown for SILENT_SECONDS.

    The lock is held meanwhile, and must be held by whoever shows something.
    """

    def __init__(self, beat: Callable[[float], None]) -> None:
        self.lock = threading.RLock()
        self._beat = beat
        self._ended = threading.Event()
        self._news = self._shown = time.monotonic()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="pulse", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def has_shown_news(self) -> None:
        self._news = self._shown = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self.lock:
                now = time.monotonic()
                if now - self._shown >= SILENT_SECONDS and not self._ended.is_set():
                    self._beat(now - self._news)
                    self._shown = now


def one_at_a_time(method: Method) -> Method:
    """A method of an object with a `pulse` that does not run while the pulse shows something."""

    @wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.pulse.lock:
            return method(self, *args, **kwargs)

    return alone  # type: ignore[return-value]
