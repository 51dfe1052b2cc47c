"""stage=sft: supervised fine-tuning on conversations; the loss falls on the assistant's replies and their end. With a
teacher its distributions are learnt beside the tokens, on the data's replies or on the student's own."""

from __future__ import annotations

from typing import Any

import torch

from tinychat.config.schema import Config
from tinychat.config.stages import SftStage
from tinychat.data.chats.tokens import ChatBatches
from tinychat.engine import Batch, build_engine
from tinychat.models.build import count_parameters, training_flops_per_token
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.rl.losses import Sums
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.best_of_n import replies_facts, with_replies
from tinychat.stages.chats import chat_facts, get_chat_tokenizer, get_chats, get_start_model, show_example
from tinychat.stages.common import (
    Speedometer,
    context_length,
    describe_engine,
    split_batch,
    split_padded,
    up_to_last_target,
    write_lineage,
)
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.requests import HeldOutReplies
from tinychat.stages.teacher import Teacher


def run(config: Config, context: Context) -> StageResult:
    stage, world = config.stage, context.world
    tokenizer = get_chat_tokenizer(config, context)
    model = get_start_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    teacher = None if stage.teacher is None else Teacher(config, context, tokenizer, model, length)
    # Made now, so that what refuses a model or a teacher has done so before hours of sampling.
    config = with_replies(config, context)
    train = get_chats("train", tokenizer, length, config, context)
    replies = HeldOutReplies(tokenizer, length, config, context)
    held_out = replies.instructions
    assert held_out is not None  # the stage reads conversations
    show_example(tokenizer, train, context)
    batches = ChatBatches(train, length, stage.packing, config.seed)
    parameters, flops = count_parameters(model), training_flops_per_token(model, length)
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    seed_rank(config.seed, world.rank)
    facts_of_train = chat_facts(train) | replies_facts(config)
    data = {"train": facts_of_train, "validation": chat_facts(held_out.caches[0]), **held_out.sets}
    origin = write_lineage(config, context, data)

    def measured(most: int | None) -> dict[str, float]:
        found = replies.measure(engine, most, start=loop.step == 0)
        if teacher is not None:
            teacher.compare(held_out, loop, found, most)
        return found

    speed = Speedometer(flops, engine.dtype, world)
    with TrainingLoop(config, context, engine, tokenizer, origin, speed, score="eval/response_loss") as loop:
        if teacher is not None:
            teacher.check_same(loop)
        if loop.step == 0 and stage.eval_first:
            loop.evaluate(measured, during=stage.eval_rows)
        for step in loop:
            ended: float | None = None
            if teacher is not None and teacher.on_policy_at(step):
                rows, held, ended = teacher.own_replies(engine, batches, step)
            else:
                rows = batches.batch(step - 1, stage.batch_size, world.rank, world.size)
                held = batches.held(step - 1, stage.batch_size)
            whole = float((held.trained ** (1 - stage.length_power)).sum())
            sums: Sums = {}
            if stage.packing and ended is None:
                parts = split_batch(rows, stage.micro_batch_size, world.device)
            else:
                used = up_to_last_target(rows["targets"])
                parts = split_padded(rows, used, stage.micro_batch_size, world.device)
            done = loop.train(
                parts,
                # Each micro-batch and rank adds its share of the step's weighted mean.
                lambda model, batch: batch_loss(model, batch, stage, teacher, ended is not None, sums) / whole,  # noqa: B023
                held.tokens,
                stage.batch_size,
            )
            loop.log(
                done,
                {
                    "data/trained_tokens": float(held.trained.sum()),
                    "data/epoch": batches.epoch_of(step, stage.batch_size),
                    **({} if teacher is None else teacher.step_means(sums, held, ended)),
                },
            )
            if loop.evaluation_due:
                loop.evaluate(measured, during=stage.eval_rows, score=lambda most: held_out.measure_loss(engine, most))
            loop.save_if_due()

    if not loop.unfinished:
        replies.write_tables()
    facts = {
        "parameters": parameters.total,
        "parameters trained": parameters.trained,
        "context length": length,
        "template": config.template.name,
        "conversations": len(train),
        "conversations cut": train.n_cut,
        **({} if teacher is None else {"teacher": teacher.path}),
        **describe_engine(engine),
    }
    return loop.result(facts)


def batch_loss(
    model: Any, batch: Batch, stage: SftStage, teacher: Teacher | None, own: bool, sums: Sums
) -> torch.Tensor:
    """Weighted sum of the losses of a micro-batch's trained tokens; what a teacher has to report is added to `sums`.
    own: the replies are the student's own."""
    if teacher is None:
        return reply_nll(model, batch, stage)
    weights = token_weights(batch["targets"], batch["segments"], stage.length_power)
    return teacher.loss(model, batch, weights, own, sums)


def reply_nll(model: Any, batch: Batch, stage: SftStage) -> torch.Tensor:
    """Weighted sum of the losses of a micro-batch's trained tokens, in nats."""
    # Without packing, padding stands on the right, where no token sees it: nothing to mask.
    nll = token_nll(
        model,
        batch["input_ids"],
        batch["targets"],
        batch["position_ids"] if stage.packing else None,
        segments=batch["segments"] if stage.packing else None,
        for_sum=stage.length_power == 0,
        label_smoothing=stage.label_smoothing,
    )
    if stage.length_power == 0:
        return nll.sum()
    return (nll * token_weights(batch["targets"], batch["segments"], stage.length_power)).sum()


def token_weights(targets: torch.Tensor, segments: torch.Tensor, power: float) -> torch.Tensor:
    """How much each trained token weighs: 1 / n^power, n being the trained tokens of its conversation (InternVL 2.5,
    Chen et al. 2024, section 3.3: power 0 is their token averaging, 1 sample averaging, 0.5 square averaging).

    targets: (B, T), IGNORED where nothing is trained; segments: (B, T), conversations numbered from 1 within a row.
    Returns (B, T) fp32, 0 where the target is IGNORED.
    """
    trained = (targets != IGNORED).float()
    counts = trained.new_zeros(len(targets), targets.shape[1] + 1).scatter_add_(1, segments, trained)
    return trained / counts.gather(1, segments).clamp(min=1.0) ** power
