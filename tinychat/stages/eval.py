"""stage=eval: what a checkpoint is worth on held-out data, with the tokenizer that it carries: loss and perplexity on
documents, and in a chat template replies to conversations and how safe those to requests are. Other checkpoints
(stage.against) are measured in the same way, for one table. With stage.tasks those of lm-eval are measured alone."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinychat.config.plugins import gives, source_of
from tinychat.config.schema import Config
from tinychat.config.stages import PASS_K
from tinychat.engine import Engine, evaluation_engine
from tinychat.errors import UserError
from tinychat.report.run import MEASURED
from tinychat.runs import folders
from tinychat.runtime import run_files
from tinychat.runtime.console import format_eval
from tinychat.stages import Context, StageResult, tasks
from tinychat.stages.answers import HeldOutAnswers, checkable
from tinychat.stages.chats import OWN_TEMPLATE, HeldOut, get_chat_tokenizer
from tinychat.stages.common import (
    context_length,
    evaluate,
    get_model,
    get_tokenizer,
    get_tokens,
    log,
    write_samples,
    write_table,
)
from tinychat.stages.honesty import FIRST, BenignPrompts, write_side_by_side
from tinychat.stages.requests import HeldOutRequests, Judge, has_requests
from tinychat.text.tokenizer import text_beginning, tokenizer_fingerprint


@dataclass
class Subject:
    """A checkpoint to measure, its tokenizer with the chat template, and what of the data it is measured on."""

    context: Context  # in which it is what the stage starts from
    tokenizer: Any
    documents: bool
    conversations: bool
    requests: bool
    answers: bool  # to prompts, where they can be checked
    benign: bool  # prompts of tinychat's own

    @property
    def path(self) -> str:
        return str(self.context.parents["init_from"])


@dataclass
class Measured:
    """What was found; the same on every rank, but for the tables, which rank 0 writes."""

    engine: Engine
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: HeldOut | None = None
    requests: HeldOutRequests | None = None
    answers: HeldOutAnswers | None = None
    benign: BenignPrompts | None = None

    def write_tables(self) -> None:
        for part in (self.held_out, self.requests, self.answers, self.benign):
            if part is not None:
                part.write_tables()

    def first_replies(self) -> dict[str, list[tuple[str, str]]]:
        """The first of each kind."""
        found: dict[str, list[tuple[str, str]]] = {}
        for part in (self.requests, self.held_out, self.benign):
            found |= {} if part is None else part.first_replies(FIRST)
        return found


def all_subjects(config: Config, context: Context) -> list[Subject]:
    """The checkpoint of init_from, then those of stage.against. Without a template of its own (template=own) another
    one is measured in the first one's, where the two share their tokenizer: a pretrained model beside what it became.
    Raises UserError as what_to_measure does."""
    first = what_to_measure(config, context)
    subjects = [first]
    for index in range(len(config.stage.against)):
        own = replace(context, parents=context.parents | {"init_from": context.parents[f"against.{index}"]})
        subjects.append(what_to_measure(config, own, first.tokenizer))
    return subjects


def what_to_measure(config: Config, context: Context, like: Any = None) -> Subject:
    """The subject that the stage starts from.

    Conversations and requests need a template: the one that the command names, else (template=own) the checkpoint's,
    else that of the tokenizer `like`. Raises UserError where data that are nothing else find none.
    """
    data, tokenizer = config.data, get_tokenizer(config, context)
    documents, conversations = (gives(data, rows) for rows in ("documents", "conversations"))
    conversations, benign = conversations or bool(config.stage.held_out), config.stage.benign_prompts != 0
    # Conversations' own replies are checked with them; prompts that bring answers have nothing else that does it.
    bring_answers = "prompts" in source_of(data).has
    requests, answers = has_requests(config), bool(config.stage.pass_k) or (bring_answers and bool(checkable(config)))
    if not (documents or conversations or requests or answers or benign):
        raise UserError(f"stage.safety_prompts=0: data={data.name} has nothing but requests; let some be answered")
    lacks_template = config.template.name == OWN_TEMPLATE and not tokenizer.chat_template
    chats = conversations or requests or answers or benign
    if chats and lacks_template and _borrow(tokenizer, like):
        log.info("%s has no chat template: measured in that of the first checkpoint", context.parents["init_from"])
        documents = documents and not (data.path or data.val_path)
    elif chats and lacks_template:
        if not documents:
            alone = "conversations" if conversations else "requests"
            raise UserError(
                f"init_from={context.parents['init_from']}: this checkpoint has no chat template, and data={data.name} "
                f"has {alone} alone; add template=instruct (or chatml), in which stage=sft would train it"
            )
        conversations = requests = answers = benign = False
        log.info("this checkpoint has no chat template: measured on documents alone (template=instruct: on all)")
    elif chats:
        tokenizer = get_chat_tokenizer(config, context)
        # Files that tinyworld is given hold one or the other; with a template, what stage=sft reads of them.
        documents = documents and not (data.path or data.val_path)
    return Subject(context, tokenizer, documents, conversations, requests, answers, benign)


def _borrow(tokenizer: Any, like: Any) -> bool:
    """Give the tokenizer the template of an equal one that has one; whether that could be done."""
    if like is None or not like.chat_template or tokenizer_fingerprint(like) != tokenizer_fingerprint(tokenizer):
        return False
    tokenizer.chat_template = like.chat_template
    return True


def measure(subject: Subject, config: Config, judges: Mapping[str, Judge] | None = None) -> Measured:
    """Everything that the subject is measured on. judges: those that are loaded already."""
    stage, context, tokenizer = config.stage, subject.context, subject.tokenizer
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    tokens = get_tokens(config.data, "validation", tokenizer, config, context) if subject.documents else None
    held_out = HeldOut(tokenizer, length, config, context) if subject.conversations else None
    requests = HeldOutRequests(tokenizer, config, context, judges) if subject.requests else None
    answers = HeldOutAnswers(tokenizer, length, config, context) if subject.answers else None
    benign = BenignPrompts(tokenizer, config, context) if subject.benign else None
    engine = evaluation_engine(model, config.precision, context.world)

    found = Measured(engine, held_out=held_out, requests=requests, answers=answers, benign=benign)
    found.facts = {MEASURED: subject.path, "context length": length}
    if tokens is not None:
        begin = text_beginning(tokenizer)[0] if stage.isolate_documents else None
        found.metrics |= evaluate(engine, tokens, length, stage.eval_batch_size, stage.eval_tokens, context, begin)
    if held_out is not None:
        found.metrics |= held_out.measure(engine, stage.eval_rows)
        found.facts |= {"template": config.template.name, "conversations": sum(map(len, held_out.caches))}
        found.facts |= {"conversations cut": sum(chats.n_cut for chats in held_out.caches)}
    if requests is not None:
        found.metrics |= requests.measure(engine)
        found.facts |= requests.facts()
    if answers is not None:
        found.metrics |= answers.measure(engine)
        found.facts |= {"prompts with checkable answers": len(answers.prompts.ids)}
        found.facts |= {"sampled replies to each": answers.samples} if answers.samples else {}
    if benign is not None:
        found.metrics |= benign.measure(engine)
    check_numbers(found.metrics, subject.path)
    return found


def check_numbers(metrics: Mapping[str, float], path: str) -> None:
    """Raise UserError where a checkpoint's losses are no numbers: all else that was measured of it means nothing."""
    for name in ("eval/loss", "eval/response_loss"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise UserError(
                f"{path}: {name} is {metrics[name]}: with these weights the model gives no numbers; precision=fp32 "
                "tells whether rounding is the reason, else take an earlier checkpoint"
            )


COLUMNS = {
    "perplexity": "eval/ppl",
    "instruction accuracy": "eval/instruction_accuracy",
    "accuracy": "eval/accuracy",
    **{f"pass@{k}": f"eval/pass_at_{k}" for k in PASS_K},
    "safe rate": "eval/safe_rate",
    "judge": "eval/safe_rate_judge",
    "second judge": "eval/safe_rate_second",
    "rules": "eval/safe_rate_rules",
    "oracle": "eval/safe_rate_oracle",
    "over-refusal": "eval/over_refusal",
    "over-refusal, benign": "eval/over_refusal_benign",
    "over-refusal, instructions": "eval/over_refusal_instructions",
    "contrasts refused": "eval/refusal_contrast",
    "ROUGE-L": "eval/rouge_l",
    "reply perplexity": "eval/response_ppl",
    "distinct-2": "eval/distinct_2",
    "longest run": "eval/longest_run",
    "gold reward": "eval/gold_reward",
}
Row = tuple[str, dict[str, float]]  # a checkpoint's name, which another may have too, and its metrics
RATES = ("instruction accuracy", "accuracy", "safe rate", "over-refusal")  # whose bounds the table has too


def checkpoint_name(path: str) -> str:
    """ "STAGE RUN_NAME/TIME" of a checkpoint of a run, from its lineage; else the end of its path."""
    kinds: dict[str, run_files.Kind] = {"config": dict, "run_dir": str}
    found = run_files.if_readable(lambda: run_files.read_json(Path(path) / folders.LINEAGE, kinds)) or {}
    stage = found.get("config", {}).get("stage")
    stage = stage.get("name") if isinstance(stage, dict) else None
    run_dir = found.get("run_dir")
    end = "/".join(Path(run_dir or path).parts[-2:])
    return f"{stage} {end}" if stage else end


def unique_names(paths: list[str]) -> list[str]:
    """The name of each checkpoint; with the checkpoint folder's own where two of one run would have the same."""
    names = [checkpoint_name(path) for path in paths]
    return [
        f"{name} {Path(path).name}" if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)
    ]


def measured_columns(measured: Sequence[Row]) -> dict[str, str]:
    """The columns that something fills."""
    return {name: metric for name, metric in COLUMNS.items() if any(metric in metrics for _, metrics in measured)}


def comparison(measured: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table; what was not measured of a checkpoint is None."""
    columns = measured_columns(measured)
    bounds = {f"{name}, 95 % {end}": f"{COLUMNS[name]}_{key}" for name in RATES if name in columns for key, end in
              (("low", "from"), ("high", "to"))}  # fmt: skip
    wanted = columns | bounds
    rows = [[name, *(metrics.get(metric) for metric in wanted.values())] for name, metrics in measured]
    return ["checkpoint", *wanted], rows


def write_comparison(measured: Sequence[Row], context: Context) -> None:
    """Keep the table with the run, and show it in the log."""
    columns, rows = comparison(measured)
    write_table(context, "comparison", "Checkpoints in comparison", columns, rows)
    log.info("comparison (rates with their 95 %% intervals):\n%s", as_text(measured))


def as_text(measured: Sequence[Row]) -> str:
    """The table for a terminal, without the columns that nothing fills."""
    filled = measured_columns(measured)
    table = Table()
    table.add_column("checkpoint", overflow="fold")  # whole, as the end tells runs apart
    for name in filled:
        table.add_column(name, justify="right")
    for name, metrics in measured:
        table.add_row(name, *(_cell(metrics, metric) for metric in filled.values()))
    out = io.StringIO()
    Console(file=out, width=160, highlight=False).print(table, markup=False)
    return out.getvalue().rstrip()


def _cell(metrics: dict[str, float], name: str) -> str:
    """1.234; of a rate 97.5 % and its interval in a line below."""
    if name not in metrics:
        return "-"
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.4g}"
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return f"{metrics[name]:.1%}\n({low:.1%} to {high:.1%})"


# The first that was measured.
OBJECTIVES = ("eval/loss", "eval/response_loss", "eval/safe_rate", "eval/accuracy", "eval/over_refusal_benign")


def run(config: Config, context: Context) -> StageResult:
    stage = config.stage
    if stage.tasks:
        paths = [context.parents["init_from"], *(context.parents[f"against.{i}"] for i in range(len(stage.against)))]
        measured_paths = [str(path) for path in paths]
        return tasks.run(config, context, dict(zip(measured_paths, unique_names(measured_paths), strict=True)))
    first, *others = all_subjects(config, context)
    found = measure(first, config)
    context.log(0, found.metrics)
    log.info(format_eval(0, found.metrics))
    found.write_tables()
    if first.documents:
        write_samples(found.engine, first.tokenizer, stage.samples, stage.sample_tokens, config.seed, context)
    metrics, facts, judges = found.metrics, found.facts, found.requests.judges if found.requests else None
    said = [found.first_replies()]
    del found  # one model at a time

    if others:
        names = unique_names([subject.path for subject in (first, *others)])
        measured = [(names[0], metrics)]
        for name, subject in zip(names[1:], others, strict=True):
            log.info("against: %s (%s)", name, subject.path)
            other = measure(subject, config, judges)
            measured.append((name, other.metrics))
            said.append(other.first_replies())
            del other
            log.info("%s | %s", name, format_eval(0, measured[-1][1]))
        write_comparison(measured, context)
        write_side_by_side(names, said, context)
        facts["against"] = [
            {"checkpoint": subject.path, **its} for subject, (_, its) in zip(others, measured[1:], strict=True)
        ]
    objective = next(name for name in OBJECTIVES if name in metrics)
    return StageResult(metrics, objective, facts=facts)
