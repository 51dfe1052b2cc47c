"""lm-eval (EleutherAI's harness) on a checkpoint: its tasks found and loaded, and a model as it asks for one, on
tinychat's own scorer and decoder.

What a text is made of is the same here as in training, chat and generation: a text begins with what stands before texts
(tinychat.text.tokenizer.text_beginning); a document or question that spells a special token gets the tokens of those
letters; in a chat template special tokens are the template's alone. lm_eval is imported where it is used.
"""

from __future__ import annotations

import difflib
import functools
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinychat.config.schema import DataConfig
from tinychat.config.stages import TaskTemplate
from tinychat.errors import UserError
from tinychat.evaluation.replies import token_scores
from tinychat.models.generation.decode import DecodeOptions, Filter, decode, own_draws
from tinychat.models.generation.generate import fit_to_context, reply_after, stopped_by
from tinychat.models.logprobs import IGNORED
from tinychat.models.vocabulary import vocabulary
from tinychat.runtime import hub
from tinychat.runtime.run_files import at_home
from tinychat.runtime.world import World
from tinychat.text.chat_render import Message, Rendered, render
from tinychat.text.chat_template import encode_chats, encode_prompts, end_ids, end_token_id
from tinychat.text.tokenizer import encode_documents, text_beginning

log = logging.getLogger("tinychat")
SHIPPED = Path(__file__).parent / "tasks"
OURS = "tinychat"  # key of a task's metadata: Sampling
PLAIN_TEXT = "plain_text"  # and, in its YAML: a text to go on with, which no chat template fits
BOOTSTRAP = 1000  # resamples for the standard error of a metric that is no mean
SEED = 1234  # of the choice of few-shot examples, lm-eval's own
NEAR = 6  # names that an error proposes
_METADATA: dict[str, Any] = {OURS: None}  # lm-eval adds it to that of every task it loads
Tokens = tuple[list[int], list[int]]  # what is given, and what follows it


@dataclass(frozen=True)
class Sampling:
    """What a task of ours takes from the command, beside its YAML."""

    data: DataConfig
    pass_k: tuple[int, ...] = ()
    samples: int = 1  # replies to each prompt
    temperature: float = 1.0
    tokens: int = 64  # of a reply at most
    in_template: bool = False


# ------------------------------------------------------------------------------------------------------------- tasks


def need_harness() -> None:
    """Raise UserError where lm-eval is not installed."""
    hub.need("lm_eval", "lm_eval", "stage.tasks", "stage.tasks=[] measures what the data have")


def shipped() -> list[str]:
    """The names of tinychat's own tasks, which need no network."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_tasks(names: Sequence[str], folder: str | None, sampling: Sampling) -> dict[str, Any]:
    """What lm-eval's TaskManager makes of names of tasks, groups and tags, and of YAML files: {"tasks": {name: task},
    "groups": {name: group}}, with their data. folder: of the user's YAML files, whose names go before others.

    Raises UserError for lm-eval missing, a name that is none, and a task that cannot be loaded or done here.
    """
    need_harness()
    own = at_home(folder) if folder else None
    if own is not None and not own.is_dir():
        raise UserError(
            f"stage.task_folder={folder}: no such folder; it holds YAML files of tasks (docs/evaluation.md)"
        )
    found: dict[str, Any] = {"tasks": {}, "groups": {}}
    _METADATA[OURS] = sampling
    for name in names:
        manager, path = _manager(own, False), at_home(name)
        is_file = path.suffix == ".yaml" and path.is_file()
        if path.suffix == ".yaml" and not is_file:
            raise UserError(f"stage.tasks={name}: no such file; a name without .yaml is that of a task")
        if not is_file and name not in manager.all_tasks:
            manager = _with_its_own(own)
            if name not in manager.all_tasks:
                raise UserError(_unknown(name, manager.all_tasks))
        try:
            loaded = manager.load([str(path) if is_file else name])
        except UserError:
            raise
        except Exception as error:  # a YAML file, Python beside it, data that are missing: of any kind
            raise UserError(f"stage.tasks={name}: cannot be loaded: {type(error).__name__}: {_line(error)}") from error
        for kind in found:
            found[kind] |= loaded.get(kind, {})
    for name, task in found["tasks"].items():
        for attribute, what in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "shows pictures")):
            if getattr(task, attribute, False):
                raise UserError(f"stage.tasks={name}: {what}, which is not done here; leave it out")
    return found


@functools.lru_cache(maxsize=1)
def _with_its_own(folder: Path | None) -> Any:
    """With the tasks of lm-eval: their 14,000 files take seconds."""
    log.info("reading the tasks that lm-eval brings")
    return _manager(folder, True)


def _manager(folder: Path | None, its_own: bool) -> Any:
    from lm_eval.tasks import TaskManager

    paths = [SHIPPED, *([folder] if folder else [])]
    return TaskManager(include_path=paths, include_defaults=its_own, metadata=_METADATA)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=NEAR, cutoff=0.5)
    near = near or [other for other in known if name.lower() in other.lower()][:NEAR]
    meant = f"near it are {', '.join(near)}; " if near else ""
    return (
        f"stage.tasks={name}: no such task; {meant}without a network there are {', '.join(shipped())}; your own are "
        "YAML files: stage.task_folder=FOLDER, or tasks=[FILE.yaml]"
    )


def _line(error: BaseException) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), "no reason given")


def is_plain(task: Any) -> bool:
    """Whether a task asks nothing: whole texts are compared or measured, or one is gone on with."""
    config = task.config
    told = (config.metadata or {}).get(PLAIN_TEXT)
    return bool(told) or config.output_type == "loglikelihood_rolling" or config.doc_to_text == ""


def set_shots(tasks: Iterable[Any], shots: int | None) -> None:
    """Few-shot examples as lm-eval's own command sets them: a task that says 0 keeps it."""
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SEED)


# ----------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class TaskFigure:
    """One metric of a task or group."""

    task: str
    metric: str  # as a metric is called: acc, pass_at_8, exact_match.strict-match
    value: float
    stderr: float | None  # None: lm-eval knows none for this metric
    rows: int
    shots: int | None  # None: of a group whose tasks differ
    template: str  # in which it was asked; "": as plain text

    @property
    def name(self) -> str:
        return f"eval/task/{self.task}/{self.metric}"


def run_tasks(
    loaded: dict[str, Any], model: HarnessModel, template: TaskTemplate, template_name: str, rows: int | None
) -> list[TaskFigure]:
    """Every metric of the tasks, groups first, then tasks in the order asked for.

    template: which tasks are asked in the chat template; auto: all but those that ask nothing (is_plain). rows: of each
    task at most. Raises UserError for a question that the template refuses.
    """
    from lm_eval.api import task as building
    from lm_eval.evaluator import evaluate

    building.tqdm = lambda rows, **_: rows  # no bars: a line of the log for each in a file
    plain = _plain_tasks(loaded, template)
    figures: list[TaskFigure] = []
    for in_template in (False, True):
        tasks = {name: task for name, task in loaded["tasks"].items() if (name in plain) is not in_template}
        groups = {
            name: group
            for name, group in loaded["groups"].items()
            if any(task.task_name in tasks for task in group.get_all_tasks())
        }
        if not tasks:
            continue
        found = evaluate(
            model,
            {"tasks": tasks, "groups": groups},
            limit=rows,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
            apply_chat_template=in_template,
            fewshot_as_multiturn=in_template,
        )
        shots = {name: task.config.num_fewshot for name, task in tasks.items()}
        figures += _figures(found, shots, groups, template_name if in_template else "")
    order = [*loaded["groups"], *loaded["tasks"]]
    return sorted(figures, key=lambda figure: order.index(figure.task))


def _plain_tasks(loaded: dict[str, Any], template: TaskTemplate) -> set[str]:
    """The tasks of a group are alike: one that asks nothing takes the others with it."""
    tasks = loaded["tasks"]
    if template is not TaskTemplate.auto:
        return set() if template is TaskTemplate.always else set(tasks)
    plain = {name for name, task in tasks.items() if is_plain(task)}
    for group in loaded["groups"].values():
        members = {task.task_name for task in group.get_all_tasks()}
        plain |= members if members & plain else set()
    return plain


def _figures(
    found: dict[str, Any], shots: dict[str, int], groups: dict[str, Any], template: str
) -> Iterable[TaskFigure]:
    measured = found["results"] | found.get("groups", {})
    for task, values in measured.items():
        members = [one.task_name for one in groups[task].get_all_tasks()] if task in groups else [task]
        members = [name for name in members if name in shots]
        theirs = {shots[name] for name in members}
        rows = sum(found["n-samples"][name]["effective"] for name in members)
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            yield TaskFigure(
                task,
                metric_name(metric if kind == "none" else f"{metric}.{kind}"),
                float(value),
                float(stderr) if isinstance(stderr, (int, float)) else None,
                rows,
                theirs.copy().pop() if len(theirs) == 1 else None,
                template,
            )


def metric_name(name: str) -> str:
    """As MLflow takes it."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in name.replace("@", "_at_"))


# ------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Asked:
    """A conversation in the template that a reply is to follow, or to go on from one that has begun."""

    messages: list[Message]
    begun: str  # the beginning of the reply, as a task gives it; mostly ""
    ids: list[int]  # with the tokens of that
    length: int  # of the conversation alone


class HarnessModel:
    """A causal language model as lm-eval asks for one (its lm_eval.api.model.LM, which needs no inheriting).

    lm-eval sees one process: every rank makes all requests, the ranks share the work on them, and all get all answers.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        length: int,
        world: World,
        dtype: torch.dtype,
        score_batch_size: int,
        generate_batch_size: int,
        seed: int,
    ):
        """model: in evaluation mode. length: tokens of a sequence at most. Batch sizes: sequences side by side on one
        rank. seed: of sampled replies."""
        self.tokenizer_name = str(tokenizer.name_or_path)
        self._model, self._tokenizer, self._length, self._world, self._dtype = model, tokenizer, length, world, dtype
        self._score_batch_size, self._generate_batch_size, self._seed = score_batch_size, generate_batch_size, seed
        self._begin = text_beginning(tokenizer)
        # Of conversations in the template, by their text, which is all that lm-eval passes on.
        self._asked: dict[str, Asked] = {}
        self.cut: set[str] = set()  # texts that were longer than the context

    # ------------------------------------------------------------------------------------------------- what is asked

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, that of the reply that it begins (add_generation_prompt=False) included. Raises
        UserError for one that the template refuses."""
        messages, begun = [{"role": one["role"], "content": one["content"]} for one in chat_history], ""
        if not add_generation_prompt:
            begun = messages.pop()["content"]
        (rendered,) = render(self._tokenizer, [messages], prompts=True)
        if not isinstance(rendered, Rendered):
            raise rendered
        (ids,) = encode_prompts(self._tokenizer, [messages])
        more = self._as_replies([(messages, begun)])[0] if begun else []
        text = rendered.text + begun
        self._asked[text] = Asked(messages, begun, [*ids, *more], len(ids))
        return text

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each request (context, continuation): the log-probability of the continuation's tokens in nats, and
        whether each of them is the likeliest."""
        texts = [request.args[:2] for request in requests]
        told = [(self._asked[context], follows) for context, follows in texts if context in self._asked]
        replies = iter(self._as_replies([(one.messages, one.begun + follows) for one, follows in told]))
        pairs = [
            self._after(self._asked[context], next(replies)) if context in self._asked else self._pair(context, follows)
            for context, follows in texts
        ]
        return self._scores(pairs, [context + follows for context, follows in texts])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in nats; of a longer one than the context in windows that each hold
        as much as fits, so that every token is told once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        texts = [request.args[0] for request in requests]
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(self._literal(text), self._begin[-1], self._length, 1)
            ]
            for text in texts
        ]
        flat = [(list(before), list(told)) for own in windows for before, told in own]
        scores = iter(self._scores(flat, ["" for _ in flat]))
        return [sum(next(scores)[0] for _ in own) for own in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The reply to each request (context, generation settings), up to the first of the texts that end it."""
        alike: dict[tuple[str, int], list[int]] = {}
        for index, request in enumerate(requests):
            key = (json.dumps(request.args[1], sort_keys=True, default=str), request.repeats or 1)
            alike.setdefault(key, []).append(index)
        said: list[str] = [""] * len(requests)
        for (_, repeats), own in alike.items():
            # lm-eval repeats each request side by side
            contexts = [requests[index].args[0] for index in own[::repeats]]
            replies = self._replies(contexts, requests[own[0]].args[1], repeats)
            for index, reply in zip(own, replies, strict=True):
                said[index] = reply
        return said

    # ------------------------------------------------------------------------------------------------------- tokens

    def _literal(self, text: str) -> list[int]:
        return encode_documents(self._tokenizer, [text])[0] if text else []

    def _pair(self, context: str, continuation: str) -> Tokens:
        """Tokens of both. In plain text blanks at the end of the context belong to what follows, and the tokens are
        those of the whole text, cut where the context ends, as lm-eval has it."""
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        before = self._literal(context)
        follows = self._literal(context + continuation)[len(before) :]
        return [*self._begin, *before], follows or self._literal(continuation)

    def _as_replies(self, told: Sequence[tuple[list[Message], str]]) -> list[list[int]]:
        """Tokens of texts as the assistant's in the template, without the token that ends a reply."""
        chats = [[*messages, {"role": "assistant", "content": text}] for messages, text in told]
        found = []
        for encoded in encode_chats(self._tokenizer, chats) if chats else ():
            reply = encoded.ids[encoded.prompt_length :][encoded.trained[encoded.prompt_length :]].tolist()
            found.append(reply[:-1] if reply[-1:] == [end_token_id(self._tokenizer)] else reply)
        return found

    @staticmethod
    def _after(asked: Asked, reply: list[int]) -> Tokens:
        """asked.ids hold the first tokens of the reply where it has begun."""
        begun = len(asked.ids) - asked.length
        return asked.ids, reply[begun:]

    def _scores(self, pairs: Sequence[Tokens], texts: Sequence[str]) -> list[tuple[float, bool]]:
        """Of each pair, the ranks sharing them. texts: to say which were cut."""
        for (before, follows), text in zip(pairs, texts, strict=True):
            if len(before) + len(follows) > self._length + 1:
                self.cut.add(text)
        longest_first = sorted(range(len(pairs)), key=lambda index: -sum(map(len, pairs[index])))
        own = longest_first[self._world.rank :: self._world.size]
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(own), self._score_batch_size):
            some = own[start : start + self._score_batch_size]
            found |= zip(some, self._score_batch([pairs[index] for index in some]), strict=True)
        everywhere = {index: score for part in self._world.gather_objects(found) for index, score in part.items()}
        return [(float(everywhere[index][0]), bool(everywhere[index][1])) for index in range(len(pairs))]

    def _score_batch(self, pairs: Sequence[Tokens]) -> list[tuple[float, bool]]:
        rows = [[*before, *follows][-(self._length + 1) :] for before, follows in pairs]
        width = max(max(map(len, rows)) - 1, 1)
        inputs = torch.zeros(len(rows), width, dtype=torch.int64)
        targets = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
        for row, (ids, (_, follows)) in enumerate(zip(rows, pairs, strict=True)):
            told = min(len(follows), len(ids) - 1)
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.int64)
            if told:
                targets[row, len(ids) - 1 - told : len(ids) - 1] = torch.tensor(ids[-told:])
        device = self._world.device
        nll, likeliest = token_scores(self._model, inputs.to(device), targets.to(device))
        sums, kept = (-nll.double().sum(1)).tolist(), targets != IGNORED
        right = (likeliest.cpu() | ~kept).all(1).tolist()
        return list(zip(sums, right, strict=True))

    # ------------------------------------------------------------------------------------------------------- replies

    def _replies(self, contexts: Sequence[str], settings: dict[str, Any], samples: int) -> list[str]:
        """samples replies to each context, side by side."""
        from lm_eval.models.utils import normalize_gen_kwargs

        wanted: dict[str, Any] = dict(normalize_gen_kwargs(settings))
        stops = [text for text in wanted.pop("until", None) or [] if text]
        most, temperature = int(wanted.pop("max_gen_toks")), float(wanted.pop("temperature", None) or 0.0)
        samples_by_chance = wanted.pop("do_sample", False)
        chosen = {key: wanted.pop(key) for key in ("top_k", "top_p", "repetition_penalty") if wanted.get(key)}
        if wanted := {key: value for key, value in wanted.items() if value not in (None, 1, 1.0, False)}:
            log.warning("tasks: generation settings without a meaning here are left out: %.200s", wanted)
        in_template = bool(contexts) and contexts[0] in self._asked  # one task is asked in one way
        ends = end_ids(self._tokenizer) if in_template else (self._tokenizer.eos_token_id,)
        prompts = [self._fitted(context, most) for context in contexts]
        options = DecodeOptions(
            max_new_tokens=most,
            end_ids=ends,
            temperature=(temperature or 1.0) if samples_by_chance else 0.0,
            vocabulary=vocabulary(self._tokenizer),
            group=samples,
            filter=Filter(**chosen, stopped=stopped_by(self._tokenizer, stops) if stops else None),
        )
        draws = own_draws(len(prompts), 0, options, self._seed).view(len(prompts), samples, -1)
        own = range(self._world.rank, len(prompts), self._world.size)
        done = decode(
            self._model,
            [prompts[index] for index in own],
            options,
            self._tokenizer.pad_token_id or 0,
            self._generate_batch_size,
            self._dtype,
            draws[list(own)].flatten(0, 1),
        )
        found = {
            index: [
                reply_after(self._tokenizer, [] if in_template else prompts[index], ids, ends, stops)[0]
                for ids in done.responses[place * samples : (place + 1) * samples]
            ]
            for place, index in enumerate(own)
        }
        everywhere = {index: texts for part in self._world.gather_objects(found) for index, texts in part.items()}
        texts = [text for index in range(len(prompts)) for text in everywhere[index]]
        return [text.strip() for text in texts] if in_template else texts

    def _fitted(self, context: str, most: int) -> list[int]:
        asked = self._asked.get(context)
        ids = asked.ids if asked else [*self._begin, *self._literal(context)]
        room = self._model_context()
        kept, _ = fit_to_context(len(ids), most, room)
        if kept < len(ids):
            self.cut.add(context)
        return ids[-kept:]

    def _model_context(self) -> int:
        inner = getattr(self._model, "module", self._model)
        return min(self._length, int(inner.config.max_position_embeddings))
