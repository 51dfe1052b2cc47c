"""A reward model behind MLflow's interface. MLflow copies this file into the model and runs it from there; it needs
mlflow, torch and transformers alone.

A request: {"dataframe_records": [{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}]}, or
records of "prompt" and "response". The answer is a score for each.
"""

from __future__ import annotations

import math
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Scores(PythonModel):
    """The model in the artifact `model`. model_config: end (token that ends a reply), range, mean and std (of the
    classifier's output, see tinychat_reward in its config.json)."""

    def load_context(self, context: Any) -> None:
        folder = context.artifacts["model"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.settings = context.model_config

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> list[float]:
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        return [self._score(row, number) for number, row in enumerate(rows, 1)]

    @torch.no_grad()
    def _score(self, row: Any, number: int) -> float:
        row = row if isinstance(row, dict) else {}
        messages = row.get("messages")
        if messages is None and {"prompt", "response"} <= row.keys():
            messages = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
        if messages is None:
            there = ", ".join(row) or "nothing"
            raise _refused(f"row {number}: has neither messages nor prompt and response; it has {there}")
        try:
            ids = self.tokenizer.apply_chat_template(list(messages), return_dict=True)["input_ids"]
        except Exception as error:  # of the template: roles it does not know, contents that are no texts
            raise _refused(f"row {number}: the chat template refuses it: {error}") from None
        end = int(self.settings["end"])
        if end in ids:  # what the template writes after a reply's end was not there in training
            ids = ids[: len(ids) - ids[::-1].index(end)]
        if len(ids) > (most := self.model.config.max_position_embeddings):
            raise _refused(f"row {number}: has {len(ids)} tokens, the model takes {most}")
        logit = float(self.model(torch.tensor([ids])).logits[0, 0])
        if self.settings["range"] == "raw":
            return logit
        standard = (logit - self.settings["mean"]) / self.settings["std"]
        return 1 / (1 + math.exp(-standard)) if self.settings["range"] == "unit" else standard


def _refused(what: str) -> MlflowException:
    return MlflowException(what, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(Scores())
