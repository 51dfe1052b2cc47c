"""A policy behind MLflow's chat interface. MLflow copies this file into the model and runs it from there; it needs
mlflow, torch and transformers alone.

A request: {"messages": [{"role": "user", "content": "..."}], "max_tokens": 64, "temperature": 0.7, "top_p": 0.9,
"top_k": 40, "stop": ["..."], "n": 1, "custom_inputs": {"seed": 1}}. A temperature of 0 takes the likeliest token.
"""

from __future__ import annotations

import threading
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import ChatModel
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage, ChatParams, TokenUsageStats
from transformers import AutoModelForCausalLM, AutoTokenizer

MOST_TOKENS = 256  # of a reply where the request says nothing
MOST_REPLIES = 16


class Chat(ChatModel):
    """The model in the artifact `model`. model_config: name, end_ids (tokens that end a reply)."""

    def load_context(self, context: Any) -> None:
        folder = context.artifacts["model"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.name = context.model_config["name"]
        self.ends = [int(token) for token in context.model_config["end_ids"]]
        self.context_length = int(self.model.config.max_position_embeddings)
        tokens = set(self.tokenizer.get_vocab().values())
        rows = range(self.model.get_input_embeddings().weight.shape[0])
        self.no_tokens = [row for row in rows if row not in tokens] or None
        self.lock = threading.Lock()  # a seed is that of the whole process

    def predict(self, context: Any, messages: list[ChatMessage], params: ChatParams) -> ChatCompletionResponse:
        said = [{"role": message.role, "content": message.content} for message in messages]
        if not said:
            raise _refused("messages: is empty; give at least one, as {'role': 'user', 'content': 'Hello'}")
        try:
            ids = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
        except Exception as error:  # of the template: roles it does not know, contents that are no texts
            raise _refused(f"messages: the chat template refuses them: {error}") from None
        room = self.context_length - len(ids)
        if room < 1:
            raise _refused(f"messages: have {len(ids)} tokens, the model sees {self.context_length} at once")
        count = params.n if params.n is not None else 1
        if not 1 <= count <= MOST_REPLIES:
            raise _refused(f"n={count}: must be 1 to {MOST_REPLIES}")
        with self.lock, torch.no_grad():
            if (seed := (params.custom_inputs or {}).get("seed")) is not None:
                torch.manual_seed(int(seed))
            rows = self._generate(ids, count, min(params.max_tokens or MOST_TOKENS, room), params)
        choices, written = [], 0
        for index, row in enumerate(rows):
            new = row[len(ids) :]
            length = next((place for place, token in enumerate(new) if token in self.ends), len(new))
            text, ended = self.tokenizer.decode(new[:length]), length < len(new)
            written += length + ended
            places = [place for stop in params.stop or () if stop and (place := text.find(stop)) >= 0]
            if places:
                text, ended = text[: min(places)], True
            message = ChatMessage(role="assistant", content=text.strip())
            choices.append(ChatChoice(message=message, index=index, finish_reason="stop" if ended else "length"))
        usage = TokenUsageStats(len(ids), written, len(ids) + written)
        return ChatCompletionResponse(choices=choices, usage=usage, model=self.name)

    def _generate(self, ids: list[int], count: int, new: int, params: ChatParams) -> list[list[int]]:
        temperature = 1.0 if params.temperature is None else params.temperature
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_p": params.top_p or 1.0, "top_k": params.top_k or 0}
        inputs = torch.tensor([ids] * count)
        done = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            suppress_tokens=self.no_tokens,
            **options,
        )
        return done.tolist()


def _refused(what: str) -> MlflowException:
    return MlflowException(what, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(Chat())
