"""The commands of `python main.py`, which parse flags, call the layers below and print."""

COMMANDS = (  # each is a file with a function `run(argv)`
    "attribute",
    "dashboard",
    "evaluate",
    "export",
    "find-feature",
    "frontier",
    "report",
    "saebench",
    "show",
    "steer",
    "study",
)
