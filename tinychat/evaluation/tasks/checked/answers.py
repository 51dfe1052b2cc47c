"""Problems whose answers can be checked, of the files of data=: greedy accuracy, or with stage.pass_k the chance that
one of k sampled replies is right. The kind of each answer is the data's, checked as rewards do
(tinychat.evaluation.answers)."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from tinychat.config.schema import DataConfig
from tinychat.data.chats.sources import chat_source
from tinychat.data.files.splits import Split
from tinychat.errors import UserError
from tinychat.evaluation.answers import is_correct
from tinychat.evaluation.harness import OURS, Sampling
from tinychat.evaluation.statistics import pass_at_k


class CheckedAnswers(ConfigurableTask):
    """lm-eval's task, which takes from the command what a YAML file cannot say."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Raises UserError for data without checkable answers."""
        own: Sampling = config["metadata"][OURS]
        samples = own.samples if own.pass_k else 1
        kept: dict[str, Any] = {"function": "take_first_k", "k": samples}
        names = [f"pass_at_{k}" for k in own.pass_k] or ["acc"]

        def data(**_: Any) -> dict[str, Dataset]:
            return {"train": rows(own.data, "train"), "test": rows(own.data, "validation")}

        def right(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
            replies = results[0]
            count = sum(is_correct(doc["answer"], reply, doc["reference"]) for reply in replies)
            if not own.pass_k:
                return {"acc": float(count)}
            return {f"pass_at_{k}": pass_at_k(samples, count, k) for k in own.pass_k}

        super().__init__(
            config={key: value for key, value in config.items() if key != "class"}
            | {
                "custom_dataset": data,
                "repeats": samples,
                "filter_list": [{"name": "none", "filter": [kept]}],
                "generation_kwargs": {
                    "do_sample": bool(own.pass_k),
                    "temperature": own.temperature if own.pass_k else 0.0,
                    "max_gen_toks": own.tokens,
                    "until": [] if own.in_template else ["Question:"],
                },
                # In a chat template the problem alone, as stage=sft and rewards have it.
                "doc_to_text": "{{question}}" if own.in_template else "Question: {{question}}\nAnswer:",
                "process_results": right,
                "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names],
            }
        )


def rows(data: DataConfig, split: Split) -> Dataset:
    """The problems of a split: question, reference (with its solution) and the kind of its answer."""
    found = [
        {"question": row.messages[-2]["content"], "reference": row.messages[-1]["content"], "answer": row.answer}
        for row in chat_source(data, split).rows()
        if row.answer
    ]
    if not found:
        raise UserError(
            f"stage.tasks=checked_answers: data={data.name} has no {split} rows with checkable answers; give "
            "others: data=gsm8k data.path=FILES"
        )
    return Dataset.from_list(found)
