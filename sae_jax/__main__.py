"""`python -m sae_jax` and the console command `sae-jax`: the same as `python main.py`."""

import sys
from pathlib import Path


def run() -> None:
    """Run the program. A main.py, an analysis.py or a datasets.py in the user's folder is not taken for ours."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder for `python -m`, the folder of the script for `sae-jax`
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import main

    del sys.path[0]  # the packages of the project are imported by now
    main.start()


if __name__ == "__main__":
    run()
