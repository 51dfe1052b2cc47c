"""stage=pretrain: next-token prediction on packed documents."""

from __future__ import annotations

import math

from tinychat.config.schema import Config
from tinychat.data.documents.mixture import MixedBlocks, MixedTokens, training_blocks
from tinychat.data.documents.sources import leading_tokens
from tinychat.data.documents.tokens import TokenCache, document_segments
from tinychat.engine import build_engine
from tinychat.models.build import count_parameters, training_flops_per_token
from tinychat.models.logprobs import token_nll
from tinychat.report.run import CURRICULUM
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.common import (
    Speedometer,
    context_length,
    data_facts,
    describe_engine,
    evaluate,
    get_model,
    get_tokenizer,
    get_tokens,
    log,
    split_batch,
    write_lineage,
    write_samples,
    write_table,
)
from tinychat.stages.loop import TrainingLoop
from tinychat.text.tokenizer import text_beginning, vocabulary_size


def run(config: Config, context: Context) -> StageResult:
    stage, world = config.stage, context.world
    tokenizer = get_tokenizer(config, context)
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    train = get_tokens(config.data, "train", tokenizer, config, context)
    held_out = get_tokens(config.data, "validation", tokenizer, config, context)
    # Lessons make the text a curriculum.
    blocks = training_blocks(train, length, config.seed, in_order=config.data.lessons > 0)
    begin = text_beginning(tokenizer)[0] if stage.isolate_documents else None
    seen = length if begin is None else min(length, train.n_tokens // train.n_docs)  # what a token may attend to
    parameters, flops = count_parameters(model), training_flops_per_token(model, seen)
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    seed_rank(config.seed, world.rank)
    origin = write_lineage(config, context, {"train": data_facts(train), "validation": data_facts(held_out)})

    tokens_per_step = stage.batch_size * length
    # Where the curriculum changes: a loss that jumps there would look like one that diverges.
    first = leading_tokens(config.data, train.tokens, tokenizer) if isinstance(train, TokenCache) else 0
    changes = -(-first // tokens_per_step)
    if changes:
        log.info("train: lessons of copying up to step %d, then all other text, where the loss rises", changes)
    with TrainingLoop(config, context, engine, tokenizer, origin, Speedometer(flops, engine.dtype, world)) as loop:
        for step in loop:
            rows = blocks.batch(step - 1, stage.batch_size, world.rank, world.size)
            if begin is not None:
                rows |= document_segments(rows["input_ids"], begin)
            micro_batches = split_batch(rows, stage.micro_batch_size, world.device)
            # Each micro-batch and rank adds its share of the mean over all tokens of the step.
            done = loop.train(
                micro_batches,
                lambda model, batch: token_nll(model, **batch, for_sum=True).sum() / tokens_per_step,
                tokens_per_step,
                stage.batch_size,
            )
            epoch = blocks.epoch_of(step, stage.batch_size)
            loop.log(done, {"data/tokens": float(step * tokens_per_step), "data/epoch": epoch})
            if loop.evaluation_due:
                loop.evaluate(
                    lambda most: evaluate(engine, held_out, length, stage.eval_batch_size, most, context, begin),
                    during=stage.eval_tokens,
                )
            loop.save_if_due()

    if not loop.unfinished:
        write_samples(engine, tokenizer, stage.samples, stage.sample_tokens, config.seed, context)
        if isinstance(blocks, MixedBlocks) and isinstance(train, MixedTokens):
            tell_sources(blocks.epochs_of(loop.step, stage.batch_size), train, held_out, context)
    facts = {
        CURRICULUM: {"stories after lessons": changes} if changes else None,
        "parameters": parameters.total,
        "parameters without embeddings": parameters.other,
        "context length": length,
        **describe_engine(engine),
    }
    entries = vocabulary_size(tokenizer)
    return loop.result(facts, (math.log(entries), f"guessing among {entries:,} tokens"))


def tell_sources(
    epochs: dict[str, float], train: MixedTokens, held_out: TokenCache | MixedTokens, context: Context
) -> None:
    """What was read of each source of a mixture, and how well its held-out tokens are told."""
    measured = held_out.measured if isinstance(held_out, MixedTokens) else {}
    rows = []
    for name, part in train.parts.items():
        ppl = measured.get(name, {}).get("eval/ppl")
        rows.append([name, round(train.weights[name], 4), part.n_tokens, round(epochs[name], 3), ppl])
        shown = f", held-out perplexity {ppl:.4g}" if ppl is not None else ""
        log.info("%s: %.1f%% of the tokens read, %.3g epochs%s", name, 100 * train.weights[name], epochs[name], shown)
    columns = ["source", "weight", "training tokens", "epochs", "held-out perplexity"]
    write_table(context, "sources", "Sources", columns, rows)
