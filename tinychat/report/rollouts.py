"""rollouts.html: the replies of a run's steps, each token with its numbers, in one file without a server.

A page for reading: what does not fit into it is left out, evenly over the steps, and the page says how much.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinychat.errors import UserError
from tinychat.report.headline import name_of
from tinychat.report.templates import render
from tinychat.runs import folders
from tinychat.runs.rollouts import COLUMNS, ORDERS, Reply, Rollout, Words, path_of, read, steps_of, words_of
from tinychat.runtime.run_files import if_readable, said_of
from tinychat.runtime.terminal import as_text

PAGE = "rollouts.html"
MOST_STEPS = 24  # of training, and as many evaluations
MOST_TOKENS = 60_000  # in a run's own page: some 3 MB
MOST_READ = 200_000_000  # bytes of training's files that are read for it: half a minute
logger = logging.getLogger(__name__)


def write_rollouts(run_dir: Path) -> Path | None:
    """Write rollouts.html into `run_dir`; its path, None where the run has no rollouts, or (said) none can be read."""
    try:
        there = chosen_steps(run_dir)
        found = (one for which in there if (one := if_readable(functools.partial(read, run_dir, *which))))
        if (first := next(found, None)) is None:
            return None
        text = page(run_dir, itertools.chain([first], found), words_of(run_dir), MOST_TOKENS // len(there), linked=True)
        folders.write_text_atomic(run_dir / PAGE, text)
    except (OSError, UserError) as error:
        logger.warning("no %s in %s: %s", PAGE, run_dir, said_of(error))
        return None
    return run_dir / PAGE


def chosen_steps(
    run_dir: Path, always: Sequence[tuple[int, bool]] = (), most: int = MOST_STEPS, most_bytes: int = MOST_READ
) -> list[tuple[int, bool]]:
    """(step, held out) of at most `most` steps of each, fewer where their files are large, at even distances, the first
    and the last among them; and those that are to be there `always`."""
    found = set(always)
    for held_out in (False, True):
        steps = steps_of(run_dir, held_out)
        if steps:
            size = max(1, path_of(run_dir, steps[-1], held_out).stat().st_size)
            count = max(2, min(most, most_bytes // size))
            places = {round(index * (len(steps) - 1) / (count - 1)) for index in range(count)}
            found |= {(steps[place], held_out) for place in places}
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def page(
    run_dir: Path, rollouts: Iterable[Rollout], words: Words, tokens: int, linked: bool = False, **view: Any
) -> str:
    """The page of some rollouts, each read, cut to so many tokens and let go.

    linked: to the report, which lies beside it. view: what it shows first (step, against, heldOut, order, by, find,
    lowest; prompt: the ids of the one that is shown over the steps).
    """
    stage = name_of((if_readable(lambda: folders.read_config(run_dir)) or {}).get("stage"))
    texts: dict[str, int] = {}
    columns: set[str] = set()
    orders: dict[str, None] = {}
    told, asked = [], []
    for rollout in rollouts:
        kept = _within(rollout, tokens)
        told.append(_told(rollout, kept, words, texts))
        asked.append([reply.prompt for reply in kept])
        columns |= {*rollout.columns}
        orders |= dict.fromkeys(rollout.orders)
    prompts = words.prompts([prompt for some in asked for prompt in some])
    places = {prompt: place for place, prompt in enumerate(prompts)}
    for one, some in zip(told, asked, strict=True):
        for reply, prompt in zip(one["replies"], some, strict=True):
            reply["prompt"] = places[prompt]
    run = "/".join(run_dir.absolute().parts[-2:])
    content = {
        "stage": stage,
        "run": run,
        "columns": [name for name in COLUMNS if name in columns],
        "orders": [*(name for name in ORDERS if name in orders), *(name for name in orders if name not in ORDERS)],
        "prompts": [as_text(text) for text in prompts.values()],
        "texts": list(texts),
        "rollouts": told,
        "view": view | {"prompt": places.get(view.get("prompt", ()))},
    }
    return render("report/rollouts.html.j2", None, content=content, run=run, linked=linked)


def _within(rollout: Rollout, tokens: int) -> list[Reply]:
    """Replies of so many tokens together, at least two, in the order of the file: of training the best and the worst in
    turn, of evaluations the first, whose prompts are those of the others."""
    ordered = rollout.replies
    if not rollout.held_out:
        best = rollout.sorted_by("reward")
        ordered = [reply for pair in zip(best, reversed(best), strict=True) for reply in pair][: len(best)]
    kept: list[Reply] = []
    for reply in ordered:
        tokens -= len(reply.response)
        if tokens < 0 and len(kept) > 1:
            break
        kept.append(reply)
    return sorted(kept, key=lambda reply: reply.number)


def _told(rollout: Rollout, kept: Sequence[Reply], words: Words, texts: dict[str, int]) -> dict[str, Any]:
    """As the page has it, but for the places of prompts; the texts of tokens are numbered in `texts`."""
    parts = [name for name in rollout.orders if name not in ORDERS]

    def reply_of(reply: Reply) -> dict[str, Any]:
        pieces = [texts.setdefault(as_text(piece), len(texts)) for piece in words.pieces(reply.response)]
        return {
            "number": reply.number,
            "place": as_text(reply.place),
            "kind": as_text(reply.kind),
            "ended": reply.ended,
            "tokens": pieces,
            "sums": {order: _short(reply.of(order)) for order in rollout.orders},
            "numbers": {name: [_short(x, 3) for x in values] for name, values in reply.numbers.items()},
        }

    return {
        "step": rollout.step,
        "heldOut": rollout.held_out,
        "parts": parts,
        "all": len(rollout.replies),
        "means": {order: _short(rollout.mean(order)) for order in rollout.orders},
        "ended": _short(sum(reply.ended for reply in rollout.replies) / len(rollout.replies)),
        "replies": [reply_of(reply) for reply in kept],
    }


def _short(x: float, decimals: int = 9) -> float | int | None:
    """Three digits, so many behind the point at most; null for what was not measured."""
    if not math.isfinite(x):
        return None
    short = round(float(f"{x:.3g}"), decimals)
    return int(short) if short.is_integer() else short
