"""What a client asks for: bodies of the OpenAI API, checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinychat.errors import UserError

Message = dict[str, str]
MOST_ALTERNATIVES = 20  # beside each token
MOST_REPLIES = 128  # to the prompts of one request together
MOST_STOPS = 16
# Log-probabilities told in one answer. Each is some 100 bytes here, and while they are written as JSON nobody else is
# answered.
MOST_TOLD = 2**18
COLDEST = 1e-6  # temperatures below are 0: logits divided by them are no numbers any more
# Fields that change no token here, and that clients send all the same.
WITHOUT_EFFECT = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
# What is not served, with the values that ask for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "web_search_options": (),
    "verbosity": (),
}
INSTEAD = {"frequency_penalty": "repetition_penalty", "presence_penalty": "repetition_penalty"}
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "n",
    "stop",
    "stream",
    "stream_options",
    "model",
    "max_tokens",
    "logprobs",
)
CHAT = {*SAMPLING, "messages", "max_completion_tokens", "top_logprobs"}
COMPLETION = {*SAMPLING, "prompt", "echo", "best_of"}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiError(UserError):
    """A request that is not answered, as the API tells it."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.kind, self.code = status, param, kind, code

    def body(self) -> dict[str, Any]:
        return {"error": {"message": _unicode(str(self)), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request for replies."""

    model: str | None
    prompts: list[Any]  # of a chat one list of messages; else texts, and lists of token ids
    chat: bool
    max_tokens: int | None  # None: as many as the server gives
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    alternatives: int | None = None  # to tell beside each token; None: no log-probabilities
    echo: bool = False
    stream: bool = False
    tell_usage: bool = False  # at the end of a stream


def asked(body: Any, chat: bool, most_tokens: int) -> Asked:
    """The request in the body of /v1/chat/completions or /v1/completions. Raises ApiError."""
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(body, CHAT if chat else COMPLETION)
    prompts = [_messages(body)] if chat else _prompts(body)
    n = int(_number(body, "n", 1, 1, MOST_REPLIES, whole=True))
    if n * len(prompts) > MOST_REPLIES:
        raise ApiError(f"{len(prompts)} prompts with n={n}: at most {MOST_REPLIES} replies to a request", "n")
    if "best_of" in body and body["best_of"] != n:
        raise ApiError(f"best_of={body['best_of']!r}: is not served; leave it out (or as n)", "best_of")
    stream = _flag(body, "stream")
    echo = _flag(body, "echo")
    if echo and stream:
        raise ApiError("echo and stream do not go together; leave one out", "echo")
    temperature = _number(body, "temperature", 1.0, 0, 2)
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    most: float | None = None
    if chat:
        if name in body:
            most = _number(body, name, None, 1, most_tokens, whole=True)
    else:
        most = _number(body, name, 16, 0 if echo else 1, most_tokens, whole=True)
    return Asked(
        model=_text(body, "model"),
        prompts=prompts,
        chat=chat,
        max_tokens=None if most is None else int(most),
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=_number(body, "top_p", 1.0, 0, 1, above=True),
        top_k=int(_number(body, "top_k", 0, 0, 2**31, whole=True)),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 0.01, 100),
        seed=int(_number(body, "seed", 0, -(2**63), 2**63 - 1, whole=True)) if "seed" in body else None,
        n=n,
        stop=_stops(body),
        alternatives=_chat_alternatives(body) if chat else _alternatives(body),
        echo=echo,
        stream=stream,
        tell_usage=_tells_usage(body, stream),
    )


def _refuse_unknown(body: Mapping[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if name in known or name in WITHOUT_EFFECT:
            continue
        if name not in NOTHING:
            raise ApiError(f"unrecognized request argument: {name[:60]}", _unicode(name[:60]))
        if value not in NOTHING[name]:
            instead = f"; {INSTEAD[name]} is" if name in INSTEAD else ""
            raise ApiError(f"{name} is not served here{instead}; leave it out", name)


def _number(
    body: Mapping[str, Any],
    name: str,
    default: float | None,
    low: float,
    high: float,
    whole: bool = False,
    above: bool = False,
) -> float:
    """Within low (itself not, with `above`) and high. Raises ApiError."""
    value = body.get(name, default)
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ApiError(f"{name}={_short(value)}: must be {'an integer' if whole else 'a number'}", name)
    if not (low < value <= high if above else low <= value <= high):
        bounds = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise ApiError(f"{name}={_short(value)}: must be {bounds}", name)
    return value


def _unicode(text: str) -> str:
    """With halves of surrogate pairs, which JSON may spell and UTF-8 cannot, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(f"{name}={_short(value)}: must be true or false", name)
    return value


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(f"{name}={_short(value)}: must be a text", name)
    return value


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(f"stop={_short(value)}: must be a text or a list of texts, none of them empty", "stop")
    if len(stops) > MOST_STOPS:
        raise ApiError(f"stop: has {len(stops)} texts; at most {MOST_STOPS}", "stop")
    return tuple(stops)


def _chat_alternatives(body: Mapping[str, Any]) -> int | None:
    wanted = _flag(body, "logprobs")
    if "top_logprobs" in body and not wanted:
        raise ApiError("top_logprobs goes with logprobs=true", "top_logprobs")
    return int(_number(body, "top_logprobs", 0, 0, MOST_ALTERNATIVES, whole=True)) if wanted else None


def _alternatives(body: Mapping[str, Any]) -> int | None:
    if body.get("logprobs") is False or "logprobs" not in body:
        return None
    return int(_number(body, "logprobs", 0, 0, MOST_ALTERNATIVES, whole=True))


def _tells_usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise ApiError('stream_options: must be {"include_usage": true} or left out', "stream_options")
    if not stream:
        raise ApiError("stream_options goes with stream=true", "stream_options")
    return _flag(options, "include_usage")


def _messages(body: Mapping[str, Any]) -> list[Message]:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise ApiError("messages: must be a list of messages, one at least", "messages")
    found = []
    for index, message in enumerate(given):
        place = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            roles = ", ".join(ROLES)
            raise ApiError(f"{place}: must be an object with a role ({roles}) and a content", f"{place}.role")
        found.append({"role": ROLES[role], "content": _content(message.get("content"), place)})
    if found[-1]["role"] == "assistant":
        raise ApiError("messages: the last one is the assistant's, so that there is nothing to reply to", "messages")
    return found


def _content(content: Any, place: str) -> str:
    """A text, or the text of the parts."""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ApiError(f"{place}.content: only parts of type text are served", f"{place}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(f"{place}.content: must be a text", f"{place}.content")
    return content


def _prompts(body: Mapping[str, Any]) -> list[Any]:
    given = body.get("prompt", "")
    if isinstance(given, str) or (isinstance(given, list) and given and _is_token(given[0])):
        given = [given]
    whole = isinstance(given, list) and 0 < len(given) <= MOST_REPLIES
    if not whole or not all(
        isinstance(one, str) or (isinstance(one, list) and one and all(map(_is_token, one))) for one in given
    ):
        raise ApiError(
            f"prompt: must be a text, a list of token ids, or a list of up to {MOST_REPLIES} of these, none of them of "
            "no tokens",
            "prompt",
        )
    return given


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
