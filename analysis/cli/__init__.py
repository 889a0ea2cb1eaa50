"""The commands of the program, which parse flags, call the layers below and print."""

GROUPS = {  # each command is a file with a function `run(argv)`; the first line of its docstring says what it does
    "train": ("train", "import-rows"),
    "look": ("runs", "show", "dashboard", "report"),
    "measure": ("evaluate", "frontier", "saebench", "study"),
    "find and steer": ("find-feature", "steer", "attribute"),
    "publish": ("export",),
}
COMMANDS = tuple(command for commands in GROUPS.values() for command in commands)
