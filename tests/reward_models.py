"""What the tests of reward models share: tiny ones, and pairs that are easy to tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.chat_models import babbler
from tinychat.config.schema import PeftConfig, PeftKind
from tinychat.config.stages import Pooling, ScoreRange
from tinychat.models.checkpoints import save_weights, saved_buffers, saved_parameters
from tinychat.models.reward import set_normalisation, start_reward_model
from tinychat.models.scorer import Scorer
from tinychat.text.chat_render import Message
from tinychat.text.chat_template import none_refused, set_template

NONE = PeftConfig(name="none", kind=PeftKind.none, r=None, alpha=None, dropout=None, targets=None)
LORA = PeftConfig(name="lora", kind=PeftKind.lora, r=4, alpha=8, dropout=0.0, targets=None)


def write(model: Any, folder: Path, template: str | None = "instruct") -> Path:
    """The model as a checkpoint with the babbler's tokenizer."""
    folder.mkdir(parents=True)
    save_weights(model, saved_parameters(model) | saved_buffers(model), folder)
    tokenizer = babbler()[1]
    if template:
        set_template(tokenizer, template)
    tokenizer.save_pretrained(folder)
    return folder


def language_model(folder: Path, arch: str = "llama", template: str | None = "instruct") -> Path:
    """A checkpoint with random weights."""
    return write(babbler(arch, context=64)[0], folder, template)


def started(path: Path, peft: PeftConfig = NONE, pooling: Pooling | None = Pooling.last, **options: Any) -> Any:
    """start_reward_model with a head that does not depend on what ran before."""
    torch.manual_seed(0)
    model = start_reward_model(str(path), peft, pooling, **options)
    model.config.pad_token_id = babbler()[1].pad_token_id
    return model


def reward_model(
    folder: Path, score_range: ScoreRange = ScoreRange.standard, peft: PeftConfig = NONE, seed: int = 1
) -> Path:
    """A checkpoint of a reward model with random weights, beside that of the language model it was made from."""
    model = started(language_model(folder.with_name(f"{folder.name}-base")), peft)
    stir(model, seed)
    set_normalisation(model, 0.25, 2.0, score_range)
    return write(model, folder)


def score_texts(scorer: Scorer, prompts: list[list[Message]], replies: list[str]) -> list[float]:
    """Scores of replies to prompts, as commands make them."""
    return scorer.score_ids(list(none_refused(scorer.encode(prompts, replies))))


def stir(model: Any, seed: int = 1) -> None:
    """Move what is trained a little, the adapter's zeros too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))


def sequences(rows: int = 4, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens (rows, length), and how many of each row are real, from 3 on."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 300, (rows, length), generator=generator)
    return ids, torch.linspace(3, length, rows).long()
