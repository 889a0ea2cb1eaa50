class InputError(ValueError):
    """Something the user asked for cannot be done: what was wrong, with the value, and what to do.

    `main.py` prints it as one line and exits with 2; it never stands for a defect of this program.
    """
