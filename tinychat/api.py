"""tinychat from Python: a checkpoint as an object that replies or scores, a stage as a function call.

What is here is what the programs do, without a process of its own; torch is imported where it is first needed. What a
user can mend is raised as tinychat.errors.UserError, one line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home

if TYPE_CHECKING:
    from tinychat.generate.replies import Generator
    from tinychat.models.scorer import AnyScorer

Messages = str | Sequence[Mapping[str, str]]  # a user's message, or a conversation that ends with one


class Model:
    """A checkpoint that `load` has opened. kind: chat (it replies), text (it continues), or reward (it scores)."""

    def __init__(self, path: str, kind: str, generator: Generator | None, scorer: AnyScorer | None):
        self.path, self.kind = path, kind
        self._generator, self._scorer = generator, scorer

    def __repr__(self) -> str:
        return f"tinychat.load({self.path!r})  # kind: {self.kind}"

    def reply(self, messages: Messages, **options: Any) -> str:
        """The reply to a message or a conversation; options: those of `generate`, but for n.

        Raises UserError where the checkpoint does not chat, and as `generate`.
        """
        if self.kind != "chat":
            can = "generate(prompts) continues texts" if self.kind == "text" else "score(pairs) scores replies"
            raise UserError(f"{self.path}: has not learned to reply; {can}")
        return self.generate([messages], **options)[0][0]

    def generate(
        self,
        prompts: Sequence[Messages],
        *,
        n: int = 1,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        greedy: bool = False,
        stop: Sequence[str] = (),
        seed: int = 1,
    ) -> list[list[str]]:
        """For each prompt n replies, or for a checkpoint without a chat template n continuations (without the prompt).

        As `python -m tinychat.generate` makes them: each has draws of its own, by seed, the prompt's place and its
        number, so that the same call gives the same texts. Raises UserError for a prompt that the chat template
        refuses or that leaves no room for a reply, and for an option that cannot work.
        """
        from tinychat.generate.prompts import Prompt
        from tinychat.generate.replies import Wanted
        from tinychat.models.generation.sampling import SamplingOptions

        if self._generator is None:
            raise UserError(f"{self.path}: is a reward model, which writes no text; score(pairs) scores replies")
        sampling = SamplingOptions(max_new_tokens, temperature, top_k, top_p, repetition_penalty, greedy, seed)
        self._generator.wanted = Wanted(sampling, n, n, tuple([stop] if isinstance(stop, str) else stop))
        asked = [prompts] if isinstance(prompts, str) else prompts
        rows = [Prompt(f"prompt {number}", _messages(one)) for number, one in enumerate(asked, 1)]
        found = self._generator.replies(self._generator.encode(rows), 0)
        return [[text for text, _, _ in own] for own in found]

    def score(self, pairs: Sequence[tuple[Messages, str]]) -> list[float]:
        """The score of each (prompt, reply), as `python -m tinychat.score` gives it. Raises UserError where the
        checkpoint is no reward model or judge, and for a pair that is too long or that its template refuses."""
        from tinychat.score import Row, scores_of

        if self._scorer is None:
            raise UserError(
                f"{self.path}: is a language model, which scores nothing; give a checkpoint of stage=reward"
            )
        rows = [
            Row(f"pair {number}", {}, _messages(prompt), (reply,)) for number, (prompt, reply) in enumerate(pairs, 1)
        ]
        return [scores[0] for scores in scores_of(self._scorer, rows)]


def _messages(said: Messages) -> list[dict[str, str]]:
    return [{"role": "user", "content": said}] if isinstance(said, str) else [dict(one) for one in said]


def load(path: str | Path, *, device: str = "auto", outputs: str | Path = "outputs", batch_size: int = 64) -> Model:
    """Open a checkpoint: a policy, a pretrained model, a reward model or judge, or an adapter of one of these.

    path: a checkpoint or run folder, the name of an experiment or of a run in it, "latest", "runs:/ID" of MLflow, a
    GGUF file, or a hub id. device: auto, cpu or cuda. batch_size: texts side by side. Raises UserError.
    """
    from tinychat.chat.session import find
    from tinychat.generate.replies import Generator, Wanted
    from tinychat.models.generation.sampling import SamplingOptions

    found = find(str(path), at_home(outputs))
    from tinychat.models.load import model_folder
    from tinychat.models.reward import is_reward
    from tinychat.models.word_judge import is_word_judge
    from tinychat.text.tokenizer import load_saved_tokenizer

    folder = model_folder(found)
    if is_word_judge(str(folder)) or is_reward(found):
        from tinychat.score import load as load_scorer

        return Model(found, "reward", None, load_scorer(found, device, batch_size))
    chats = bool(load_saved_tokenizer(found).chat_template)
    args = argparse.Namespace(
        checkpoint=found,
        outputs=str(outputs),
        model_code=None,
        raw=not chats,
        batch_size=batch_size,
        device=device,
        precision="fp32",
        adapter=None,
    )
    generator = Generator(args, Wanted(SamplingOptions()))
    return Model(found, "chat" if chats else "text", generator, None)


@dataclass(frozen=True)
class Run:
    """A job that has ended."""

    folder: Path  # config.yaml, metrics.jsonl, checkpoints/, report.html
    stage: str
    status: str  # finished, or pruned
    objective: float | None  # the metric that a sweep looks at
    metrics: dict[str, float]
    checkpoint: Path | None
    minutes: float | None


def run(overrides: Sequence[str] | str = (), progress: Callable[[str], None] | None = print) -> Run:
    """Run one job in this process, as `python -m tinychat.train` does with the same words, and wait for it.

    overrides: ["stage=sft", "model=mini"], or one string of them. progress: is given each line that the command would
    write to the terminal; None: none of them. launch=torchrun, deepspeed and slurm start processes, as there.

    The random state of this process is the same afterwards as before. Raises UserError for what the command would
    refuse or end with (settings, data, a full disk), before anything is written where that is possible; and where the
    job was interrupted and saved. Errors of the program itself are raised as they are.
    """
    import shlex

    from tinychat import train
    from tinychat.runs import folders

    said = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    with _told(progress), _random_state_kept():
        try:
            folder = train.run(said)
        except train.launch.Stopped:
            raise UserError("interrupted; what was saved is gone on from by the same words with resume=auto") from None
    result = folders.read_result(folder) or {}
    chosen = result.get("checkpoint")
    return Run(
        folder=folder.resolve(),
        stage=str(folders.read_config(folder)["stage"].get("name")),
        status=str(result.get("status")),
        objective=result.get("objective"),
        metrics={name: float(value) for name, value in (result.get("metrics") or {}).items() if value is not None},
        checkpoint=(folder / chosen).resolve() if chosen else None,
        minutes=result.get("minutes"),
    )


class _Lines(io.TextIOBase):
    """A stream whose whole lines are given to a function. No terminal, so nobody draws bars on it."""

    def __init__(self, take: Callable[[str], None]):
        self._take, self._rest = take, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._take(line.rpartition("\r")[2])
        return len(text)


@contextlib.contextmanager
def _told(progress: Callable[[str], None] | None) -> Iterator[None]:
    """Inside, what goes to the terminal goes to a function."""
    from tinychat.runtime.console import end_logging

    out, err = sys.stdout, sys.stderr

    def tell(line: str) -> None:
        if progress is not None:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # where a print of its own goes
                progress(line)

    try:
        with contextlib.redirect_stderr(_Lines(tell)), contextlib.redirect_stdout(_Lines(tell)):
            yield
    finally:
        end_logging()


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    from tinychat.engine.checkpoint import random_state, restore_random_state

    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)
