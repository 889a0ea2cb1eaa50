"""Text in, trained and evaluated sparse autoencoders out, in one command.

python main.py --activation jump_relu                   # one dictionary, by default settings
python main.py --activation relu jump_relu topk         # three in one jit, on the same batches
python main.py --n-samples 100 --seq-len 10 --epochs 2  # a smoke test, in seconds
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from analysis.faces.terminal import Terminal
from harvest.capture import DISK_FULL, harvest
from harvest.errors import InputError
from harvest.request import HarvestRequest, default_cache_dir, flag
from harvest.sources import named_files, resolve
from sae_jax.config import LEVELS, TrainConfig
from sae_jax.grid import members_of
from sae_jax.plan import plan
from sae_jax.run_directory import RunDirectory, default_name


@dataclass(frozen=True)
class Options:
    """How to run it; nothing here changes a result."""

    run_dir: Path | None = flag(None, "where the run lies (default: runs/, named by what was asked for)")
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")
    checkpoint_seconds: float = flag(60.0, "seconds between checkpoints")
    resume: bool = flag(False, "go on with an interrupted run from its last checkpoint")
    force: bool = flag(False, "start again, also where the run is finished or interrupted")
    quiet: bool = flag(False, "print nothing but where the results lie")
    dry_run: bool = flag(False, "print what would be trained, and about what it costs, and train nothing")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise SystemExit(fail(f"{message} (see --help)", 2))


def build_parser() -> argparse.ArgumentParser:
    """One flag a dataclass field: --name for the field `name`, its default and its help."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for title, cls in (("activations", HarvestRequest), ("training", TrainConfig), ("running", Options)):
        group, hints = parser.add_argument_group(title), get_type_hints(cls)
        for field in fields(cls):
            add_flag(group, field, hints[field.name])
    return parser


def add_flag(group: Any, field: Field, hint: Any) -> None:
    name, default, help = "--" + field.name.replace("_", "-"), field.default, field.metadata["help"]
    if default not in (None, ()):
        help = f"{help} (default: {shown(default)})"
    if hint is bool:
        group.add_argument(name, dest=field.name, action="store_true", default=default, help=help)
        if default:
            off = name.replace("--", "--no-")
            group.add_argument(off, dest=field.name, action="store_false", help=f"turn {name} off")
        return
    kind = next((k for k in (int, float, Path) if k is hint or k in get_args(hint)), str)
    several = "+" if get_origin(hint) is tuple else None
    metavar = "|".join(field.metadata.get("choices", ())) or kind.__name__.upper()
    group.add_argument(name, type=kind, nargs=several, default=default, metavar=metavar, help=help)
    for short, value in field.metadata.get("shorthands", {}).items():
        one = (value,) if several else value
        group.add_argument(
            short, dest=field.name, action="store_const", const=one, default=default, help=f"{name} {value}"
        )


def shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return " ".join(map(shown, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


LEVEL_OF_FLAG = {"--k": "k", "--aux-coefficient": "k", "--target-l0": "target_l0", "--sparsity": "target_l0"}


def parse(argv: list[str]) -> tuple[HarvestRequest, TrainConfig, Options]:
    """The flags, checked. Raises InputError."""
    values = vars(build_parser().parse_args(argv))
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    request = HarvestRequest(**{f.name: values[f.name] for f in fields(HarvestRequest)})
    config = TrainConfig(**{f.name: values[f.name] for f in fields(TrainConfig)})
    options = Options(**{f.name: values[f.name] for f in fields(Options)})
    given = {argument.partition("=")[0] for argument in argv}
    for name, level in LEVEL_OF_FLAG.items():
        if name in given and not any(level in LEVELS[kind] for kind in config.activation) and not config.members:
            raise InputError(f"{name} means nothing to --activation {' '.join(config.activation)}: leave it out")
    if {"--target-l0", "--sparsity"} <= given:
        raise InputError("--target-l0 and --sparsity: steer to an L0, or fix the coefficient? Give one of them")
    if options.resume and options.force:
        raise InputError("--resume and --force: go on, or start again? Give one of them")
    members_of(config, request.sites)
    if config.batch_size > (most := request.n_samples * request.seq_len):
        raise InputError(f"--batch-size {config.batch_size}: --n-samples times --seq-len are at most {most:,} rows")
    if not options.checkpoint_seconds > 0:
        raise InputError(f"--checkpoint-seconds {options.checkpoint_seconds}: must be a positive number")
    return request, config, options


def main(argv: list[str]) -> None:
    request, config, options = parse(argv)
    if options.dry_run:
        model, _ = resolve(request)
        if model.d_model is None:
            raise InputError(f"--dry-run: the config of {model.location} does not say how wide the model is")
        with Terminal(quiet=options.quiet) as terminal:
            terminal.plan(plan(config, request, model.d_model))
        return
    asked = {"harvest": asdict(request), "train": config.to_json(), "files": named_files(request)}
    run = RunDirectory(options.run_dir or Path("runs") / default_name(asked), asked)
    run.refuse_another_run()
    with Terminal(quiet=options.quiet) as terminal:
        if run.results and not options.force:
            terminal.say(f"{run.path} is finished; --force does it again")
            terminal.results(run.results, str(run.path))
            return
        if run.interrupted and not (options.resume or options.force):
            raise InputError(f"{run.path} was interrupted: add --resume to go on, or --force to start again")
        results = work(request, config, options, run, terminal)
        terminal.results(results, str(run.path))


def work(request: HarvestRequest, config: TrainConfig, options: Options, run: RunDirectory, terminal: Terminal) -> dict:
    began = time.perf_counter()
    stores = harvest(request, options.cache_dir, on_progress=terminal.harvest_progress, say=terminal.say)
    harvest_seconds = time.perf_counter() - began

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.cache_dir / "compiled"))
    import jax

    from sae_jax.progress import Diverged
    from sae_jax.train import train

    terminal.say(f"training on {jax.default_backend()}")
    try:
        return train(
            config,
            list(stores.values()),
            run,
            resume=options.resume,
            force=options.force,
            checkpoint_seconds=options.checkpoint_seconds,
            harvest_seconds=harvest_seconds,
            on_progress=terminal.training_progress,
            say=terminal.say,
        )
    except Diverged:
        for store in stores.values():
            store.verify()  # a damaged row looks like a lost loss: then the file is named instead
        raise


def run_as_command(argv: list[str]) -> int:
    """Exit status: 0 done, 1 failed, 2 bad input, 130 stopped. Only defects of this program show a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside training, too, it stops with a word
    try:
        main(argv)
    except KeyboardInterrupt:
        return fail("stopped; the same command again (with --resume once training has begun) goes on", 130)
    except InputError as e:
        return fail(str(e), 2)
    except MemoryError as e:
        return fail(f"the memory does not suffice ({e}); fewer --block-steps or a smaller --batch-size need less", 1)
    except OSError as e:
        if e.errno not in DISK_FULL:
            return fail(f"{e.strerror or e}: {e.filename or 'no file named'}", 1)
        where = e.filename or "while writing"
        return fail(f"the disk is full ({where}): what was done before stays; make room and --resume", 1)
    except RuntimeError as e:
        from sae_jax.progress import Diverged, Interrupted

        if isinstance(e, Interrupted):
            return fail(f"{e}; the same command with --resume goes on", 130)
        if isinstance(e, Diverged):
            return fail(str(e), 1)
        if "RESOURCE_EXHAUSTED" in str(e) or "Out of memory" in str(e):  # as XLA says it
            return fail(f"the memory does not suffice; a smaller --hidden-dim needs less ({e})", 1)
        raise
    return 0


def fail(message: str, status: int) -> int:
    line = " ".join(message.splitlines())
    print(line if status == 130 else f"error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run_as_command(sys.argv[1:]))
