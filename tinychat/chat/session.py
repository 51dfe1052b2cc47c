"""A checkpoint that is talked to: which one the command line means, what to say to it first, what was said so far, and
the next reply.

A chat checkpoint (its tokenizer has a chat template) answers messages; any other continues texts. torch is imported
where it is first needed, so that the program can refuse a wrong option before.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.errors import UserError
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.runs.folders import CHECKPOINTS
from tinychat.runtime.run_files import at_home

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
import heapq
import re
import sys

from tinychat.config.specs import Made, makers
from tinychat.runs import folders
from tinychat.runtime import gguf, hub
from tinychat.runtime.run_files import if_readable, read_json

Message = dict[str, str]
ROOM = 3 / 4  # of a full context stays filled when the oldest turns go, which leaves room for some turns to come


@dataclass
class Turn:
    """A line and the reply to it. A turn without a reply is no part of the dialogue."""

    line: str
    input: str = ""
    reply: str = ""
    stopped: bool = False  # before the reply's end, by Ctrl-C or an error
    notes: list[str] = field(default_factory=list)  # for the person at the keyboard

    def messages(self) -> list[Message]:
        user = {"role": "user", "content": self.line} | ({"input": self.input} if self.input else {})
        return [user, {"role": "assistant", "content": self.reply}]


class Session(abc.ABC):
    """One checkpoint and its turns. Below are the two kinds."""

    kind = ""
    system = ""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str):
        self.name = name
        self.turns: list[Turn] = []
        self._model, self._tokenizer = model, tokenizer
        self.folder = Path(tokenizer.name_or_path)  # it was loaded from

    @property
    def context(self) -> int:
        """Tokens that the model can see at once."""
        return self._model.config.max_position_embeddings

    def reply(self, line: str, options: SamplingOptions, input_text: str = "") -> Iterator[str]:
        """The reply in pieces; closing the iterator stops it, and what came until then is kept.

        The turn is there in any case, so that sessions side by side count the same turns. UserError (at the first
        piece): the line cannot be answered.
        """
        turn = Turn(line, input_text)
        self.turns.append(turn)
        pieces = self._pieces(turn, options)
        turn.stopped = True  # until its end is reached
        try:
            for piece in pieces:
                turn.reply += piece
                yield piece
            turn.stopped = False
        finally:
            pieces.close()  # type: ignore[attr-defined]

    def undo(self) -> Turn | None:
        """Take back the last turn and return it; None where there is none."""
        return self.turns.pop() if self.turns else None

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    @abc.abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """What was said as canonical chat rows; "stopped" lists the messages that Ctrl-C cut short."""

    @abc.abstractmethod
    def _pieces(self, turn: Turn, options: SamplingOptions) -> Iterator[str]:
        """The reply to a turn as it is generated."""


class TextSession(Session):
    """Every line is a new text to continue."""

    kind = "text"

    def _pieces(self, turn: Turn, options: SamplingOptions) -> Iterator[str]:
        from tinychat.models.generation.generate import stream_text

        return stream_text(self._model, self._tokenizer, turn.line, options)

    def rows(self) -> list[dict[str, Any]]:
        kept = [turn for turn in self.turns if turn.line.strip() and turn.reply]
        return [_row(turn.messages(), [1] if turn.stopped else []) for turn in kept]


class ChatSession(Session):
    """A dialogue through the tokenizer's chat template. Only tokens that are new since the last turn are computed."""

    kind = "chat"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, system: str = ""):
        from tinychat.models.generation.generate import KeptCache

        super().__init__(model, tokenizer, name)
        self.system = system
        self._end_id = _end_id(tokenizer)
        self._cache = KeptCache(model.config)
        self._first = 0  # turns before it no longer fit into the context

    def undo(self) -> Turn | None:
        turn = super().undo()
        if self._first >= len(self.turns):
            self._first = 0
        return turn

    def reset(self) -> None:
        super().reset()
        self._first = 0
        self._cache.clear()

    def rows(self) -> list[dict[str, Any]]:
        kept = [turn for turn in self.turns if turn.reply]
        before = 1 if self.system else 0
        stopped = [before + 2 * index + 1 for index, turn in enumerate(kept) if turn.stopped]
        messages = self._system_message() + [message for turn in kept for message in turn.messages()]
        return [_row(messages, stopped)] if kept else []

    def _pieces(self, turn: Turn, options: SamplingOptions) -> Iterator[str]:
        from tinychat.models.generation.generate import stream_ids

        if not turn.line.strip():
            raise UserError("the message is empty")
        ids = self._prompt(turn, options.max_new_tokens)
        room = min(options.max_new_tokens, self.context - len(ids))
        options = dataclasses.replace(options, max_new_tokens=room)
        new: list[int] = []
        pieces = stream_ids(self._model, self._tokenizer, ids, options, self._cache, (self._end_id,), new)
        try:
            yield from _without_outer_blanks(pieces)
            if len(new) == room and new[-1] not in (self._end_id, self._tokenizer.eos_token_id):
                turn.notes.append(f"cut after {room} new tokens")
        finally:
            pieces.close()  # type: ignore[attr-defined]

    def _prompt(self, turn: Turn, new_tokens: int) -> list[int]:
        """Token ids of the dialogue up to the reply. Where it does not leave room for the new tokens (at most half of
        the context), the oldest turns go, more of them than must, so that the next turns need no recomputation."""
        limit = self.context - min(new_tokens, self.context // 2)
        ids = self._encode()
        if len(ids) <= limit:
            return ids
        before = self._first
        while self._first < len(self.turns) - 1 and len(ids) > ROOM * limit:
            self._first += 1
            ids = self._encode()
        if len(ids) >= self.context:
            raise UserError(
                f"the message takes {len(ids)} tokens with {'the system message and ' if self.system else ''}its "
                f"template, {self.name} sees {self.context} at once; shorten it"
            )
        if before == 0 and self._first:
            turn.notes.append(
                f"the dialogue has outgrown the context ({self.context} tokens): from here on the model no longer "
                "sees its oldest turns; /save still has them"
            )
        return ids

    def _encode(self) -> list[int]:
        from tinychat.text.chat_template import encode_prompts

        *past, last = self.turns[self._first :]
        messages = self._system_message() + [message for turn in past if turn.reply for message in turn.messages()]
        return encode_prompts(self._tokenizer, [[*messages, last.messages()[0]]])[0]

    def _system_message(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []


def _end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    from tinychat.text.chat_template import end_token_id

    try:
        return end_token_id(tokenizer)
    except UserError:  # a published template that training could not use may still be talked through
        return tokenizer.eos_token_id


def open_session(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, mode: str = "auto", system: str = ""
) -> Session:
    """A session in `mode` "chat", "text" or "auto": a chat where the tokenizer has a chat template.

    A chat is forced on a tokenizer without one with the instruct template.
    """
    if mode == "text" or (mode == "auto" and not tokenizer.chat_template):
        return TextSession(model, tokenizer, name)
    if not tokenizer.chat_template:
        from tinychat.text.chat_template import set_template

        set_template(tokenizer, "instruct")
    return ChatSession(model, tokenizer, name, system)


def short_names(specs: list[str]) -> list[str]:
    """For each checkpoint the part of its path, the last one if it is a word, that tells it from the others."""
    full = [at_home(spec).absolute().parts for spec in specs]
    runs_alone = [parts[:-2] if parts[-2:-1] == (CHECKPOINTS,) else parts for parts in full]
    for paths, words_only in ((runs_alone, True), (full, False)):
        for names in zip(*map(reversed, paths), strict=False):
            are_words = all(name[0].isalpha() for name in names)  # a time stamp tells a person little
            if len(set(names)) == len(names) and (are_words or not words_only):
                return _without_shared_ending(list(names)) if are_words else list(names)
    return [f"{parts[-1]}#{number}" for number, parts in enumerate(runs_alone, 1)]


def _without_shared_ending(names: list[str]) -> list[str]:
    """pretrain-mini-tinyworld, sft-mini-tinyworld -> pretrain, sft."""
    words = [name.split("-") for name in names]
    while len(names) > 1 and all(len(each) > 1 for each in words) and len({each[-1] for each in words}) == 1:
        words = [each[:-1] for each in words]
    return ["-".join(each) for each in words]


def _row(messages: list[Message], stopped: list[int]) -> dict[str, Any]:
    return {"messages": messages} | ({"stopped": stopped} if stopped else {})


def _without_outer_blanks(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without the blanks before the first and after the last of the other characters."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        shown = text.rstrip()
        held = text[len(shown) :]
        if shown:
            begun = True
            yield shown


LATEST = "latest"
_BARE_HUB_ID = re.compile(r"^\w[\w.-]*$")  # gpt2: of the hub's first models, without an owner


SCORES = (Made.reward, Made.judge, Made.word_judge)


def find(spec: str, outputs: Path) -> str:
    """The folder of the checkpoint that `spec` means, or a GGUF file's address, or a hub id.

    spec: a checkpoint or run folder; the folder of an experiment or of a run's name, or such a name below `outputs`:
    the newest finished run there that made a model to talk to, or if there is none a reward model; latest: the newest
    model to talk to of all experiments; runs:/ID; a hub id. Raises UserError.
    """
    path = at_home(spec)
    if gguf.is_gguf(spec):
        return spec
    if path.is_file():
        raise UserError(f"checkpoint {spec}: is a file; give the folder it is in")
    if spec == LATEST and not path.exists():
        return _newest(spec, [folder for folder in _folders(outputs) if _holds_runs(folder)])
    if spec.startswith("runs:/"):
        from tinychat.tracking.store import resolve_uri, run_folder_of

        run_id = spec.removeprefix("runs:/").split("/")[0]
        return str(folders.resolve_checkpoint(run_folder_of(run_id, resolve_uri(None, outputs), outputs)))
    places = [path, outputs / spec]
    if "/" not in spec:  # an experiment before a folder that is called alike: a checkout has a folder tinychat
        places.reverse()
    for folder in places:
        if folder.is_dir() and _holds_runs(folder):
            return _newest(spec, [folder], SCORES)
    if path.exists():
        return str(folders.resolve_checkpoint(spec))
    if hub.is_hub_id(spec):
        return spec
    if _BARE_HUB_ID.match(spec):
        return _from_hub(spec, outputs)
    return str(folders.resolve_checkpoint(spec))  # which says what is missing


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []


def _holds_runs(folder: Path) -> bool:
    """Whether it is an experiment's or a run name's folder, above those of runs."""
    if (folder / folders.CONFIG).is_file():
        return False
    return any(any(folder.glob(f"{'*/' * depth}{folders.CONFIG}")) for depth in (1, 2))


def _newest(spec: str, places: list[Path], otherwise: tuple[Made, ...] = ()) -> str:
    """The checkpoint of the newest finished run in the places that makes a language model, of those without one such
    another; it is told."""
    found = None
    for stages in (makers(Made.language), makers(*otherwise)):
        runs = [_finished(place, stages) for place in places]
        newest_first = heapq.merge(*runs, key=lambda run: (folders.order_of(run)[1:], run), reverse=True)
        found = found or folders.first_usable(newest_first)
    if found is None:
        where = ", ".join(map(str, places)) or "there are no runs yet"
        raise UserError(
            f"checkpoint {spec}: no finished run of stage {', '.join(makers(Made.language))} ({where}); make run, or "
            "python -m tinychat.train, makes one"
        )
    print(f"note: {spec} is {found}", file=sys.stderr)
    return str(found)


def _finished(place: Path, stages: tuple[str, ...]) -> Iterator[Path]:
    """The finished runs of these stages below an experiment's or a run name's folder, newest first."""
    depth = 1 if any(place.glob(f"*/{folders.CONFIG}")) else 2
    experiment = place if depth == 2 else place.parent
    for run, config in folders.iter_runs(experiment.parent, experiment.name):
        if depth == 1 and run.parent.name != place.name:
            continue
        stage = config.get("stage")
        wanted = isinstance(stage, dict) and stage.get("name") in stages
        if wanted and (folders.read_result(run) or {}).get("status") == "finished":
            yield run


def _from_hub(spec: str, outputs: Path) -> str:
    """The local copy of a hub repository without an owner."""
    there = [folder.name for folder in _folders(outputs) if _holds_runs(folder)]
    known = f"has the experiments {', '.join(there)}" if there else "has no runs"
    instead = f"nor is it a folder, nor below {outputs}, which {known}; give one of these, {LATEST}, or a checkpoint"
    return str(hub.repository_folder(spec, (*hub.MODEL_FILES, *hub.TOKENIZER_FILES), instead))


LONGEST = 70  # characters of a prompt; the shorter ones are taken


def examples(checkpoint: Path, most: int = 3) -> list[str]:
    """Prompts of one line out of the table of held-out replies in the checkpoint's run folder, answered right, of
    different task families where there are some; [] for a checkpoint without such a table."""
    for run in (checkpoint, checkpoint.parent.parent):
        path = run / folders.TABLES / "predictions.json"
        table = if_readable(lambda path=path: read_json(path, {"rows": list}))  # type: ignore[misc]
        if table is not None:
            return _short(table["rows"], most)
    return []


def _short(rows: list[list[object]], most: int) -> list[str]:
    """The shortest right one of each family; then the shortest of these."""
    found: dict[str, str] = {}
    for family, prompt, reply, expected, score in (row for row in rows if isinstance(row, list) and len(row) == 5):
        right = score == 1 and reply and expected
        if not right or not isinstance(prompt, str) or "\n" in prompt or not prompt.strip():
            continue
        if len(prompt) <= LONGEST and len(prompt) < len(found.get(str(family), "x" * (LONGEST + 1))):
            found[str(family)] = prompt
    return sorted(found.values(), key=len)[:most]
