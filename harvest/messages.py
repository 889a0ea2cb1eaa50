"""What a harvest tells the user about its model, its text and its stores."""

from __future__ import annotations

from collections.abc import Callable

from harvest.request import Site
from harvest.sources import Source
from harvest.store import ActivationStore

Progress = Callable[[str, int, int], None]  # phase, tokens done, total tokens
Say = Callable[[str], None]


def ignore(*_: object) -> None:
    """Report nothing."""


def say_sources(model: Source, dataset: Source, say: Say) -> None:
    """Say which model and text are used, and why, if they are not those of the request."""
    for kind, source in (("model", model), ("text", dataset)):
        where = "" if source.location == source.asked else f" ({source.location})"
        where += " (the hub cannot be reached: activations harvested before are used)" if source.out_of_reach else ""
        say(
            f"{kind}: the bundled one, because the hub cannot be reached and there is no local copy of {source.asked}"
            if source.fell_back
            else f"{kind}: {source.asked}{where}"
        )


def say_stores(stores: dict[Site, ActivationStore], say: Say) -> None:
    """Say what was read of the text, and for each site how many rows there are and where."""
    say_text(next(iter(stores.values())).manifest["text"], say)
    for site, store in stores.items():
        train, held_out = len(store.train), len(store.held_out)
        rows = f"{train:,} training rows, {held_out:,} held-out rows" if train else f"{held_out:,} rows"
        if store.stream.n_windows:
            rows = f"{store.manifest['streamed_rows']:,} rows are streamed; kept for analyses: {rows}"
        say(f"activations at {site.hook_name}: {rows} in {store.manifest['dtype']}, in {store.directory}")
        if lost := store.manifest.get("lost_variance"):
            say(f"int8 lost {lost:.1g} of the variance of the rows")
        if limit := store.manifest.get("max_norm"):
            candidates = store.manifest["candidate_rows"]
            if left_out := candidates - train - held_out:
                share = f"{left_out / candidates:.3%}"
                say(f"{left_out:,} rows ({share}) are left out at {site.hook_name}: their norm is over {limit:.4g}")


def say_text(text: dict, say: Say) -> None:
    """Say what was left out of the text, from the facts about it in a manifest."""
    if text["columns"] not in ([], ["text"]):
        say(f"text is read from the column {', '.join(text['columns'])}")
    if files := text["left_out"]:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        say(f"not read, because they are empty or of a test or validation split: {', '.join(files[:3])}{more}")
    if lost := text.get("lost_tokens"):
        share = f"{lost / (lost + text['tokens']):.0%}"
        say(
            f"{share} of the text's tokens are in no window, because windows are full and never span two documents; "
            "--pack joins documents"
        )
    if text["near_copies"]:
        copies = f"near-copies: {text['near_copies']:,} of {text['documents']:,} documents nearly equal an earlier one"
        apart = "copies are split like other documents, because one split would be empty otherwise"
        say(f"{copies}; {'copies are in the split of their original' if text['copies_together'] else apart}")
