"""Teams of processes on this machine that talk over sockets, so that each notices at once when another has ended."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from harvest.team import Team

ROOT = Path(__file__).parents[1]


def team_of(index: int, count: int, *sockets: int) -> Team:
    """The team of this process. Process 0 has a socket to each other one, and these have one to process 0."""
    connections = [Connection(number) for number in sockets]

    def exchange(text: str) -> list[str]:
        if index:
            connections[0].send(text)
            return connections[0].recv()
        texts = [text, *(connection.recv() for connection in connections)]
        for connection in connections:
            connection.send(texts)
        return texts

    return Team(index, count, exchange)


def start_team(script: str, arguments: Sequence[Sequence[str]]) -> list[subprocess.Popen]:
    """Start a process of the script for each list of arguments, which follow those of `team_of` joined by commas."""
    pairs = [socket.socketpair() for _ in arguments[1:]]
    ends = [[first for first, _ in pairs], *([second] for _, second in pairs)]
    processes = []
    for index, (sockets, own) in enumerate(zip(ends, arguments, strict=True)):
        numbers = [end.fileno() for end in sockets]
        place = ",".join(map(str, [index, len(arguments), *numbers]))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script, place, *own],
                env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
                pass_fds=numbers,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for end in sum(ends, []):
        end.close()
    return processes
