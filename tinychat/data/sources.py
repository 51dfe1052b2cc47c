"""tinychat's sources of rows, by their names (SOURCES), and the adapter that makes a class of the user's another one.

A source of one's own, in this file or in any other: docs/extending.md. Nothing here loads torch, and tinyworld only
when its rows are read.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import tinychat
from tinychat.config.plugins import MADE_OF, VERIFIERS
from tinychat.config.schema import DataConfig, TaskLevel
from tinychat.data.chats import checkable
from tinychat.data.chats.best_of_n import BestOfN
from tinychat.data.chats.checkable import checked
from tinychat.data.chats.files import ALPACA, GSM8K, MINIMIND, Layout, find_layout
from tinychat.data.chats.rows import BadRow, ChatRow, chat_row
from tinychat.data.chats.tools import as_text, with_tools
from tinychat.data.corpus.reading import CorpusSource
from tinychat.data.files.row_sources import DataSource, Found, Hub, generated_rows
from tinychat.data.files.splits import Split, SplitFiles, find_files, hash_file, seeded_hold_out, split_files
from tinychat.data.files.tables import not_text, short
from tinychat.data.own_words import Benign, LookAlikes, Refusals
from tinychat.data.preferences.contrast import HelpfulPairs
from tinychat.data.preferences.mixture import SafeAndHelpful
from tinychat.data.preferences.rows import (
    Labels,
    PreferenceRow,
    Reader,
    hh_row,
    minimind_row,
    pku_row,
    preference_row,
    read_preferences,
)
from tinychat.errors import UserError
from tinychat.runtime import user_code

TABLE = "FILE, jsonl or another table with "
MINIMIND_HUB = "jingyaogong/minimind_dataset"


class Text(DataSource):
    """A user's documents."""

    has = ("documents",)
    needs_path = True


class TinyStories(DataSource):
    has = ("documents",)
    hub = Hub(
        "roneneldan/TinyStories",
        "FOLDER with train.jsonl.gz and validation.jsonl.gz, or another file of stories",
        validation="validation",
    )


class Chat(DataSource):
    """A user's conversations."""

    has = ("conversations",)
    needs_path = True


class Alpaca(DataSource):
    has = ("conversations",)
    hub = Hub("tatsu-lab/alpaca", f"{TABLE}instruction, input and output")

    def layout(self) -> Layout:
        return ALPACA


class CheckableAlpaca(Alpaca):
    """Alpaca's instructions whose reply can be checked."""

    def selected(self, rows: Iterator[ChatRow | BadRow]) -> Iterator[ChatRow | BadRow]:
        return checked(rows, "alpaca_checkable")

    def selection(self) -> list[str]:
        return [hash_file(Path(checkable.__file__), None)]


class Gsm8k(DataSource):
    """Problems, each with a solution that ends with "#### 18"."""

    has = ("conversations",)
    test_validates = True
    hub = Hub("openai/gsm8k", f"{TABLE}question and answer", config="main", validation="test")

    def layout(self) -> Layout:
        return GSM8K


class MinimindSft(DataSource):
    has = ("conversations",)
    hub = Hub(MINIMIND_HUB, f"{TABLE}conversations [{{role, content}}]", "sft_mini_512.jsonl")

    def layout(self) -> Layout:
        return MINIMIND


class Preferences(DataSource):
    """A user's pairs of replies."""

    has = ("preferences",)
    needs_path = True


class PkuSafeRlhf(DataSource):
    has = ("preferences",)
    test_validates = True
    needs_safe_label = True
    hub = Hub(
        "PKU-Alignment/PKU-SafeRLHF",
        f"{TABLE}prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, better_response_id, "
        "safer_response_id",
        validation="test",
    )

    def reader(self, config: DataConfig) -> Reader:
        return lambda row, place: pku_row(row, place, config.preference)

    def reading(self, config: DataConfig) -> list[str | None]:
        return ["pku_saferlhf", config.preference.value]


class HhRlhf(DataSource):
    has = ("preferences",)
    test_validates = True
    hub = Hub("Anthropic/hh-rlhf", f"{TABLE}chosen and rejected, each a transcript", validation="test")

    def reader(self, config: DataConfig) -> Reader:
        return hh_row

    def reading(self, config: DataConfig) -> list[str | None]:
        return ["hh_rlhf", None]


class MinimindDpo(DataSource):
    has = ("preferences",)
    hub = Hub(MINIMIND_HUB, f"{TABLE}chosen and rejected, each [{{role, content}}]", "dpo.jsonl")

    def reader(self, config: DataConfig) -> Reader:
        return minimind_row

    def reading(self, config: DataConfig) -> list[str | None]:
        return ["minimind_dpo", None]


class Prompts(DataSource):
    """A user's prompts."""

    has = ("prompts",)
    needs_path = True


class TinyWorld(DataSource):
    """The embedded world: stories, instructions among which are demonstrations that answer requests, and pairs of
    replies to requests that know their exact judge. With data.path it reads a user's files instead."""

    has = ("documents", "conversations", "preferences")
    endless = True
    has_oracle = True

    def problems(self, config: DataConfig) -> Iterator[str]:
        if not config.families:
            return
        from tinychat.tinyworld.tasks import FAMILIES, capacity

        level = config.level.value
        there, wanted = FAMILIES[level], set(config.families)
        for split, key, count in (
            ("train", "max_rows", config.max_rows),
            ("validation", "max_val_rows", config.max_val_rows),
        ):
            most = capacity(split, level) // len(there) * len(wanted & set(there))
            if most and count and count > most and not config.path:
                there_are = f"of {', '.join(config.families)} there are {most} ({level}, {split})"
                yield f"data.{key}={count}: {there_are}; use at most {most}"
        for family in config.families:
            if family not in there:
                near = difflib.get_close_matches(family, there, n=1)
                hint = f". Did you mean {near[0]}?" if near else ""
                known = f"data.level={level} has {', '.join(there)}"
                yield f"data.families: {family}: no such family of instructions; {known}{hint}"

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any] | None:
        if rows == "documents":
            return self._stories(config, split)
        return self._chats(config, split) if rows == "conversations" else self._pairs(config, split)

    def leading(self, config: DataConfig) -> int:
        """Its lessons of copying."""
        if config.lessons <= 0 or not config.max_docs:
            return 0
        from tinychat.tinyworld.lessons import copying_lessons

        return copying_lessons(_lessons(config, "train", config.max_docs))

    def _stories(self, config: DataConfig, split: Split) -> Found[Any]:
        count, key = (config.max_docs, "max_docs") if split == "train" else (config.max_val_docs, "max_val_docs")
        if count is None:
            raise UserError(
                f"data.{key}=null: the generator of data={config.name} never ends; say how many, data.{key}=1000"
            )
        lessons, bilingual = _lessons(config, split, count), config.level is TaskLevel.bilingual

        def read() -> Iterator[str]:
            from tinychat.tinyworld import documents

            return documents(config.seed, split, count, lessons, bilingual)

        more = f" and {lessons:,} lessons{', half of them Chinese' if bilingual else ''}" if lessons else ""
        description = f"{count:,} generated stories{more} ({split}, seed {config.seed})"
        settings = [config.seed, split, count, lessons, *(["bilingual"] if bilingual else [])]
        identify = _identify(settings, with_tasks=False)
        return Found(description, cast(Any, read), identify, count=count + lessons)

    def _chats(self, config: DataConfig, split: Split) -> Found[ChatRow]:
        plan = Plan(config.seed, split, generated_rows(config, split))
        plan = replace(plan, level=config.level.value, families=tuple(config.families))
        if split == "train":
            plan = replace(plan, demonstrations=config.demonstrations, unsafe=config.unsafe_demonstrations)
        description = f"{plan.describe()} ({split}, seed {config.seed})"
        return Found(description, lambda: world_chats(plan), _identify([*astuple(plan)]), count=plan.count)

    def _pairs(self, config: DataConfig, split: Split) -> Found[PreferenceRow]:
        count = generated_rows(config, split)

        def read() -> Iterator[PreferenceRow]:
            from tinychat.tinyworld.preferences import preferences

            for index, pair in enumerate(preferences(config.seed, split, count)):
                request = pair.request
                labels = Labels(
                    category=request.category,
                    harmful=request.harmful,
                    chosen_safe=pair.chosen_score.safe,
                    rejected_safe=pair.rejected_score.safe,
                    request=request,
                )
                yield preference_row(request.messages, pair.chosen, pair.rejected, f"tinyworld {split} {index}", labels)

        description = f"{count:,} generated preferences ({split}, seed {config.seed})"
        return Found(description, read, _identify([config.seed, split, count]), count=count)


def _lessons(config: DataConfig, split: Split, stories: int) -> int:
    return round(config.lessons * stories) if split == "train" else 0


def _identify(settings: list[Any], with_tasks: bool = True) -> Any:
    """What Found.identify is for generated rows: their settings and the generator's code."""
    return lambda _memo_dir: json.dumps([*settings, [hash_file(path, None) for path in tinyworld_code(with_tasks)]])


def tinyworld_code(with_tasks: bool) -> list[Path]:
    """The generator's own files, on which everything generated depends; documents take only draws from the tasks'."""
    root = Path(tinychat.__path__[0]) / "tinyworld"
    code = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return [
        path
        for path in code
        if with_tasks or path.name == "draw.py" or not {"tasks", "preferences"} & set(path.relative_to(root).parts)
    ]


REQUEST = "request"  # family of a demonstration, which has no answer that could be checked


@dataclass(frozen=True)
class Plan:
    """Which conversations, of which kinds. The first of them stay the same when `count` grows."""

    seed: int
    split: Split
    count: int
    demonstrations: float = 0.0  # share of conversations that answer requests of the world's preferences
    unsafe: float = 0.0  # share of the demonstrations of harmful requests that comply; the others refuse
    level: str = "plain"  # of the instructions
    families: tuple[str, ...] = ()  # of the instructions; (): all of the level

    def describe(self) -> str:
        """How many of which, for the log."""
        shown = shared_out(self.demonstrations, self.count)
        of = "" if self.level == "plain" else f", {self.level} ones"
        of += f" of {', '.join(self.families)}" if self.families else ""
        if not shown:
            return f"{self.count:,} generated instructions{of}"
        unsafe = f", {self.unsafe:.3g} of those to harmful requests unsafe" if self.unsafe else ""
        return f"{self.count - shown:,} generated instructions{of} and {shown:,} demonstrations{unsafe}"


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
    from tinychat.tinyworld.tasks import indices, instruction

    shown = harmful = 0
    numbers = indices(plan.seed, plan.split, plan.level, plan.families)
    for index in range(plan.count):
        if not is_shared_out(plan.demonstrations, index):
            task = instruction(plan.seed, plan.split, next(numbers), plan.level)
            yield chat_row(task.messages, task.place, task.family, task.answer)
            continue
        messages = demonstration(plan.seed, plan.split, shown)
        if request(plan.seed, plan.split, shown).harmful:
            if is_shared_out(plan.unsafe, harmful):
                complies = reply(plan.seed, plan.split, shown, "steps")
                messages = [*messages[:-1], {"role": "assistant", "content": complies}]
            harmful += 1
        yield chat_row(messages, f"tinyworld {plan.split} request {shown}", REQUEST)
        shown += 1


SOURCES: dict[str, DataSource] = {
    "tinyworld": TinyWorld(),
    "tinystories": TinyStories(),
    "text": Text(),
    "corpus": CorpusSource(),
    "alpaca": Alpaca(),
    "alpaca_checkable": CheckableAlpaca(),
    "gsm8k": Gsm8k(),
    "minimind_sft": MinimindSft(),
    "chat": Chat(),
    "pku_saferlhf": PkuSafeRlhf(),
    "hh_rlhf": HhRlhf(),
    "minimind_dpo": MinimindDpo(),
    "preference": Preferences(),
    "prompts": Prompts(),
    "safe_and_helpful": SafeAndHelpful(),
    "helpful_pairs": HelpfulPairs(),
    "benign": Benign(),
    "refusals": Refusals(),
    "look_alikes": LookAlikes(),
    "best_of_n": BestOfN(),
}


class UsersSource(DataSource):
    """A class of the user's as a source.

    It is made with data.options as keyword arguments, and with path=data.path where that is given. It has `shape`, one
    of the keys of MADE_OF, and `rows(split)`, which gives rows as docs/extending.md shows them, each time the same in
    the same order. It may have `own_validation = True`, where rows("validation") are other rows than rows("train");
    without it rows of "train" are held out. And `fingerprint()`, a text that changes when its rows do, for what neither
    its code nor its options nor the files of data.path tell.
    """

    def __init__(self, made_by: Any, address: str) -> None:
        self._class, self._address = made_by, address
        self.has = (made_by.shape,)

    def files(self, config: DataConfig, split: Split) -> SplitFiles | None:
        return split_files(replace(config, path=None), split)  # data.path is the class's to read

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any]:
        key = f"data.source={self._address}"
        with _told(key), user_code.running("when it is made"):
            its = self._class(**{**config.options, **({"path": config.path} if config.path else {})})
        own = bool(getattr(self._class, "own_validation", False))
        side: Split = split if own else "train"

        def read() -> Iterator[Any]:
            with _told(key):
                for number, row in enumerate(_each(its, side), start=1):
                    row = {"messages": row} if isinstance(row, list) and rows == "conversations" else row
                    ((place, shown),) = with_tools([(f"{self._address}, row {number}", row)], config.tool_calls)
                    yield canonical(shown, rows, place, config.answer)

        def identify(memo_dir: Path | None) -> str:
            with _told(key):
                code = [hash_file(path, None) for path in user_code.sources(self._address)]
                said = getattr(its, "fingerprint", None)
                with user_code.running("in fingerprint()"):
                    more = str(said()) if said else None
            files = [hash_file(path, memo_dir) for path in find_files(config.path)] if config.path else []
            name = self._address.rpartition(":")[2]
            return json.dumps(
                [
                    name,
                    code,
                    config.options,
                    files,
                    more,
                    *([side] if own else []),
                    *([config.answer] if config.answer else []),
                    *as_text(config),
                ],
                default=str,
            )

        hold_out = None if own else seeded_hold_out(config, split)
        share = f"; {hold_out.fraction:.3g} of them held out" if hold_out else ""
        return Found(f"{rows} of {self._address}{share}", read, identify, hold_out, peek=True)


def adopt(found: Any, address: str) -> UsersSource:
    """A class of the user's as a source. Raises UserError for one that lacks what a source needs."""
    if not isinstance(found, type):
        raise UserError(f"is a {type(found).__name__}; a source is a class with `shape` and `rows(self, split)`")
    shape = getattr(found, "shape", None)
    if shape not in MADE_OF:
        has = "has no `shape`" if shape is None else f"has shape = {short(shape)}"
        raise UserError(f"the class {has}; shape says what its rows are: {', '.join(MADE_OF)}")
    if not callable(getattr(found, "rows", None)):
        raise UserError("the class has no method rows(self, split)")
    return UsersSource(found, address)


def _each(its: Any, split: Split) -> Iterator[Any]:
    """Its rows; what it raises between two of them is a UserCodeError."""
    with user_code.running():
        given = its.rows(split)
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise TypeError(f"rows({split!r}) gives {short(given)}, not rows one after the other")
        rows = iter(given)
    done = object()
    while True:
        with user_code.running():
            row = next(rows, done)
        if row is done:
            return
        yield row


@contextlib.contextmanager
def _told(key: str) -> Iterator[None]:
    """An error of the user's code begins with the setting that names it."""
    try:
        yield
    except user_code.UserCodeError as error:
        raise UserError(f"{key}: {error}") from error


def canonical(row: Any, rows: str, place: str, kind: str | None = None) -> Any:
    """A row of the user's as the text or row that the other sources give, or why it cannot be used."""
    try:
        if rows == "documents":
            return _document(row, place)
        if rows == "conversations":
            return _conversation(row, place)
        if rows == "preferences":
            if not isinstance(row, dict):
                raise BadRow(place, f'{short(row)} is no pair: {{"prompt": ..., "chosen": ..., "rejected": ...}}')
            return next(read_preferences([(place, row)], DataSource().reader(cast(Any, None))))
        from tinychat.data.preferences.prompts import prompt_row

        if not isinstance(row, (str, dict)):
            raise BadRow(place, f'{short(row)} is no prompt: a text, or {{"prompt": ..., "reference": ...}}')
        return prompt_row(row, place, kind)
    except BadRow as bad:
        return bad


def _document(row: Any, place: str) -> str:
    text = row.get("text") if isinstance(row, dict) else row
    if wrong := not_text(text):
        raise BadRow(place, f'{short(row)} is no document, a text or {{"text": ...}}: it {wrong}')
    return str(text)


def _conversation(row: Any, place: str) -> ChatRow:
    if not isinstance(row, dict):
        raise BadRow(place, f'{short(row)} is no conversation: a list of {{"role": ..., "content": ...}}')
    known = {key: str(row[key]) for key in ("family", "answer") if "messages" in row and row.get(key)}
    if known.get("answer", "exact") not in VERIFIERS.names():
        raise BadRow(place, f"answer is {short(known['answer'])}; the kinds are {', '.join(VERIFIERS.names())}")
    rest = {key: value for key, value in row.items() if key not in known}
    found = find_layout(rest, place).row(rest, place)
    return replace(found, family=known.get("family", ""), answer=known.get("answer", ""))
