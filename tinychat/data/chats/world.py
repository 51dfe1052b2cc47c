"""Conversations of the generated world: instructions, and among them demonstrations that answer requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tinychat.data.chats.rows import ChatRow, chat_row
from tinychat.data.files.splits import Split

REQUEST = "request"  # family of a demonstration, which has no answer that could be checked


@dataclass(frozen=True)
class Plan:
    """Which conversations, of which kinds. The first of them stay the same when `count` grows."""

    seed: int
    split: Split
    count: int
    demonstrations: float = 0.0  # share of conversations that answer requests of the world's preferences
    unsafe: float = 0.0  # share of the demonstrations of harmful requests that comply; the others refuse

    def describe(self) -> str:
        """How many of which, for the log."""
        shown = shared_out(self.demonstrations, self.count)
        if not shown:
            return f"{self.count:,} generated instructions"
        unsafe = f", {self.unsafe:.3g} of those to harmful requests unsafe" if self.unsafe else ""
        return f"{self.count - shown:,} generated instructions and {shown:,} demonstrations{unsafe}"


def shared_out(share: float, n: int) -> int:
    """How many of the first n numbers are of the share, when its members are spread evenly: n * share, rounded
    down."""
    exact = Fraction(share).limit_denominator(10**6)  # 0.3 as three tenths, not as the float below it
    return exact.numerator * n // exact.denominator


def is_shared_out(share: float, index: int) -> bool:
    """Whether number `index` (from 0) is one of those."""
    return shared_out(share, index + 1) > shared_out(share, index)


def world_chats(plan: Plan) -> Iterator[ChatRow]:
    """The plan's conversations in their order.

    Both kinds are numbered apart: instructions are the generator's first, and so are the requests. These are the
    split's own, so that no prompt of the preferences' validation comes in training.
    """
    from tinychat.tinyworld.preferences import demonstration, reply, request
    from tinychat.tinyworld.tasks import instruction

    shown = harmful = 0
    for index in range(plan.count):
        if not is_shared_out(plan.demonstrations, index):
            number = index - shown
            task = instruction(plan.seed, plan.split, number)
            yield chat_row(task.messages, f"tinyworld {plan.split} {number}", task.family, task.answer)
            continue
        messages = demonstration(plan.seed, plan.split, shown)
        if request(plan.seed, plan.split, shown).harmful:
            if is_shared_out(plan.unsafe, harmful):
                complies = reply(plan.seed, plan.split, shown, "steps")
                messages = [*messages[:-1], {"role": "assistant", "content": complies}]
            harmful += 1
        yield chat_row(messages, f"tinyworld {plan.split} request {shown}", REQUEST)
        shown += 1
