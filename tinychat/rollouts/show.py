"""Replies and the numbers of their tokens, for a terminal; as text alone where the output is none."""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tinychat.errors import UserError
from tinychat.runs.rollouts import COLUMNS, ORDERS, Reply, Rollout, Words, numbered, read, steps_of
from tinychat.runtime.terminal import as_text, output_console

NARROW = 100  # columns of a terminal in which two steps stand below each other
INDENT = 4
UP, DOWN, STRONG = "#d9730d", "#3b82d6", "#a855c7"
SURPRISES = (0.7, 2.3, 4.6)  # nats: probabilities of 0.5, 0.1 and 0.01
SHARES = {False: (0.15, 0.4, 0.75), True: (0.25, 0.5, 0.75)}  # of the scale, of what has signs and what has none
NO_SIGN = ("logprob", "entropy")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Look:
    """How tokens are shown."""

    words: Words
    by: str
    order: str
    scale: float  # what most numbers lie within
    numbers: bool  # below the tokens
    width: int
    prompts: Mapping[tuple[int, ...], str] = field(default_factory=dict)
    often: Mapping[int, int] = field(default_factory=dict)  # id() of a reply that stands for others too -> how many

    def level(self, x: float) -> int:
        """-3 to 3: how much of a token's colour."""
        if math.isnan(x):
            return 0
        bounds = SURPRISES if self.by == "logprob" else [share * self.scale for share in SHARES[self.by in NO_SIGN]]
        size = sum(abs(x) >= bound for bound in bounds)
        return -size if x < 0 and self.by not in NO_SIGN else size

    def style(self, x: float) -> str:
        level = self.level(x)
        colour = STRONG if self.by in NO_SIGN else DOWN if level < 0 else UP
        return f"{('', '', 'bold ', 'bold reverse ')[abs(level)]}{colour}" if level else ""

    def legend(self) -> Text:
        meaning = COLUMNS[self.by][2]
        if self.numbers:
            return Text(f"below each token: {meaning}", style="dim")
        bounds = [-x for x in SURPRISES] if self.by == "logprob" else [x * self.scale for x in SHARES[False]]
        if self.by not in NO_SIGN:
            bounds = [*(-x for x in reversed(bounds)), *bounds]
        text = Text().append(f"{meaning}: ", style="dim")
        for x in bounds:
            text.append(f"{x:.2g}", style=self.style(x)).append("  ")
        return text


def look_of(args: argparse.Namespace, console: Console, words: Words, replies: Iterable[Reply]) -> Look:
    """For some replies, on one scale."""
    sizes = sorted(abs(x) for reply in replies for x in reply.numbers.get(args.by, ()) if math.isfinite(x))
    scale = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
    plain = args.numbers or not console.is_terminal or console.no_color or console.color_system is None
    return Look(words, args.by, args.sort, scale or 1.0, plain, console.width)


def show(args: argparse.Namespace, run_dir: Path, rollouts: Sequence[Rollout], words: Words) -> None:
    """The replies of a step, or of two beside each other."""
    console = output_console()
    chosen, rollouts = rollouts[0], sorted(rollouts, key=lambda one: one.step)
    look = look_of(args, console, words, [reply for one in rollouts for reply in one.replies])
    often = {id(reply): count for one in rollouts for reply, count in one.distinct(args.sort)}
    prompts = words.prompts([reply.prompt for one in rollouts for reply in one.replies])
    look = replace(look, prompts=prompts, often=often)
    console.print(as_text(f"{'/'.join(run_dir.absolute().parts[-2:])}, by {args.sort}"), style="bold")
    for one in rollouts:
        console.print(as_text(summary(one)))
    console.print(look.legend())
    rows, common = _rows(rollouts, chosen, args.sort)
    if len(rollouts) > 1 and not common:
        console.print("these steps had other prompts: beside each other is what has the same rank", style="dim")
    for number, row in _ends(rows, args.top or 0, args.bottom or 0):
        console.print()
        if row is None:
            console.print(f"... {number:,} between", style="dim")
        elif len(rollouts) == 1:
            console.print(_block(row[0], look, number))
        else:
            console.print(_beside(row, look, number, rollouts))


def _rows(rollouts: Sequence[Rollout], chosen: Rollout, order: str) -> tuple[list[list[Reply | None]], bool]:
    """What stands beside each other, and whether that is because of the prompts: of two steps with the same prompts the
    replies to each, sorted by those of the chosen step; else those of the same rank."""
    lists = [[reply for reply, _ in one.distinct(order)] for one in rollouts]
    if len(lists) == 1:
        return [[reply] for reply in lists[0]], False
    if not {reply.prompt for reply in lists[0]} & {reply.prompt for reply in lists[1]}:
        return [list(row) for row in itertools.zip_longest(*lists)], False
    place = rollouts.index(chosen)
    left = list(lists[1 - place])
    found: list[list[Reply | None]] = []
    for reply in lists[place]:
        other = next((one for one in left if one.prompt == reply.prompt), None)
        if other is not None:
            left.remove(other)
        found.append([other, reply] if place else [reply, other])
    return found + [[reply, None] if place else [None, reply] for reply in left], True


def _ends(rows: Sequence[Item], top: int, bottom: int) -> list[tuple[int, Item | None]]:
    """(rank from 1, row) of the first and the last; between them (how many are left out, None)."""
    numbered: list[tuple[int, Item | None]] = list(enumerate(rows, 1))
    if top + bottom >= len(rows):
        return numbered
    between = [(len(rows) - top - bottom, None)] if top and bottom else []
    return numbered[:top] + between + (numbered[-bottom:] if bottom else [])


def summary(rollout: Rollout) -> str:
    """step 16: 128 replies; mean reward 0.868, KL 0.444, length 16.3; 100 % ended"""
    names = ["reward", *(name for name in ("kl", "length") if name in rollout.orders)]
    names += [name for name in rollout.orders if name not in ORDERS]
    means = ", ".join(f"{_called(name)} {_short(rollout.mean(name))}" for name in names)
    ended = sum(reply.ended for reply in rollout.replies) / len(rollout.replies)
    which = f"{'evaluation at ' if rollout.held_out else ''}{_step(rollout)}"
    return f"{which}: {len(rollout.replies):,} replies; mean {means}; {ended:.0%} ended"


def _step(rollout: Rollout) -> str:
    return f"step {rollout.step}" + (" (the start)" if rollout.step == 0 else "")


def _called(name: str) -> str:
    return "KL" if name == "kl" else name


def _short(x: float) -> str:
    return "missing" if math.isnan(x) else f"{x:.3g}"


def _heading(reply: Reply, look: Look, label: str) -> Text:
    """Its numbers, that which it is sorted by first."""
    names = [look.order, *(name for name in ORDERS if name not in ("length", look.order))]
    names += [name for name in reply.parts if name != look.order]
    text = Text().append(f"{label} ", style="bold")
    told = [f"{_called(name)} {_short(x)}" for name in names if not math.isnan(x := reply.of(name)) or name == "reward"]
    text.append(as_text(told[0]), style="bold")
    more = [*told[1:], f"{len(reply.response)} tokens", *([] if reply.ended else ["cut at the limit"])]
    more += [reply.kind] if reply.kind else []
    others = look.often.get(id(reply), 1) - 1
    which = f"(reply {reply.number}{f' and {others} like it' if others else ''})"
    text.append(as_text(f"  {'  '.join([*more, which])}"), style="dim")
    return text


def _block(reply: Reply | None, look: Look, number: int | None, head: str = "", prompt: bool = True) -> Group:
    """A reply with its numbers, its prompt and its tokens."""
    if reply is None:
        return Group()
    label = head or (f"{number}." if number is not None else "")
    parts: list[Text | Padding] = [_heading(reply, look, label)]
    if prompt:
        parts.append(
            Padding(Text(as_text(look.prompts[reply.prompt]), style="italic"), (0, 0, 0, INDENT), expand=False)
        )
    parts.append(Padding(tokens(reply, look), (0, 0, 0, INDENT), expand=False))
    return Group(*parts)


def _beside(row: Sequence[Reply | None], look: Look, number: int, rollouts: Sequence[Rollout]) -> Table | Group:
    first, second = row
    same = first is not None and second is not None and first.prompt == second.prompt
    half = look if look.width < NARROW else replace(look, width=(look.width - 3) // 2)
    blocks = [
        _block(reply, half, number, f"{number}. step {one.step}:", prompt=not same)
        for reply, one in zip(row, rollouts, strict=True)
    ]
    above = [Text(as_text(look.prompts[first.prompt]), style="italic")] if same and first is not None else []
    if look.width < NARROW:
        return Group(*above, *blocks)
    table = Table.grid(padding=(0, 3, 0, 0), expand=True)
    for _ in blocks:
        table.add_column(ratio=1)
    table.add_row(*blocks)
    return Group(*above, table)


def tokens(reply: Reply, look: Look, fresh: frozenset[int] = frozenset()) -> Text:
    """The reply, each token coloured by its number, or with the number below it. fresh: places that are marked."""
    pieces = [as_text(piece) for piece in look.words.pieces(reply.response)]
    numbers = reply.numbers.get(look.by, [math.nan] * len(pieces))
    if not look.numbers:
        text = Text()
        for place, (piece, x) in enumerate(zip(pieces, numbers, strict=True)):
            shown = piece.replace("\n", "↵\n") or "∅"
            text.append(shown, style=f"{look.style(x)}{' underline' if place in fresh else ''}".strip())
        return text
    cells = []
    for place, (piece, x) in enumerate(zip(pieces, numbers, strict=True)):
        above = piece.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"
        below = "–" if math.isnan(x) else f"{round(x, 2) + 0.0:.2f}"
        cells.append((f"+{above}" if place in fresh else above, below))
    return Text("\n".join(_aligned(cells, look.width - INDENT)))


def _aligned(cells: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Lines of tokens, each with a line of their numbers below it."""
    lines, above, below, used = [], "", "", 0
    for token, number in cells:
        size = max(cell_len(token), len(number)) + 1
        if used and used + size > width:
            lines += [above.rstrip(), below.rstrip()]
            above, below, used = "", "", 0
        above += token + " " * (size - cell_len(token))
        below += number.ljust(size)
        used += size
    return [*lines, above.rstrip(), below.rstrip()]


# ---- one prompt over the steps


@dataclass(frozen=True)
class Seen:
    """A reply and where it was."""

    rollout: Rollout
    reply: Reply


def over_time(args: argparse.Namespace, run_dir: Path, first: Rollout, words: Words) -> None:
    """The replies to the prompts that args.prompt means, in the order of the steps. Raises UserError where there are
    none."""
    console = output_console()
    found, texts = _replies_to(args.prompt, run_dir, first, words)
    several = [prompt for prompt, seen in found.items() if len({(one.rollout.path) for one in seen}) > 1]
    chosen = several or list(found)
    shown = _evenly(chosen, (args.top or 0) + (args.bottom or 0))
    seen = [one for prompt in shown for one in found[prompt]]
    look = replace(look_of(args, console, words, [one.reply for one in seen]), prompts=texts)
    console.print(as_text(f"{'/'.join(run_dir.absolute().parts[-2:])}: {args.prompt}"), style="bold")
    console.print(look.legend())
    if several:
        console.print(f"{'+' if look.numbers else 'underlined'}: not in the reply before", style="dim")
    for prompt in shown:
        console.print()
        _over_time(console, found[prompt], look)
    console.print()
    if len(shown) < len(found):
        console.print(f"{len(found) - len(shown):,} more prompts have that text; --top shows more", style="dim")
    if not several:
        console.print(
            "each of these prompts came up at one step only; --by kl colours what has become likelier or less likely "
            "since the start",
            style="dim",
        )


def _replies_to(
    wanted: str, run_dir: Path, first: Rollout, words: Words
) -> tuple[dict[tuple[int, ...], list[Seen]], dict[tuple[int, ...], str]]:
    """The replies to each prompt that is wanted, and the prompts' texts. Raises UserError."""
    one = numbered(int(wanted), run_dir, first) if wanted.isdecimal() else None
    found: dict[tuple[int, ...], list[Seen]] = {}
    texts: dict[tuple[int, ...], str] = {}
    for held_out in (True, False):
        for step in steps_of(run_dir, held_out):
            rollout = read(run_dir, step, held_out)
            own = words.prompts([reply.prompt for reply in rollout.replies])
            for reply in rollout.replies:
                text = own[reply.prompt]
                if reply.prompt == one if one is not None else wanted.lower() in text.lower():
                    found.setdefault(reply.prompt, []).append(Seen(rollout, reply))
                    texts[reply.prompt] = text
    if not found:
        raise UserError(f"--prompt {wanted}: no prompt of {run_dir} has that text")
    return found, texts


def _evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // max(1, most - 1)] for index in range(most)]


def _over_time(console: Console, seen: Sequence[Seen], look: Look) -> None:
    console.print(Text(as_text(look.prompts[seen[0].reply.prompt]), style="italic"))
    before: Reply | None = None
    for one in seen:
        reply, which = one.reply, f"{_step(one.rollout)}{', held out' if one.rollout.held_out else ''}:"
        fresh = frozenset() if before is None else _added(before.response, reply.response)
        same = before is not None and reply.response == before.response
        console.print(_heading(reply, look, which).append("  the same reply" if same else ""))
        console.print(Padding(tokens(reply, look, fresh), (0, 0, 0, INDENT), expand=False))
        before = reply
    if len(seen) > 1:
        ends = seen[0].reply, seen[-1].reply
        told = [
            f"{_called(name)} {_short(ends[0].of(name))} → {_short(ends[1].of(name))}"
            for name in ("reward", "kl")
            if not any(math.isnan(end.of(name)) for end in ends)
        ]
        console.print(f"from the first to the last: {', '.join(told)}", style="dim")


def _added(before: Sequence[int], after: Sequence[int]) -> frozenset[int]:
    """Places in `after` that are no part of what it has in common with `before`."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    kept = {place for block in matcher.get_matching_blocks() for place in range(block.b, block.b + block.size)}
    return frozenset(range(len(after))) - kept
