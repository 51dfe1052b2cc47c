"""stage=eval tasks=[...]: a checkpoint, and those of stage.against, on tasks of lm-eval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tinychat.config.plugins import OWN_TEMPLATE
from tinychat.config.schema import Config
from tinychat.config.stages import TaskTemplate
from tinychat.engine import evaluation_engine
from tinychat.evaluation.harness import (
    HarnessModel,
    Sampling,
    TaskFigure,
    load_tasks,
    run_tasks,
    set_shots,
)
from tinychat.evaluation.statistics import Z, wilson
from tinychat.report.run import MEASURED
from tinychat.stages import Context, StageResult
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import context_length, get_model, get_tokenizer, log, write_table
from tinychat.text.chat_template import template_name

COLUMNS = ["task", "metric", "value", "standard error", "95 % low", "95 % high", "rows", "examples before", "asked as"]


def sampling_of(config: Config, in_template: bool = False) -> Sampling:
    """What tinychat's own tasks take from the command."""
    stage = config.stage
    return Sampling(
        data=config.data,
        pass_k=tuple(stage.pass_k),
        samples=stage.pass_samples or max(stage.pass_k, default=1),
        temperature=stage.temperature,
        tokens=stage.generate_tokens,
        in_template=in_template,
    )


def look_at_tasks(config: Config) -> None:
    """Raise UserError for lm-eval missing, and a task that there is not or that cannot be loaded."""
    load_tasks(config.stage.tasks, config.stage.task_folder, sampling_of(config))


def measure_tasks(config: Config, context: Context) -> list[TaskFigure]:
    """Of the checkpoint that the context starts from. Every rank calls it."""
    stage, named = config.stage, config.template.name != OWN_TEMPLATE
    tokenizer = get_chat_tokenizer(config, context) if named else get_tokenizer(config, context)
    template = stage.task_template
    if not tokenizer.chat_template:
        if template is TaskTemplate.always:
            tokenizer = get_chat_tokenizer(config, context)  # which says what works
        template = TaskTemplate.never
    loaded = load_tasks(
        stage.tasks, stage.task_folder, sampling_of(config, in_template=template is not TaskTemplate.never)
    )
    set_shots(loaded["tasks"].values(), stage.task_shots)
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    engine = evaluation_engine(model, config.precision, context.world)
    with engine.generation() as inner:
        asked = HarnessModel(
            *(inner, tokenizer, length, context.world, engine.dtype),
            *(stage.eval_batch_size, stage.generate_batch_size, config.seed),
        )
        called = template_name(tokenizer) if tokenizer.chat_template else ""
        found = run_tasks(loaded, asked, template, called, stage.task_rows)
    if asked.cut:
        log.warning("tasks: %d texts are longer than the context of %d tokens: their beginning was cut off",
                    len(asked.cut), length)  # fmt: skip
    return found


def run(config: Config, context: Context, names: dict[str, str]) -> StageResult:
    """names: of each checkpoint, by its path, the one to start from first. Its figures are the run's metrics; those of
    the others stand beside them in one table."""
    rows: list[list[Any]] = []
    measured: dict[str, list[TaskFigure]] = {}
    for path, name in names.items():
        log.info("tasks of %s", name)
        measured[path] = measure_tasks(config, replace(context, parents=context.parents | {"init_from": path}))
        rows += [[name, *row] for row in table(measured[path])]
        for figure in measured[path]:
            log.info("%s %s: %s (%d rows)", figure.task, figure.metric, as_text(figure), figure.rows)
    write_table(context, "tasks", "Tasks of lm-eval", ["checkpoint", *COLUMNS], rows)
    first, *others = measured
    metrics = metrics_of(measured[first])
    context.log(0, metrics)
    facts: dict[str, Any] = {MEASURED: first, "tasks": list(config.stage.tasks)}
    if others:
        facts["against"] = [{"checkpoint": path, **metrics_of(measured[path])} for path in others]
    return StageResult(metrics, measured[first][0].name, facts=facts)


def metrics_of(figures: list[TaskFigure]) -> dict[str, float]:
    """Each figure and, where lm-eval knows it, its standard error, under the names of tinychat.tracking.vocabulary."""
    found = {}
    for figure in figures:
        found[figure.name] = figure.value
        if figure.stderr is not None:
            found[f"{figure.name}_stderr"] = figure.stderr
    return found


def table(figures: list[TaskFigure]) -> Iterator[list[Any]]:
    """Rows of COLUMNS."""
    for one in figures:
        low, high = bounds(one)
        asked = f"template {one.template}" if one.template else "plain text"
        yield [one.task, one.metric, one.value, one.stderr, low, high, one.rows, one.shots, asked]


def bounds(figure: TaskFigure) -> tuple[float, float] | tuple[None, None]:
    """95 %: Wilson's of a share of rows, which stay inside [0, 1]; else 1.96 standard errors to either side."""
    value, error, rows = figure.value, figure.stderr, figure.rows
    if error is None:
        return None, None
    # lm-eval's standard error of a mean of rows is that of a share where each is 0 or 1
    if rows > 1 and math.isclose(error**2 * (rows - 1), value * (1 - value), rel_tol=1e-6, abs_tol=1e-12):
        return wilson(round(value * rows), rows)
    return value - Z * error, value + Z * error


def as_text(figure: TaskFigure) -> str:
    return f"{figure.value:.4g}" + ("" if figure.stderr is None else f" ± {figure.stderr:.2g}")
