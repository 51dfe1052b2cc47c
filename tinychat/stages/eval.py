"""stage=eval: what a checkpoint is worth on held-out data, with the tokenizer that it carries: loss and perplexity on
documents, and in a chat template replies to conversations and how safe those to requests are. Other checkpoints
(stage.against) are measured in the same way, for one table."""

from __future__ import annotations

from tinychat.config.schema import Config
from tinychat.runs.context import Context, StageResult
from tinychat.runtime.console import format_eval
from tinychat.stages.common import log, write_samples
from tinychat.stages.compare import unique_names, write_comparison
from tinychat.stages.measure import all_subjects, measure

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
