"""What a policy in training is worth on held-out data: reward and KL of sampled replies, safety, instructions."""

from __future__ import annotations

from typing import Any

from tinychat.config.data_checks import SOURCES_OF
from tinychat.config.schema import Config, OnBadRow, Source
from tinychat.data.preferences.prompts import PromptBatch, PromptBatches, prompt_source
from tinychat.engine import Engine
from tinychat.rl.kl import kl_estimate
from tinychat.rl.rollout import Experience, Rollout
from tinychat.runs.context import Context
from tinychat.stages.chats import HeldOut
from tinychat.stages.common import log, write_table
from tinychat.stages.policy import PolicyAlone, Sampler, mean
from tinychat.stages.requests import HeldOutRequests

SEED = 2**61  # of the draws, the same at every evaluation


class PolicyEvaluation:
    """Held-out prompts, requests and instructions, as far as the data have them."""

    def __init__(self, config: Config, context: Context, tokenizer: Any, length: int, sampler: Sampler):
        self._stage, self._sampler = config.stage, sampler
        source = prompt_source(config.data, "validation", sampler.shape)
        prompts = PromptBatches(
            source.rows(), tokenizer, length, config.stage.response_length, config.seed, OnBadRow.skip
        )
        self.facts = {"fingerprint": source.fingerprint(), "prompts": len(prompts)}  # of the data, for the lineage
        size = max(1, min(len(prompts), config.stage.eval_prompts) // context.world.size) * context.world.size
        picked = [index * len(prompts) // size for index in range(size)]
        self.prompts = PromptBatch([prompts.rows[i] for i in picked], [prompts.ids[i] for i in picked], picked)
        log.info("validation: %d of %d prompts get a sampled reply", size, len(prompts))
        has = config.data.source in SOURCES_OF["preferences"]
        self.requests = (
            HeldOutRequests(tokenizer, config, context) if has and config.stage.safety_prompts != 0 else None
        )
        # Of preferences alone (all but tinyworld's) the chosen replies are no instructions to be met.
        alone = has and config.data.source is not Source.tinyworld
        has = config.data.source in SOURCES_OF["conversations"] and not alone
        self.instructions = HeldOut(tokenizer, length, config, context) if has else None

    def measure(self, engine: Engine, beta: float, last: bool) -> dict[str, float]:
        """Reward, KL and objective of sampled replies; safety and instruction accuracy of greedy ones.

        beta: weight of the KL penalty now; stage.objective_beta overrules it in the objective, so that runs with
        different penalties can be compared.
        """
        stage = self._stage
        with self._sampler.at(stage.objective_temperature or stage.temperature):
            rollout = self._sampler.sample(self.prompts, SEED)
            experience = self._sampler.measure(rollout)
        scores, parts = self._sampler.score(rollout)
        kl = kl_estimate(experience.fields["logprobs"], experience.fields["ref_logprobs"], "k1")
        per_reply = (kl * experience.mask).sum().item() / len(rollout)
        found = {"eval/reward": mean(scores), "eval/kl": per_reply}
        best = mean(parts["gold"]) if "gold" in parts else found["eval/reward"]
        weight = beta if stage.objective_beta is None else stage.objective_beta
        found["eval/objective"] = best - weight * per_reply
        policy: Any = PolicyAlone(engine)
        if self.requests is not None:
            found |= self.requests.measure(policy)
        if self.instructions is not None:
            found |= self.instructions.measure(policy, None if last else stage.eval_rows)
        return found

    def write_tables(self) -> None:
        """The latest replies, for the report and the tracker."""
        for part in (self.requests, self.instructions):
            if part is not None:
                part.write_tables()


def rollout_table(
    context: Context, rollout: Rollout, experience: Experience, replies: list[str], parts: dict[str, list[float]]
) -> None:
    """The rollout's replies with reward, what each part of it says, and KL, the best and the worst first."""
    kl = kl_estimate(experience.fields["logprobs"], experience.fields["ref_logprobs"], "k1") * experience.mask
    columns = ["prompt", "reply", "reward", *parts, "KL (nats)", "ended"]
    rows = []
    for index, row in enumerate(rollout.rows):
        said = [round(values[index], 3) for values in parts.values()]
        asked = row.messages[-1]["content"]
        ended = "yes" if rollout.ended[index] else "no"
        score, distance = round(rollout.scores[index].item(), 3), round(kl[index].sum().item(), 3)
        rows.append([asked, replies[index], score, *said, distance, ended])
    rows.sort(key=lambda row: -float(str(row[2])))
    ends = [row for pair in zip(rows, reversed(rows), strict=True) for row in pair][: len(rows)]
    write_table(context, "rollout", "Replies of the last rollout, best and worst in turn", columns, ends, shown=12)
