"""stage=pretrain: next-token prediction on packed documents."""

from __future__ import annotations

import json
import math

from tinychat import lineage, runs
from tinychat.checkpoint import Checkpointer
from tinychat.console import Progress
from tinychat.context import Context, StageResult
from tinychat.data.packing import PackedBlocks
from tinychat.engine import StepStats, build_engine
from tinychat.engine.schedule import lr_factor
from tinychat.errors import UserError
from tinychat.models.build import count_parameters
from tinychat.models.flops import training_flops_per_token
from tinychat.models.logprobs import token_nll
from tinychat.schema import Config
from tinychat.seeding import seed_rank
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
    write_samples,
)


def run(config: Config, context: Context) -> StageResult:
    stage, world = config.stage, context.world
    tokenizer = get_tokenizer(config, context)
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    train = get_tokens(config.data, "train", tokenizer, config, context)
    held_out = get_tokens(config.data, "validation", tokenizer, config, context)
    blocks = PackedBlocks(train.tokens, length, config.seed)
    parameters, flops = count_parameters(model), training_flops_per_token(model, length)
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    seed_rank(config.seed, world.rank)
    origin = lineage.describe(
        context.run_dir, context.parents, {"train": data_facts(train), "validation": data_facts(held_out)}
    )
    if world.is_main:
        runs.write_text_atomic(context.run_dir / runs.LINEAGE, json.dumps(origin, indent=1))

    checkpointer = Checkpointer(context.run_dir, world, config.checkpoint.keep_last, config.checkpoint.keep_best)
    checkpoint = checkpointer.latest()
    first, metrics = 0, {}
    if checkpoint is not None:
        trainer = checkpointer.load(checkpoint, engine, same_ranks=config.ds.enabled)
        first, metrics = trainer["step"], trainer["metrics"]
        log.info("resumed from %s", checkpoint)

    tokens_per_step = stage.batch_size * length
    speed = Speedometer(flops, length, engine.dtype, world, stage.batch_size)
    stopped = False
    context.stop.patient = True
    with Progress(stage.max_steps, first, show=world.is_main) as progress:
        for step in range(first + 1, stage.max_steps + 1):  # step: optimizer steps done once this one is
            factor = lr_factor(step - 1, stage)
            engine.set_lr(factor)
            rows = blocks.batch(step - 1, stage.batch_size, world.rank, world.size)
            micro_batches = split_batch(rows, stage.micro_batch_size, world.device)
            # Each micro-batch and rank adds its share of the mean over all tokens of the step.
            done = engine.train_step(
                micro_batches, lambda model, batch: token_nll(model, **batch, for_sum=True).sum() / tokens_per_step
            )
            if not (math.isfinite(done.loss) and (done.skipped or math.isfinite(done.grad_norm))):
                raise UserError(_not_finite(step, done, stage.lr, checkpointer))

            row, last = None, step == stage.max_steps
            if speed.step_done() and (step % stage.log_every == 0 or last or step == 1):
                row = {
                    "train/loss": done.loss,
                    "train/grad_norm": done.grad_norm,
                    "schedule/lr": stage.lr * factor,
                    "data/tokens": float(step * tokens_per_step),
                    "data/epoch": blocks.epoch_of(step, stage.batch_size),
                    **speed.read(),
                }
                metrics |= row
                context.log(step, row)
            progress.step(step, row)
            score = None
            if last or (stage.eval_every and step % stage.eval_every == 0):
                with speed.paused():
                    most = None if last else stage.eval_tokens
                    found = evaluate(engine, held_out, length, stage.eval_batch_size, most, context)
                context.log(step, found)
                progress.evaluated(step, found)
                metrics |= found
                score = None if last else found["eval/loss"]  # over other tokens: not to be compared
            stopped = context.should_stop()
            if last or stopped or (config.checkpoint.every and step % config.checkpoint.every == 0):
                with speed.paused():
                    checkpoint = checkpointer.save(step, engine, tokenizer, {"metrics": metrics}, origin, score)
                progress.pause_ended(step)
            if stopped:
                break

    facts = {
        "parameters": parameters.total,
        "parameters without embeddings": parameters.other,
        "context length": length,
        **describe_engine(engine),
    }
    if stopped and step < stage.max_steps:
        return StageResult(metrics, checkpoint=checkpoint, stopped=True, facts=facts)
    write_samples(engine, tokenizer, stage.samples, stage.sample_tokens, config.seed, context)
    return StageResult(metrics, "eval/loss", checkpoint, facts=facts)


def _not_finite(step: int, done: StepStats, lr: float, checkpointer: Checkpointer) -> str:
    kept = checkpointer.latest()
    safe = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved before it"
    return (
        f"loss is {done.loss} at step {step}, the gradient's norm {done.grad_norm}; {safe}; "
        f"try a lower stage.lr (now {lr:g}), a longer warm-up, or precision=fp32"
    )
