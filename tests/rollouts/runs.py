"""A run folder with rollouts, made by hand: two steps of training, two evaluations of the same prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

PROMPTS = ("the cat", "the big dog", "时间 in the park")
TEMPLATE = ("Instruction: ", "\nResponse:")
REPLIES = {
    "step-000001": (" the cat sat", " no", " the 龙 ran"),
    "step-000004": (" no", " a\u202ered\x1b[31m dog", " yes it is"),
    "held-out-000000": (" the dog ran", " no", " it is here"),
    "held-out-000004": (" the dog ran", " yes", " it is not here"),
}


def reply(tokenizer: Tokenizer, prompt: str, text: str, score: float, held_out: bool, values: bool) -> dict[str, Any]:
    """One whose tokens count up: their log-probabilities are -0.1, -0.2, ..., their KL 1, -1, 1 ... nats."""
    response = tokenizer.encode(text).ids
    places = range(1, len(response) + 1)
    logprobs = [-place / 10 for place in places]
    found: dict[str, Any] = {
        "place": "a place",
        "prompt": tokenizer.encode(f"{TEMPLATE[0]}{prompt}{TEMPLATE[1]}").ids,
        "response": response,
        "ended": len(response) > 1,
        "score": score,
        "parts": {"model": score, "gold": -score},
        "sampled": logprobs,
        "logprobs": logprobs,
        "ref_logprobs": [x - (-1) ** (place + 1) for place, x in zip(places, logprobs, strict=True)],
        "entropy": [0.5 for _ in places],
    }
    found |= {} if held_out else {"advantages": [score * place for place in places]}
    return found | ({"values": [score for _ in places]} if values else {})


def make(outputs: Path, tokenizer_folder: Path, stage: str = "ppo", values: bool = True) -> Path:
    """OUTPUTS/mine/STAGE/1"""
    run_dir = outputs / "mine" / stage / "1"
    (run_dir / "rollouts").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(f"run_name: {stage}\nstage: {{name: {stage}}}\n")
    checkpoint = run_dir / "checkpoints" / "step-000004"
    checkpoint.mkdir(parents=True)
    shutil.copy(tokenizer_folder / "tokenizer.json", checkpoint)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    for name, replies in REPLIES.items():
        held_out = name.startswith("held")
        # the prompts of a step are its own
        asked = PROMPTS if held_out else [f"{prompt} {name[-1]}" for prompt in PROMPTS]
        rows = [
            reply(tokenizer, prompt, text, score, held_out, values)
            for prompt, text, score in zip(asked, replies, (0.5, -1.0, 2.0), strict=True)
        ]
        write(run_dir, name, [{"step": int(name[-6:]), "temperature": 1.0}, *rows])
    return run_dir


def write(run_dir: Path, name: str, rows: list[Any]) -> Path:
    path = run_dir / "rollouts" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
