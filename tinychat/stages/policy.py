"""What reinforcement learning needs beside its loop: the policy and its reference, and replies sampled and measured
with them, in training and on held-out prompts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tinychat.config.rollout_stages import RolloutStage
from tinychat.config.schema import PROMPT_KINDS, Config, OnBadRow, PeftConfig, PeftKind
from tinychat.data.batching import rows_at_once
from tinychat.data.preferences.prompts import PromptBatch, PromptBatches, prompt_shape, prompt_source
from tinychat.engine import Batch, Engine, evaluation_engine
from tinychat.evaluation.final_answer import split_reply
from tinychat.models.actor_critic import ActorCritic, hidden_and_values, policy_and_values, policy_of
from tinychat.models.adapters import adapter_in_use, is_adapter
from tinychat.models.checkpoints import start_model
from tinychat.models.generation.decode import DecodeOptions
from tinychat.models.load import WeightsInFile
from tinychat.models.logprobs import OutputHead
from tinychat.models.vocabulary import Vocabulary
from tinychat.rl.rewards import Rewards, gold_rewards, known_rewards
from tinychat.rl.rollout import (
    ALONE,
    MEASURES,
    VALUES,
    Experience,
    Rollout,
    measure,
    sample_replies,
    to_experience,
    token_measures,
    write_rollout,
)
from tinychat.runs.rollouts import path_of
from tinychat.runtime.world import World
from tinychat.stages import Context
from tinychat.stages.chats import ready_to_reply
from tinychat.stages.common import log, write_table
from tinychat.stages.requests import HeldOutReplies
from tinychat.text.chat_template import end_ids, reply_text
from tinychat.text.tokenizer import vocabulary_size

CALIBRATION = 16  # prompts at least
WHOLE = PeftConfig("none", PeftKind.none, None, None, None, None)


def get_policy(config: Config, context: Context, tokenizer: Any, dropout: float | None = 0.0) -> Any:
    """The policy of init_from. dropout: in place of its own rates; None: these."""
    start = context.parents["init_from"]
    assert start is not None  # tinychat.runs.parents
    entries = vocabulary_size(tokenizer)
    policy = start_model(start, config.peft, dropout, context.run_dir / "merged_base", entries, new_adapter=True)
    return ready_to_reply(policy, tokenizer, config, "policy")


class Reference:
    """The policy as it was at the start: a second copy of it, or the same weights with the adapter switched off."""

    def __init__(self, config: Config, context: Context, policy: Any, entries: int):
        self._copy: Engine | None = None
        self._weights: WeightsInFile | None = None
        if not is_adapter(policy):
            start = str(context.parents["init_from"])
            model = start_model(start, WHOLE, 0.0, entries=entries)
            self._copy = evaluation_engine(model, config.precision, context.world)
            self._weights = WeightsInFile(model, Path(start))

    def rest(self) -> None:
        """Take no memory, as far as that goes, until it is asked again."""
        if self._weights is not None:
            self._weights.rest()

    @contextlib.contextmanager
    def model(self, policy: Any) -> Iterator[Any]:
        """Inside: the reference, to be called without gradients."""
        if self._weights is not None:
            self._weights.wake()
        if self._copy is not None:
            with self._copy.inference() as model:
                yield model
        else:
            with adapter_in_use(policy, None):
                yield policy


class Models:
    """The policy in its engine, with a value function or without, and the reference: what a rollout is made and
    measured with. To an evaluation it is the policy's engine."""

    def __init__(self, engine: Engine, reference: Reference | None, vocabulary: Vocabulary):
        """engine: of a causal language model, or of an ActorCritic; reference: None where nothing is compared with
        it."""
        self.engine, self.reference, self.vocabulary = engine, reference, vocabulary
        self.world = engine.world

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.engine.dtype

    @property
    def measures(self) -> tuple[str, ...]:
        """What `measure` says of a token."""
        measures = ALONE if self.reference is None else MEASURES
        return (*measures, VALUES) if isinstance(self.engine.model, ActorCritic) else measures

    @contextlib.contextmanager
    def inference(self) -> Iterator[Any]:
        """The policy, as Engine.inference."""
        with self.engine.inference() as model:
            yield policy_of(model)

    @contextlib.contextmanager
    def generation(self) -> Iterator[Any]:
        """The policy, as Engine.generation."""
        with self.engine.generation() as model:
            yield policy_of(model)

    def measure(self, batch: Batch, temperature: float, full_kl: bool) -> dict[str, Tensor]:
        """`measures` (b, t) of a batch of input_ids, targets (b, t), where several reply to one prompt with their
        `group` (b,); temperature and full_kl as token_measures."""
        rows = batch["input_ids"], batch["targets"], batch.get("group")
        with self.engine.inference() as model:
            policy = policy_of(model)
            hidden, values = hidden_and_values(model, *rows)
            ref_hidden: Tensor | None = None
            if self.reference is not None:
                with self.reference.model(policy) as reference:
                    ref_hidden, _ = hidden_and_values(reference, *rows)
            # How often the heads are called depends on a rank's own tokens.
            with self.engine.whole(policy.get_output_embeddings()):
                ref_head = None
                if self.reference is not None:
                    with self.reference.model(policy) as reference:
                        ref_head = OutputHead(reference, self.vocabulary)
                found = token_measures(
                    hidden,
                    OutputHead(policy, self.vocabulary),
                    ref_hidden,
                    ref_head,
                    batch["targets"],
                    temperature,
                    full_kl,
                    self._as_reference(policy),
                )
        return found if values is None else found | {VALUES: values}

    def _as_reference(self, policy: Any) -> Callable[[], contextlib.AbstractContextManager]:
        return contextlib.nullcontext if self.reference is None else partial(self.reference.model, policy)

    def update_logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """Log-probabilities (b, t) as an update computes them: with the model in training mode."""
        with self.engine.inference() as model:
            model.train()
            rows = batch["input_ids"], batch["targets"]
            return policy_and_values(model, *rows, temperature, self.vocabulary, group=batch.get("group"))[0]


class Sampler:
    """Replies to prompts, with everything that is known of them before learning."""

    def __init__(self, stage: RolloutStage, tokenizer: Any, models: Models, rewards: Rewards):
        self._stage, self._tokenizer, self._rewards = stage, tokenizer, rewards
        self.models, self.end_ids, self.temperature = models, end_ids(tokenizer), stage.temperature

    @contextlib.contextmanager
    def at(self, temperature: float) -> Iterator[None]:
        """Inside: replies are sampled and measured at another temperature than in training."""
        own, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = own

    def sample(self, batch: PromptBatch, seed: int, group: int = 1) -> Rollout:
        """`group` replies to each prompt of a global batch, side by side."""
        stage, models = self._stage, self.models
        options = DecodeOptions(stage.response_length, self.end_ids, self.temperature, seed, models.vocabulary, group)
        pad_id, batch_size = self._tokenizer.pad_token_id, stage.rollout_batch_size
        with models.generation() as policy:
            return sample_replies(policy, batch, options, pad_id, batch_size, models.world, models.dtype)

    def measure(self, rollout: Rollout) -> Experience:
        """Log-probabilities under policy and reference, entropy, values where there is a value function."""
        experience = to_experience(rollout.prompts, rollout.responses, self._tokenizer.pad_token_id, rollout.group)
        models = self.models
        models.engine.rest()  # what sampling has freed
        most, length = self._stage.rollout_batch_size, experience.targets.shape[1]
        width = policy_of(models.engine.model).config.hidden_size  # of a weight ZeRO-3 has a part
        rows = rows_at_once(length, most, width, models.world.device.type)
        rows = min(most, max(1, rows // rollout.group) * rollout.group)  # a prompt is computed once for its replies
        measure(experience, self.forward, models.measures, rows, models.world)
        if models.reference is not None:
            models.reference.rest()
        return experience

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Models.measures of a batch, as Models.measure."""
        return self.models.measure(batch, self.temperature, self._stage.full_kl)

    def replies(self, rollout: Rollout) -> list[str]:
        """The replies as text."""
        return [reply_text(self._tokenizer, response) for response in rollout.responses]

    def score(self, rollout: Rollout, held_out: bool = False) -> None:
        """Add the rewards, and what each part of them says; "gold" is the oracle's, where it knows. held_out: as
        Rewards.score."""
        replies = self.replies(rollout)
        rollout.rewards, rollout.parts = self._rewards.score(rollout.rows, replies, rollout.sequences, held_out)
        rollout.known = torch.tensor(known_rewards(rollout.parts))
        gold = gold_rewards(rollout.rows, replies)
        rollout.parts |= {"gold": gold} if gold is not None else {}

    def calibrate(self, prompts: PromptBatches, seed: int, group: int) -> None:
        """Find by how much the reward's parts are to be scaled, on a rollout that nothing is learnt from: of as many
        prompts as a step's, or of CALIBRATION where these are more, so that each kind of prompt is among them."""
        ranks, size = self.models.world.size, max(CALIBRATION, self._stage.rollout_size // group)
        rollout = self.sample(prompts.batch(0, -(-size // ranks) * ranks), seed, group)
        self.score(rollout)
        self._rewards.weighing.calibrate(rollout.parts, [row.kind for row in rollout.rows])

    def by_kind(self, rollout: Rollout) -> dict[str, float]:
        """Of a rollout with scores, what there is to log of costs, and of prompts that have kinds."""
        known, rewards = rollout.known.tolist(), rollout.rewards
        found = self._rewards.weighing.cost_and_help(rollout.parts, known)
        for kind in PROMPT_KINDS:
            own = [there and row.kind == kind for there, row in zip(known, rollout.rows, strict=True)]
            if any(own):
                found[f"{kind}_reward"] = mean(rewards[own])
                told = self._rewards.weighing.cost_and_help(rollout.parts, own)
                found |= {f"{kind}_cost": told["cost"]} if told else {}
        return found


def spread(prompts: PromptBatches, most: int, world: World) -> PromptBatch:
    """At most so many prompts at even distances, alike many for every rank."""
    size = max(1, min(len(prompts), most) // world.size) * world.size
    picked = [index * len(prompts) // size for index in range(size)]
    return PromptBatch([prompts.rows[i] for i in picked], [prompts.ids[i] for i in picked], picked)


def thought_lengths(tokenizer: Any, replies: Sequence[str]) -> dict[str, float]:
    """Mean tokens of thoughts and of answers, where replies mark a thought (final_answer); else nothing."""
    parts = [split_reply(reply, by_line=False) for reply in replies]
    if not any(part.thought for part in parts):
        return {}
    found = {"rl/thought_length": [part.thought for part in parts], "rl/answer_length": [part.answer for part in parts]}
    return {
        name: mean([len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids])
        for name, texts in found.items()
    }


def mean(values: Any) -> float:
    return float(torch.as_tensor(values, dtype=torch.float64).mean())


SEED = 2**61  # of the draws, the same at every evaluation


class PolicyEvaluation:
    """Held-out prompts, requests and instructions, as far as the data have them."""

    def __init__(self, config: Config, context: Context, tokenizer: Any, length: int, sampler: Sampler):
        self._stage, self._sampler, self._run_dir = config.stage, sampler, context.run_dir
        source = prompt_source(config.data, "validation", prompt_shape(config.reward))
        prompts = PromptBatches(
            source.rows(), tokenizer, length, config.stage.response_length, config.seed, OnBadRow.skip
        )
        of_data = {"fingerprint": source.fingerprint(), "prompts": len(prompts)}
        self.prompts = spread(prompts, config.stage.eval_prompts, context.world)
        size = len(self.prompts.ids)
        log.info("validation: %d of %d prompts get a sampled reply", size, len(prompts))
        self.replies = HeldOutReplies(tokenizer, length, config, context)
        self.facts = {"validation": of_data, **self.replies.sets}  # for the lineage

    def measure(self, step: int, beta: float, last: bool, start: bool = False) -> dict[str, float]:
        """Reward, KL and objective of sampled replies; safety and instruction accuracy of greedy ones. The sampled ones
        are kept beside the step's rollout, where those are kept.

        beta: weight of the KL penalty now; stage.objective_beta overrules it in the objective, so that runs with
        different penalties can be compared.
        """
        stage, temperature = self._stage, self._stage.objective_temperature or self._stage.temperature
        with self._sampler.at(temperature):
            rollout = self._sampler.sample(self.prompts, SEED)
            experience = self._sampler.measure(rollout)
        self._sampler.score(rollout, held_out=True)
        rollout.scores = rollout.rewards
        if stage.keep_rollouts and self._sampler.models.world.is_main:
            facts = {"step": step, "temperature": temperature, "seed": SEED, "beta": beta}
            write_rollout(path_of(self._run_dir, step, held_out=True), rollout, experience, facts)
        found = {"eval/reward": mean(rollout.rewards[rollout.known])}
        found |= {f"eval/{name}": value for name, value in self._sampler.by_kind(rollout).items()}
        best = mean(rollout.parts["gold"]) if "gold" in rollout.parts else found["eval/reward"]
        found["eval/objective"] = best
        if experience.compared:
            found["eval/kl"] = per_reply = experience.kl().sum().item() / len(rollout)
            weight = beta if stage.objective_beta is None else stage.objective_beta
            found["eval/objective"] = best - weight * per_reply
        policy = cast(Engine, self._sampler.models)
        return found | self.replies.measure(policy, None if last else stage.eval_rows, start)

    def write_tables(self) -> None:
        """The latest replies, for the report and the tracker."""
        self.replies.write_tables()


def rollout_table(context: Context, rollout: Rollout, experience: Experience, replies: list[str]) -> None:
    """The rollout's replies with reward, what each part of it says, and KL where it is measured, the best and the worst
    first."""
    kinds = [row.kind for row in rollout.rows if row.kind]
    columns = ["prompt", "reply", "reward", *rollout.parts, *(["KL (nats)"] if experience.compared else []), "ended"]
    columns += ["kind"] if kinds else []
    kl = experience.kl().sum(1).tolist() if experience.compared else []
    rows = []
    for index, row in enumerate(rollout.rows):
        said = [values[index] for values in rollout.parts.values()]
        numbers = [rollout.scores[index].item(), *said, *kl[index : index + 1]]
        shown = [round(number, 3) if math.isfinite(number) else "missing" for number in numbers]
        ended = "yes" if rollout.ended[index] else "no"
        rows.append([row.messages[-1]["content"], replies[index], *shown, ended, *([row.kind] if kinds else [])])
    rows.sort(key=lambda row: math.inf if row[2] == "missing" else -float(str(row[2])))
    ends = [row for pair in zip(rows, reversed(rows), strict=True) for row in pair][: len(rows)]
    write_table(context, "rollout", "Replies of the last rollout, best and worst in turn", columns, ends, shown=12)
