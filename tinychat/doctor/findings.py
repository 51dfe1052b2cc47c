"""What the doctor found: one line for each check, why it matters, and what to change where it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from tinychat.errors import UserError
from tinychat.runtime.terminal import as_text

if TYPE_CHECKING:
    from rich.table import Table


class Verdict(Enum):
    passed = "pass"
    failed = "FAIL"
    skipped = "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that is looked at."""

    title: str
    why: str  # it matters
    change: str  # where it fails


CHECKS = {
    "mask": Check(
        "template and mask",
        "what stands outside the mask is never learnt; what is inside is imitated",
        "another template=, or the marks of replies in template.path; longer stage.context_length",
    ),
    "end learnt": Check(
        "end token trained",
        "without it in the mask a model never learns to stop",
        "a template whose replies contain their end token; raise stage.context_length or stage.response_length",
    ),
    "end token": Check(
        "replies end there",
        "tokens behind the end would be scored and learnt",
        "replies must be cut after their first end token",
    ),
    "end drawn": Check(
        "end token generated",
        "replies that cannot end are cut, and none is learnt whole",
        "start from a checkpoint of SFT in this template; raise stage.response_length",
    ),
    "pad token": Check(
        "padding is no end",
        "a mask made from padding would hide the end of replies",
        "a tokenizer with a pad token of its own",
    ),
    "padding": Check(
        "padding changes nothing",
        "else a row's neighbours decide what is learnt from it",
        "a model that heeds attention_mask and position_ids",
    ),
    "dropout": Check(
        "dropout off",
        "units dropped at random make the ratio differ from 1 before anything is learnt",
        "dropout 0 in the model",
    ),
    "ratio": Check(
        "ratio 1 at the start",
        "clipping would act on noise from the first update on",
        "what is random, or differs between training and evaluation; precision=fp32 tells rounding apart",
    ),
    "sampler": Check(
        "sampler = trainer",
        "replies must come from the policy that learns from them",
        "the same temperature, positions and cache on both sides; precision=fp32 tells rounding apart",
    ),
    "draws": Check(
        "whole distribution drawn",
        "top-k, top-p or another temperature draw from another policy than the one that learns; its KL can be negative",
        "sample without top-k and top-p, at stage.temperature",
    ),
    "reference": Check(
        "reference in evaluation",
        "a reference that drops units at random is another model in each pass",
        "reference.eval() before it is called",
    ),
    "kl": Check(
        "KL 0 at the start",
        "the penalty would pull towards something else than the start",
        "the reference must be the checkpoint that the policy starts from",
    ),
    "start": Check(
        "policy = reference (ln 2)",
        "the loss begins at ln 2 (sigmoid), else training pulls towards something else",
        "the same weights, tokens and precision on both sides, dropout off",
    ),
    "reward repeats": Check(
        "reward repeatable",
        "a reward that changes is noise, whatever the reply",
        "evaluation mode, no randomness in reward code, no dependence on the other replies",
    ),
    "reward differs": Check(
        "reward not constant",
        "equal rewards teach nothing",
        "other prompts or another reward; a higher stage.temperature or stage.group_size",
    ),
    "scores": Check(
        "scores unpadded",
        "a reward model that reads padding scores the neighbours",
        "a reward model that reads its last real token",
    ),
    "micro-batches": Check(
        "micro-batch invariance",
        "how a batch is split must not change what is learnt",
        "divide each micro-batch's sum by the count of the whole batch, once",
    ),
    "ranks": Check(
        "rank invariance",
        "more ranks must not change what is learnt",
        "divide by the count over all ranks, once; shuffle by seed and step alone",
    ),
    "resume": Check(
        "save, load, same step",
        "a resumed run must go on as if nothing had happened",
        "save everything that a step changes",
    ),
    "memory": Check(
        "memory against plan=",
        "a job that takes more than planned dies late",
        "a smaller stage.micro_batch_size, or activation_checkpointing=true",
    ),
    "first step": Check(
        "first step",
        "a loss that is not finite, or a stage that refuses its own start",
        "what it says",
    ),
}


@dataclass(frozen=True)
class Finding:
    check: str  # of CHECKS; scores of several reward models have their names behind a space
    verdict: Verdict
    said: str  # what was found

    @property
    def key(self) -> str:
        return self.check if self.check in CHECKS else self.check.split()[0]

    @property
    def about(self) -> Check:
        return CHECKS[self.key]


@dataclass
class Findings:
    """In the order in which they were found."""

    rows: list[Finding] = field(default_factory=list)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.rows)

    def add(self, check: str, passes: bool | None, said: str) -> None:
        """passes: None where it was skipped."""
        verdict = Verdict.skipped if passes is None else Verdict.passed if passes else Verdict.failed
        self.rows.append(Finding(check, verdict, said))

    def ask(self, check: str, look: Callable[[], str]) -> None:
        """What `look` says, or the reason of its UserError."""
        try:
            self.add(check, True, look())
        except UserError as error:
            self.add(check, False, str(error).removeprefix("self-check: ").removesuffix("; training is refused"))

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self if finding.verdict is Verdict.failed]

    def table(self) -> Table:
        from rich.table import Table

        table = Table()
        more = ["what to change"] if self.failed else []
        for name in ("", "check", "found", "why it matters", *more):
            table.add_column(name, overflow="fold")
        styles = {Verdict.passed: "green", Verdict.failed: "bold red", Verdict.skipped: "dim"}
        order = list(CHECKS)
        for finding in sorted(self, key=lambda finding: order.index(finding.key)):
            about = finding.about
            cells = [finding.verdict.value, about.title, finding.said, about.why]
            if self.failed:
                cells.append(about.change if finding.verdict is Verdict.failed else "")
            table.add_row(*map(as_text, cells), style=styles[finding.verdict])
        return table
