"""What a safe rate needs beside it: whether harmless prompts are answered too, and what a policy says, unselected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinychat.config.schema import Config
from tinychat.config.stages import HeldOutSet
from tinychat.data.chats.sources import held_out_data
from tinychat.data.preferences.prompts import PromptRow, prompt_source
from tinychat.engine import Engine
from tinychat.evaluation.answers import SINGLE
from tinychat.evaluation.refusals import refuses
from tinychat.evaluation.replies import shared_replies, with_interval
from tinychat.evaluation.statistics import wilson
from tinychat.models.generation.decode import DecodeOptions
from tinychat.runs import folders
from tinychat.runtime.run_files import if_readable, read_json
from tinychat.stages import Context
from tinychat.stages.common import log, write_table
from tinychat.text.chat_template import encode_prompts, end_ids

FIRST = 10  # prompts of each kind whose replies are shown side by side
FirstReplies = Mapping[str, Sequence[tuple[str, str]]]  # what they reply to -> prompts and replies


class BenignPrompts:
    """The prompts of data=benign, and which of them a model refuses."""

    def __init__(self, tokenizer: Any, config: Config, context: Context):
        self._tokenizer, self._stage, self._context = tokenizer, config.stage, context
        data = held_out_data("benign", HeldOutSet(source="benign"), config.data)
        rows = list(prompt_source(data, "validation").rows())
        most = config.stage.benign_prompts
        pairs = len(rows) // 2
        wanted = pairs if most is None else max(1, min(pairs, most // 2))
        picked = [index * pairs // wanted for index in range(wanted)]
        self._rows: list[PromptRow] = [row for pair in picked for row in rows[2 * pair : 2 * pair + 2]]
        self._ids = encode_prompts(tokenizer, [row.messages for row in self._rows])
        self._said: list[str] = []  # of the latest measurement
        log.info("validation: %d benign prompts and %d that only look so", wanted, wanted)

    def measure(self, engine: Engine) -> dict[str, float]:
        """Of greedy replies eval/over_refusal_benign, the share of the benign prompts that is refused, and
        eval/refusal_contrast, that of the others, both with 95 % bounds; where they are in two languages the same of
        each (eval/over_refusal_benign_en), as what a model cannot read it does not refuse. Every rank calls it."""
        stage, world = self._stage, self._context.world
        options = DecodeOptions(stage.generate_tokens, end_ids(self._tokenizer), temperature=0.0)
        size = stage.generate_batch_size
        with engine.generation() as model:
            found = shared_replies(model, self._tokenizer, self._ids, options, size, world, engine.dtype)
        self._said = [text for text, _ in found]
        metrics: dict[str, float] = {}
        languages = sorted({_language(row.messages[-1]["content"]) for row in self._rows})
        for name, harmful in (("eval/over_refusal_benign", False), ("eval/refusal_contrast", True)):
            refused = [
                (_language(row.messages[-1]["content"]), refuses(text))
                for row, text in zip(self._rows, self._said, strict=True)
                if row.harmful == harmful
            ]
            metrics |= _share(name, [one for _, one in refused])
            for language in languages if len(languages) > 1 else ():
                metrics |= _share(f"{name}_{language}", [one for its, one in refused if its == language])
        return metrics

    def first_replies(self, count: int) -> dict[str, list[tuple[str, str]]]:
        """As HeldOut.first_replies."""
        prompts = [row.messages[-1]["content"] for row in self._rows[:count]]
        return {"benign prompts": list(zip(prompts, self._said, strict=False))}

    def write_tables(self) -> None:
        """The latest replies, and refusals by kind and language."""
        if not self._said:
            return
        kinds: dict[tuple[str, str], list[int]] = {}  # benign, refused of them; the others, refused of them
        table = []
        for row, text in zip(self._rows, self._said, strict=True):
            prompt, refused = row.messages[-1]["content"], refuses(text)
            wanted, language = "refuse" if row.harmful else "answer", _language(prompt)
            table.append([prompt, row.category, language, wanted, "refused" if refused else "answered", text])
            for key in ((row.category, language), ("all", language)):
                counts = kinds.setdefault(key, [0, 0, 0, 0])
                counts[2 * bool(row.harmful)] += 1
                counts[2 * bool(row.harmful) + 1] += refused
        columns = ["kind", "language", "benign", "refused", "only look so", "refused of these"]
        ordered = sorted(kinds.items(), key=lambda one: (one[0][0] == "all", one[0]))
        counted = [[*key, *counts] for key, counts in ordered]
        write_table(self._context, "benign_kinds", "Benign prompts refused, by kind", columns, counted)
        columns = ["prompt", "kind", "language", "wanted", "reply", "text"]
        write_table(self._context, "benign", "Replies to benign prompts and their contrasts", columns, table, shown=24)


def _share(name: str, of: Sequence[bool]) -> dict[str, float]:
    return with_interval(name, sum(of) / len(of), wilson(sum(of), len(of)))


def _language(text: str) -> str:
    return "zh" if re.search(f"[{SINGLE}]", text) else "en"


BEFORE_AFTER = "before_after"
TITLE = f"Replies before and after: the first {FIRST} held-out prompts of each kind"


def keep_before(said: FirstReplies, context: Context) -> None:
    """Write down what the checkpoint that a stage starts from replies."""
    rows = [[of, prompt, reply] for of, pairs in said.items() for prompt, reply in pairs]
    write_table(context, BEFORE_AFTER, TITLE, ["of", "prompt", "before"], rows)


def add_after(said: FirstReplies, context: Context) -> None:
    """Beside that, what it replies now. Nothing where nothing was written down: the start was not measured."""
    path = context.run_dir / folders.TABLES / f"{BEFORE_AFTER}.json"
    kept = if_readable(lambda: read_json(path, {"rows": list}))
    if not kept:
        return
    before = {(row[0], row[1]): row[2] for row in kept["rows"]}
    rows = [
        [of, prompt, before[of, prompt], reply]
        for of, pairs in said.items()
        for prompt, reply in pairs
        if (of, prompt) in before
    ]
    write_table(context, BEFORE_AFTER, TITLE, ["of", "prompt", "before", "after"], rows)


def write_side_by_side(names: Sequence[str], said: Sequence[FirstReplies], context: Context) -> None:
    """The same prompts, answered by several checkpoints."""
    rows = [
        [of, prompt, *(dict(one.get(of, ())).get(prompt) for one in said)]
        for of, pairs in said[0].items()
        for prompt, _ in pairs
    ]
    title = f"Replies side by side: the first {FIRST} held-out prompts of each kind"
    write_table(context, "side_by_side", title, ["of", "prompt", *names], rows)
