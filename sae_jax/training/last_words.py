"""A small program that outlives a process of a training, and says why it ended if that process could not.

It reads from its standard input until that is closed: each line is what to say from then on, and an empty line stands
for nothing. Its argument is the file with the native messages of the process, which it deletes if it says nothing.
"""

import contextlib
import os
import re
import signal
import sys

TWICE = "with a different incarnation"  # what JAX's coordination service calls a process that joins again
UNKNOWN = "was killed, or ended because another process"
LOST = re.compile(r"Task (\d+) heartbeat timeout")


def main(log: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    words = ""
    for line in sys.stdin:
        words = line.strip()
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as file:
        native = file.read()
        if words and (twice := re.search(rf"(\d+) unexpectedly tried to connect {TWICE}", native)):
            words = f"process {twice[1]} was started twice: give each process another --process-id"
        elif words and (lost := LOST.search(native)):
            words = words.replace(UNKNOWN, f"was ended, because process {lost[1]}")
        if words:
            print(f"error: {words} (details: {log})", file=sys.stderr, flush=True)
        else:
            os.unlink(log)


if __name__ == "__main__":
    main(sys.argv[1])
