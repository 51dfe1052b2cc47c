"""stage=eval: loss and perplexity of a checkpoint on validation documents, with the tokenizer that it carries."""

from __future__ import annotations

from tinychat.console import format_eval
from tinychat.context import Context, StageResult
from tinychat.engine import evaluation_engine
from tinychat.schema import Config
from tinychat.stages.common import (
    context_length,
    evaluate,
    get_model,
    get_tokenizer,
    get_tokens,
    log,
    write_samples,
)


def run(config: Config, context: Context) -> StageResult:
    stage = config.stage
    tokenizer = get_tokenizer(config, context)
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    tokens = get_tokens(config.data, "validation", tokenizer, config, context)
    engine = evaluation_engine(model, config.precision, context.world)

    metrics = evaluate(engine, tokens, length, stage.eval_batch_size, stage.eval_tokens, context)
    context.log(0, metrics)
    log.info(format_eval(0, metrics))
    write_samples(engine, tokenizer, stage.samples, stage.sample_tokens, config.seed, context)
    facts = {"checkpoint measured": context.parents["init_from"], "context length": length}
    return StageResult(metrics, "eval/loss", facts=facts)
