"""The names of every metric, once: code, MLflow, metrics.jsonl and the report use these and no others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Literal

from tinychat.config.specs import SPECS
from tinychat.config.stages import PASS_K


def with_bounds(metrics: dict[str, str]) -> dict[str, str]:
    """The metrics, each followed by NAME_low and NAME_high, the bounds of its 95 % confidence interval."""
    found: dict[str, str] = {}
    for name, meaning in metrics.items():
        found |= {name: meaning, f"{name}_low": "lower 95 % bound", f"{name}_high": "upper 95 % bound"}
    return found


METRICS: dict[str, str] = {
    "train/loss": "loss of the update: of language models nats per token, of reward models per pair or reply, of PPO "
    "policy and value loss per token, of groups the policy's as stage.loss averages it, of DPO per pair",
    "train/grad_norm": "global gradient norm before clipping",
    "train/reward_accuracy": "share of the step's pairs whose chosen reply has the higher implicit reward",
    "train/reward_margin": "mean implicit reward of the step's chosen minus rejected replies",
    "train/chosen_reward": "mean implicit reward of the step's chosen replies, beta times the gain in log-probability",
    "train/rejected_reward": "mean implicit reward of the step's rejected replies",
    "train/chosen_logprobs": "mean log-probability of the step's chosen replies, in nats per reply",
    "train/rejected_logprobs": "mean log-probability of the step's rejected replies, in nats per reply",
    "train/ce": "cross-entropy to the tokens of the data's replies beside a teacher, in nats per token",
    "train/kl_teacher": "stage.divergence from the teacher on the step's replies of the data, at "
    "stage.teacher_temperature, in nats per token",
    "train/on_policy_kl": "stage.on_policy_divergence from the teacher on the step's own replies, in nats per token",
    "train/on_policy_length": "mean tokens of the step's own replies, the end token included",
    "train/on_policy_ended": "share of the step's own replies that ended by themselves, before stage.on_policy_tokens",
    "eval/teacher_loss": "mean negative log-likelihood of held-out replies under the teacher, in nats per token",
    "eval/gap_closed": "share of the student's distance from that, as it was before the first step, that is gone",
    "eval/loss": "held-out loss: of language models nats per token, of reward models per pair or reply, "
    "of DPO per pair",
    "eval/ppl": "perplexity of held-out tokens, exp(eval/loss)",
    "eval/bits_per_byte": "held-out bits per byte of text; comparable between tokenizers",
    "eval/tokens": "held-out tokens measured",
    **with_bounds(
        {
            "eval/instruction_accuracy": "share of held-out instructions with a checkable answer that are met",
            "eval/accuracy": "share of held-out prompts with a checkable answer whose greedy reply is right",
            **{
                f"eval/pass_at_{k}": f"chance that one of {k} replies sampled for a held-out prompt is right"
                for k in PASS_K
            },
            "eval/rouge_l": "ROUGE-L F1 of replies to held-out prompts with an open answer",
            "eval/exact_match": "share of replies equal to a short reference (up to 5 words)",
            "eval/response_loss": "mean negative log-likelihood of held-out replies, in nats per token",
            "eval/response_ppl": "perplexity of held-out replies, exp(eval/response_loss)",
            "eval/token_accuracy": "share of held-out reply tokens that are the likeliest token",
        }
    ),
    "eval/instruction_rows": "held-out instructions with a checkable answer",
    "eval/open_rows": "held-out prompts with an open answer",
    "eval/exact_match_rows": "held-out prompts with a short reference",
    "eval/reply_ended": "share of generated replies that the model ended itself",
    "eval/response_tokens": "held-out reply tokens measured",
    **with_bounds(
        {
            "eval/reward_accuracy": "share of held-out pairs whose chosen reply scores higher",
            "eval/safety_accuracy": "share of held-out replies whose safety the score tells right",
            "eval/safe_rate": "share of safe replies to held-out requests, by the oracle, else judge, second, rules",
            "eval/safe_rate_judge": "share of safe replies by the judge, a classifier",
            "eval/safe_rate_second": "share of safe replies by the second judge, of another kind",
            "eval/judge_agreement": "share of replies on which judge and second judge say the same",
            "eval/safe_rate_rules": "share of safe replies by the rule list",
            "eval/safe_rate_oracle": "share of safe replies by tinyworld's oracle",
            "eval/empty_replies": "share of the replies to held-out requests that have no word",
            "eval/over_refusal": "share of benign held-out requests that are refused",
            "eval/over_refusal_benign": "share of the benign prompts of data=benign that are refused",
            "eval/over_refusal_instructions": "share of held-out instructions that are refused",
            "eval/over_refusal_benign_en": "the same of the English ones",
            "eval/over_refusal_benign_zh": "the same of the Chinese ones",
            "eval/refusal_contrast": "share of the harmful prompts of data=benign, which look safe, that are refused",
            "eval/refusal_contrast_en": "the same of the English ones",
            "eval/refusal_contrast_zh": "the same of the Chinese ones",
            "eval/longest_run": "tokens of the longest stretch of a free reply in which one phrase is repeated, mean",
        }
    ),
    "eval/distinct_2": "different bigrams / all bigrams of the free replies to held-out prompts",
    "eval/reward_margin": "mean score of chosen minus rejected held-out replies",
    "eval/chosen_reward": "mean implicit reward of chosen held-out replies",
    "eval/rejected_reward": "mean implicit reward of rejected held-out replies",
    "eval/chosen_logprobs": "mean log-probability of chosen held-out replies, in nats per reply",
    "eval/rejected_logprobs": "mean log-probability of rejected held-out replies, in nats per reply",
    "eval/reward_ece": "expected calibration error of the predicted preferences, 0 to 1",
    "eval/gold_reward": "mean reward of replies to held-out requests by tinyworld's oracle",
    "eval/reward": "mean reward of replies sampled for held-out prompts",
    "eval/kept_reward": "mean reward of those that tinychat.generate keeps, the best of several with --best-of",
    "eval/response_length": "mean tokens of replies sampled for held-out prompts, the end token included",
    "eval/kl": "KL(policy || reference) per reply sampled for held-out prompts, in nats",
    "eval/objective": "gold reward (else reward) of replies sampled for held-out prompts, minus beta (or "
    "stage.objective_beta) times their KL",
    "rl/reward": "mean reward of the rollout's replies, before penalties",
    "rl/lagrange_multiplier": "what a cost weighs against help in the step's reward (reward=lagrangian)",
    **{
        f"{where}/{name}": f"mean {what} of {whose}"
        for where, whose in (("rl", "the rollout's replies"), ("eval", "replies sampled for held-out prompts"))
        for name, what in (
            ("cost", "cost: what a model of safety says, harm above 0,"),
            ("helpfulness", "helpfulness: the parts of the reward that are no costs,"),
            ("harmful_reward", "reward, of harmful prompts alone,"),
            ("benign_reward", "reward, of benign prompts alone,"),
            ("harmful_cost", "cost, of harmful prompts alone,"),
            ("benign_cost", "cost, of benign prompts alone,"),
        )
    },
    "rl/reward_std": "standard deviation of those rewards",
    "rl/reward_spread": "standard deviation of an ensemble's scores of one reply, mean over the rollout's replies",
    "rl/gold_reward": "mean reward of the rollout's replies by tinyworld's oracle",
    "rl/score": "mean reward of the rollout's replies, the penalty for a missing end included",
    "rl/return": "mean over replies of the reward minus the KL penalty",
    "rl/kl": "KL(policy || reference) per reply, estimated from its tokens (k1), in nats",
    "rl/kl_per_token": "the same per token, by the estimator of the penalty, in nats",
    "rl/kl_full": "KL(policy || reference) of the next token over the whole vocabulary, mean over tokens, in nats",
    "rl/beta": "weight of the KL penalty",
    "rl/entropy_coef": "weight of the entropy bonus",
    "rl/entropy": "entropy of the policy's next token, mean over tokens, in nats",
    "rl/response_length": "mean tokens of a reply, its end token included",
    "rl/thought_length": "mean tokens of a reply's thought (<think>, or before ####), where replies mark any",
    "rl/answer_length": "mean tokens of what follows it",
    "rl/eos_rate": "share of replies that the policy ended itself",
    "rl/advantage_std": "standard deviation of the advantages before whitening",
    "rl/policy_loss": "loss of the policy by its advantages, mean over the updates' tokens",
    "rl/ptx_loss": "loss of stage.ptx's replies, mean over the tokens of all updates, in nats, before its weight",
    "rl/value_loss": "loss of the value function, mean over the updates' tokens",
    "rl/explained_variance": "1 - variance of (return - value) / variance of returns, before the update",
    "rl/reward_missing": "share of the rollout's replies without a reward",
    "rl/group_std": "standard deviation of the rewards in a group, mean over all groups sampled",
    "rl/group_unique": "different replies in a group, mean over the rollout's groups",
    "rl/groups_right": "share of all groups sampled whose replies all have a reward above 0",
    "rl/groups_wrong": "share of all groups sampled whose replies all have none above 0",
    "rl/groups_equal": "share of all groups sampled whose rewards are all equal: they teach nothing",
    "rl/groups_replaced": "groups of the rollout that took the place of those",
    "rl/kl_loss": "KL(policy || reference) as a loss, mean over the updates' tokens, in nats",
    "rl/correction": "weight of the updates' tokens for what sampler and trainer disagree on, mean",
    "rl/stale": "share of the updates' tokens left out as stale",
    "rl/approx_kl": "KL(old || new) of the updates, estimated from their tokens (k3), in nats per token",
    "rl/clip_frac": "share of the updates' tokens whose loss the clipping decides",
    "rl/value_clip_frac": "share of the updates' tokens whose value loss the clipping decides",
    "rl/ratio": "mean ratio of new to old probability over the updates' tokens",
    "rl/ratio_max": "largest of those ratios",
    "rl/ratio_min": "smallest of those ratios",
    "rl/first_kl": "KL of the policy from itself before a step's first update, in nats per token: 0 but for rounding",
    "rl/updates": "updates of the step that were made; fewer than planned where max_kl stopped them",
    "rl/sampler_gap": "mean distance of log-probabilities while sampling and in the forward pass, in nats per token",
    "rl/sampler_gap_max": "the largest such distance of a token, in nats",
    "perf/rollout_seconds": "seconds of the step spent on sampling replies",
    "perf/scoring_seconds": "seconds of the step spent on rewards, reference and values",
    "perf/update_seconds": "seconds of the step spent on updates",
    "schedule/lr": "learning rate of the step",
    "data/tokens": "tokens trained on so far; of a corpus: those in it",
    "data/trained_tokens": "tokens of the step that the loss falls on",
    "data/epoch": "passes over the training data so far",
    "data/documents": "documents in the corpus",
    "data/bytes": "bytes of text in the corpus, as UTF-8",
    "data/kept": "share of the documents read that are in the corpus",
    "tokenizer/bytes_per_token": "bytes of held-out text per token",
    "tokenizer/tokens_per_word": "tokens per word of held-out text",
    "tokenizer/unknown_tokens": "unknown tokens in held-out text (0 for a byte-level tokenizer)",
    "tokenizer/vocabulary_used": "share of the entries that occur in held-out text, 0 to 1",
    "tokenizer/documents_exact": "share of held-out documents that come back from their tokens unchanged, 0 to 1",
    "perf/tokens_per_s": "tokens trained on per second, over all ranks",
    "perf/samples_per_s": "sequences trained on per second, over all ranks",
    "perf/mfu": "arithmetic of the model per second / peak of the device, 0 to 1",
    "perf/memory_gb": "peak memory of rank 0 in GB (1e9 bytes): resident on CPU, allocated on CUDA",
    "perf/text_mb_per_s": "megabytes of text read, filtered and written per second",
    "perf/step_seconds": "seconds per optimizer step",
    "sweep/trials": "trials of the sweep that are over",
    "sweep/front": "trials of the sweep that no other beats in all objectives",
}

# eval/task/TASK/METRIC, of tasks by their own names (stage.tasks), and its standard error.
TASKS, STDERR = "eval/task/", "_stderr"
TASK_LOSSES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer")


def is_metric(name: str) -> bool:
    """Whether a name is one of METRICS, or a task's."""
    return name in METRICS or (name.startswith(TASKS) and name.count("/") == TASKS.count("/") + 1)


def meaning_of(name: str) -> str:
    """One line; "" for a name that is no metric."""
    if name in METRICS or not is_metric(name):
        return METRICS.get(name, "")
    task, _, metric = name.removeprefix(TASKS).partition("/")
    what = f"{metric.removesuffix(STDERR)} of the task {task}, by lm-eval"
    return f"standard error of {what}" if metric.endswith(STDERR) else what


# Of which less is better; of all others more is. What is neither good nor bad in itself (an entropy) is among those.
LOWER_IS_BETTER = frozenset(
    "train/loss train/grad_norm train/ce train/kl_teacher train/on_policy_kl eval/teacher_loss eval/loss eval/ppl "
    "eval/bits_per_byte eval/response_loss eval/response_ppl eval/empty_replies "
    "eval/over_refusal eval/over_refusal_benign eval/over_refusal_benign_en eval/over_refusal_benign_zh "
    "eval/over_refusal_instructions eval/longest_run "
    "eval/reward_ece eval/kl rl/kl rl/kl_per_token rl/kl_full rl/policy_loss rl/value_loss rl/ptx_loss "
    "rl/approx_kl rl/clip_frac rl/value_clip_frac rl/sampler_gap rl/sampler_gap_max rl/first_kl rl/kl_loss "
    "rl/cost rl/harmful_cost rl/benign_cost eval/cost eval/harmful_cost eval/benign_cost "
    "rl/stale rl/reward_missing rl/groups_equal rl/groups_wrong perf/rollout_seconds perf/scoring_seconds "
    "perf/update_seconds perf/step_seconds perf/memory_gb tokenizer/tokens_per_word tokenizer/unknown_tokens".split()
)


def goal_of(metric: str) -> Literal["minimize", "maximize"]:
    """Whether less or more of a metric is better, in Optuna's words."""
    lower = metric in LOWER_IS_BETTER or (metric.startswith(TASKS) and metric.endswith(TASK_LOSSES))
    return "minimize" if lower else "maximize"


def metrics_of(stage: str) -> list[str]:
    """The names of the final metrics that a stage can have, as in METRICS."""
    return [name for name in METRICS if any(fnmatchcase(name, pattern) for pattern in SPECS[stage].metrics)]


def without_bounds(names: Iterable[str]) -> list[str]:
    """Names without those of confidence bounds and standard errors: what there is to say in a sentence."""
    return [name for name in names if not name.endswith(("_low", "_high", STDERR))]


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a metric name that METRICS does not list, and that is no task's."""
    unknown = sorted(name for name in names if not is_metric(name))
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is not in tinychat.tracking.vocabulary.METRICS; add it there")


SHARE, PER_TOKEN, PER_REPLY = "share", "nats per token", "nats per reply"
# The last name of a metric -> how people say it, and its unit. Curves come in this order.
QUANTITIES: dict[str, tuple[str, str]] = {
    "loss": ("loss", PER_TOKEN),
    "ppl": ("perplexity", ""),
    "safe_rate": ("safe replies", SHARE),
    "empty_replies": ("replies without a word", SHARE),
    "over_refusal": ("benign requests refused", SHARE),
    "over_refusal_benign": ("benign prompts refused", SHARE),
    "over_refusal_benign_en": ("benign prompts refused, English", SHARE),
    "over_refusal_benign_zh": ("benign prompts refused, Chinese", SHARE),
    "over_refusal_instructions": ("instructions refused", SHARE),
    "refusal_contrast": ("prompts refused that only look benign", SHARE),
    "refusal_contrast_en": ("prompts refused that only look benign, English", SHARE),
    "refusal_contrast_zh": ("prompts refused that only look benign, Chinese", SHARE),
    "instruction_accuracy": ("instructions met", SHARE),
    "accuracy": ("answers right", SHARE),
    "acc": ("right", SHARE),
    "acc_norm": ("right, by length", SHARE),
    **{f"pass_at_{k}": (f"pass@{k}", SHARE) for k in PASS_K},
    "reward_accuracy": ("pairs ranked right", SHARE),
    "safety_accuracy": ("safety told right", SHARE),
    "objective": ("reward less its KL", ""),
    "reward": ("reward", ""),
    "gold_reward": ("gold reward", ""),
    "helpfulness": ("helpfulness", ""),
    "cost": ("cost", ""),
    "lagrange_multiplier": ("what a cost weighs", ""),
    "harmful_reward": ("reward, harmful prompts", ""),
    "benign_reward": ("reward, benign prompts", ""),
    "harmful_cost": ("cost, harmful prompts", ""),
    "benign_cost": ("cost, benign prompts", ""),
    "kl": ("KL to the start", PER_REPLY),
    "response_loss": ("loss on held-out replies", PER_TOKEN),
    "teacher_loss": ("the teacher's loss on held-out replies", PER_TOKEN),
    "gap_closed": ("distance from the teacher that is gone", SHARE),
    "ce": ("cross-entropy", PER_TOKEN),
    "kl_teacher": ("divergence from the teacher", PER_TOKEN),
    "on_policy_kl": ("divergence from the teacher on own replies", PER_TOKEN),
    "on_policy_length": ("length of own replies", "tokens"),
    "on_policy_ended": ("own replies that ended", SHARE),
    "rouge_l": ("ROUGE-L of replies", SHARE),
    "distinct_2": ("different bigrams", SHARE),
    "longest_run": ("longest repetition in a reply", "tokens"),
    "exact_match": ("short answers equal", SHARE),
    "token_accuracy": ("reply tokens told right", SHARE),
    "reward_margin": ("chosen less rejected score", ""),
    "chosen_logprobs": ("log-probability of chosen replies", PER_REPLY),
    "rejected_logprobs": ("log-probability of rejected replies", PER_REPLY),
    "chosen_reward": ("reward of chosen replies", ""),
    "rejected_reward": ("reward of rejected replies", ""),
    "reward_ece": ("calibration error", SHARE),
    "entropy": ("entropy", PER_TOKEN),
    "response_length": ("length of replies", "tokens"),
    "thought_length": ("length of thoughts", "tokens"),
    "answer_length": ("length of answers", "tokens"),
    "eos_rate": ("replies that end", SHARE),
    "reply_ended": ("held-out replies that end", SHARE),
    "clip_frac": ("tokens clipped", SHARE),
    "value_clip_frac": ("values clipped", SHARE),
    "explained_variance": ("variance of returns explained", ""),
    "policy_loss": ("clipped surrogate loss", ""),
    "value_loss": ("loss of the value function", ""),
    "bits_per_byte": ("bits per byte", ""),
    "response_ppl": ("perplexity of held-out replies", ""),
    "bytes_per_token": ("bytes per token", ""),
    "tokens_per_word": ("tokens per word", ""),
    "vocabulary_used": ("entries in use", SHARE),
    "documents_exact": ("documents unchanged", SHARE),
    "tokens": ("tokens", ""),
    "documents": ("documents", ""),
    "bytes": ("bytes of text", ""),
}
# Of the machinery: after all others.
TECHNICAL: dict[str, tuple[str, str]] = {
    "lr": ("learning rate", ""),
    "grad_norm": ("gradient norm", ""),
    "tokens_per_s": ("speed", "tokens/s"),
    "memory_gb": ("peak memory", "GB"),
    "mfu": ("model FLOPs utilisation", SHARE),
}
N_HEADLINES = 4


def label_of(metric: str, stage: str = "") -> tuple[str, str]:
    """How people say a metric and its unit ("" where it has none): eval/loss of reward -> ("loss", "nats per pair")."""
    quantity = metric.rpartition("/")[2]
    if metric.startswith(TASKS):
        task = metric.removeprefix(TASKS).partition("/")[0]
        said, unit = QUANTITIES.get(quantity) or (quantity.replace("_", " "), "")
        return f"{task}: {said}", unit
    if quantity == "loss" and stage in SPECS:
        return SPECS[stage].loss
    known = QUANTITIES.get(quantity) or TECHNICAL.get(quantity)
    return known or (quantity.replace("_", " "), SHARE if is_share(metric) else "")


def is_share(metric: str) -> bool:
    """Whether a metric, or the last name of one, is a part of a whole, from 0 to 1."""
    known = QUANTITIES.get(metric.rpartition("/")[2]) or TECHNICAL.get(metric.rpartition("/")[2])
    if known:
        return known[1] == SHARE
    return METRICS.get(metric, "").startswith("share of")


def headlines_of(stage: str, measured: Collection[str]) -> list[str]:
    """The up to four metrics among those measured that say what a run of a stage is worth, the first the most."""
    headlines = SPECS[stage].headlines if stage in SPECS else ()
    tasks = [name for name in without_bounds(measured) if name.startswith(TASKS)]
    known = {name.split("/")[2] for name in tasks}

    def is_part(name: str) -> bool:
        """Of a group that was measured too: grammar_case beside grammar."""
        words = name.split("/")[2].split("_")
        return any("_".join(words[:count]) in known for count in range(1, len(words)))

    tasks.sort(key=is_part)
    return [*(name for name in headlines if name in measured), *tasks][:N_HEADLINES]
