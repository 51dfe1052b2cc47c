"""stage=eval: what a checkpoint is worth on held-out data, with the tokenizer that it carries: loss and perplexity on
documents, and in a chat template replies to conversations and how safe those to requests are. Other checkpoints
(stage.against) are measured in the same way, for one table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinychat.config.schema import Config
from tinychat.runs import folders
from tinychat.runs.context import Context, StageResult
from tinychat.runtime import run_files
from tinychat.runtime.console import format_eval
from tinychat.stages.common import log, write_samples, write_table
from tinychat.stages.measure import all_subjects, measure

COLUMNS = {
    "perplexity": "eval/ppl",
    "instruction accuracy": "eval/instruction_accuracy",
    "safe rate": "eval/safe_rate",
    "judge": "eval/safe_rate_judge",
    "rules": "eval/safe_rate_rules",
    "oracle": "eval/safe_rate_oracle",
    "over-refusal": "eval/over_refusal",
    "gold reward": "eval/gold_reward",
}
Row = tuple[str, dict[str, float]]  # a checkpoint's name, which another may have too, and its metrics
RATES = ("instruction accuracy", "safe rate", "over-refusal")  # whose bounds the table has too


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


def comparison(measured: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table; what was not measured is None."""
    bounds = {f"{name}, 95 % {end}": f"{COLUMNS[name]}_{key}" for name in RATES for key, end in
              (("low", "from"), ("high", "to"))}  # fmt: skip
    wanted = COLUMNS | bounds
    rows = [[name, *(metrics.get(metric) for metric in wanted.values())] for name, metrics in measured]
    return ["checkpoint", *wanted], rows


def write_comparison(measured: Sequence[Row], context: Context) -> None:
    """Keep the table with the run, and show it in the log."""
    columns, rows = comparison(measured)
    write_table(context, "comparison", "Checkpoints in comparison", columns, rows)
    log.info("comparison (rates with their 95 %% intervals):\n%s", as_text(measured))


def as_text(measured: Sequence[Row]) -> str:
    """The table for a terminal, without the columns that nothing fills."""
    filled = {name: metric for name, metric in COLUMNS.items() if any(metric in metrics for _, metrics in measured)}
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


OBJECTIVES = ("eval/loss", "eval/response_loss", "eval/safe_rate")  # the first that was measured


def run(config: Config, context: Context) -> StageResult:
    stage = config.stage
    first, *others = all_subjects(config, context)
    found = measure(first, config)
    context.log(0, found.metrics)
    log.info(format_eval(0, found.metrics))
    found.write_tables()
    if first.documents:
        write_samples(found.engine, first.tokenizer, stage.samples, stage.sample_tokens, config.seed, context)
    metrics, facts, judge = found.metrics, found.facts, found.requests.judge if found.requests else None
    del found  # one model at a time

    if others:
        names = unique_names([subject.path for subject in (first, *others)])
        measured = [(names[0], metrics)]
        for name, subject in zip(names[1:], others, strict=True):
            log.info("against: %s (%s)", name, subject.path)
            measured.append((name, measure(subject, config, judge).metrics))
            log.info("%s | %s", name, format_eval(0, measured[-1][1]))
        write_comparison(measured, context)
        facts["against"] = [
            {"checkpoint": subject.path, **its} for subject, (_, its) in zip(others, measured[1:], strict=True)
        ]
    objective = next(name for name in OBJECTIVES if name in metrics)
    return StageResult(metrics, objective, facts=facts)
