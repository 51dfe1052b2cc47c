"""Replies of a policy to the prompts of data=best_of_n, judged by config.reward: made once, before the training reads
them.

They lie in a folder below paths.cache that is named by all that they come from: the contents of the policy and of the
reward models, the prompts, the settings of sampling. The prompts are answered in parts; a part is a file that is there
whole or not at all, and made by whichever rank or run finds it missing and not at work. So the ranks share the work, a
killed run goes on where it was, and two runs that want the same replies make them once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tinychat.config.plugins import gives, makes_replies, prompts_of, reward_models
from tinychat.config.schema import BestOfNConfig, Config, OnBadRow
from tinychat.data.chats.best_of_n import choice_of, file_of
from tinychat.data.chats.rows import LeftOut
from tinychat.data.files.row_sources import hashed
from tinychat.data.files.splits import Split, hash_file
from tinychat.data.preferences.prompts import PromptRow, PromptSource, prompt_shape, prompt_source, with_prompts
from tinychat.engine.base import resolve_precision
from tinychat.errors import UserError
from tinychat.models.adapters import find_base, is_adapter_folder
from tinychat.models.checkpoints import load_config, load_model
from tinychat.models.generation.decode import DecodeOptions, decode, own_draws
from tinychat.models.load import model_folder
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.rewards import Rewards, known_rewards
from tinychat.runtime import user_code
from tinychat.runtime.run_files import write_text_atomic
from tinychat.runtime.world import World
from tinychat.stages import Context
from tinychat.stages.common import log
from tinychat.text.chat_template import end_ids, reply_text
from tinychat.text.tokenizer import load_saved_tokenizer

VERSION = 1  # raise it when the same settings would give other replies
PART = 64  # prompts
SAY_EVERY = 15  # seconds between two lines of the log
POLL = 0.5  # seconds between two looks at what others are making


def with_replies(config: Config, context: Context) -> Config:
    """The configuration with the folder of the replies, which are made where they are missing. As it is where no policy
    has to answer. Raises UserError."""
    data = config.data
    if not isinstance(data, BestOfNConfig):
        return config
    if makes_replies(config):
        device = context.world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # as where they are found
            maker = _Maker(config, data, context)
            for split in maker.sources:
                maker.make(split)
        maker.compare()
        config = replace(config, data=replace(data, replies=str(maker.folder)))
    return config


def replies_facts(config: Config) -> dict[str, Any]:
    """What lineage says of the replies that training learns from; {} where no policy has answered."""
    return {"replies": choice_of(config.data, "train").facts()} if isinstance(config.data, BestOfNConfig) else {}


class _Maker:
    """One rank's part of the work."""

    def __init__(self, config: Config, data: BestOfNConfig, context: Context):
        self._config, self._data, self._context, self._world = config, data, context, context.world
        policy = context.parents.get("policy") or context.parents["init_from"]
        if policy is None:
            raise UserError(
                "data.policy=null: the stage starts from no checkpoint that could answer; give init_from=SFT, or "
                "data.policy=FOLDER"
            )
        self._policy = policy
        prompts = prompts_of(data)
        shape = prompt_shape(config.reward)
        splits: tuple[Split, ...] = ("train",) if gives(prompts, "conversations") else ("train", "validation")
        self.sources: dict[Split, PromptSource] = {split: prompt_source(prompts, split, shape) for split in splits}
        self._dtype = resolve_precision(config.precision, self._world.device)
        self.folder = Path(config.paths.cache) / "best_of_n" / hashed(self._identity())[:24]

    def _identity(self) -> list[Any]:
        """All that the replies come from."""
        data, parents, memo = self._data, self._context.parents, Path(self._config.paths.cache)
        reward = asdict(self._config.reward)
        for name in reward_models(self._config.reward):
            part, _, member = name.partition(".")
            within, key = (
                (reward["parts"][part]["options"]["paths"], int(member)) if member else (reward["parts"][part], "path")
            )
            within[key] = contents_of(str(parents[f"reward.{name}"]), memo)
        code = [part.path for part in self._config.reward.parts.values() if part.path and part.kind == "python"]
        named = [hash_file(path, None) for address in (*code, *data.verifiers) for path in user_code.sources(address)]
        prints = {split: source.fingerprint(memo) for split, source in self.sources.items()}
        settings = [data.samples, data.temperature, data.max_new_tokens, self._config.seed, data.on_bad_row.value]
        arithmetic = [str(self._dtype), self._config.stage.context_length]
        return [VERSION, contents_of(self._policy, memo), reward, named, prints, settings, arithmetic]

    def make(self, split: Split) -> None:
        """The split's replies, unless they are there."""
        target = file_of(str(self.folder), split)
        if target.is_file():
            log.info("%s: replies made before, %s", split, target)
            return
        rows, ids = self._prompts(split)
        parts = [self.folder / split / f"{number:06d}.jsonl" for number in range(-(-len(rows) // PART))]
        parts[0].parent.mkdir(parents=True, exist_ok=True)
        # Ranks begin at different places, so that they seldom ask for the same part.
        first = self._world.rank * len(parts) // self._world.size
        left = [*range(first, len(parts)), *range(first)]
        done, begin, said = 0, time.monotonic(), time.monotonic()
        log.info("%s: %d replies each to %d prompts by %s", split, self._data.samples, len(rows), self._policy)
        while left:
            for number in list(left):
                made = _alone(parts[number], lambda: self._part(rows, ids, number * PART))  # noqa: B023
                if made is None:
                    continue
                left.remove(number)
                done += made
                now = time.monotonic()
                if now - said > SAY_EVERY or not left:
                    said, share = now, f"{len(parts) - len(left):,} of {len(parts):,} parts of {PART} prompts answered"
                    log.info("%s: %s, %.0f tokens/s here", split, share, done / (now - begin))
            if left:
                time.sleep(POLL)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                write_text_atomic(target, "".join(part.read_text("utf-8") for part in parts))

    def compare(self) -> None:
        """Raise UserError where ranks have made different replies, as on nodes that do not share paths.cache."""
        own = [hash_file(file_of(str(self.folder), split), None) for split in self.sources]
        if any(other != own for other in self._world.gather_objects(own)):
            raise UserError(
                f"paths.cache={self._config.paths.cache}: the ranks have made different replies there, as in a folder "
                "that nodes do not share; name one, or make the replies on one node and give data.replies=FOLDER"
            )

    def _prompts(self, split: Split) -> tuple[list[PromptRow], list[list[int]]]:
        """The split's prompts that leave room for a reply, and their tokens."""
        data, source = self._data, self.sources[split]
        rows, left_out = list(source.rows()), LeftOut(data.on_bad_row)
        rows, ids = with_prompts(self._tokenizer, rows, [row.messages for row in rows], left_out)
        left_out.warn(source.name)
        fitting = [index for index, prompt in enumerate(ids) if len(prompt) + data.max_new_tokens <= self._room]
        if len(fitting) < len(rows):
            longest = max(range(len(ids)), key=lambda index: len(ids[index]))
            what = (
                f"{len(rows) - len(fitting):,} of {len(rows):,} prompts leave less than data.max_new_tokens="
                f"{data.max_new_tokens} of the {self._room:,} tokens that policy, reward model and stage take; the "
                f"longest has {len(ids[longest]):,} ({rows[longest].place})"
            )
            if data.on_bad_row is OnBadRow.fail or not fitting:
                skip = ", or leave them out: data.on_bad_row=skip" if fitting else ""
                raise UserError(f"{what}; lower data.max_new_tokens{skip}")
            log.warning("%s; left out", what)
        rows, ids = [rows[index] for index in fitting], [ids[index] for index in fitting]
        if not rows:
            raise UserError(f"data.prompts={data.prompts}: no prompts are left; {left_out.reason()}")
        self._rewards.check_rows(rows)
        return rows, ids

    def _part(self, rows: Sequence[PromptRow], ids: Sequence[list[int]], first: int) -> tuple[str, int]:
        """The lines of PART prompts from `first`, and how many tokens were generated."""
        data, group = self._data, self._data.samples
        asked, own = rows[first : first + PART], list(ids[first : first + PART])
        options = DecodeOptions(
            data.max_new_tokens, end_ids(self._tokenizer), data.temperature, None, vocabulary(self._tokenizer), group
        )
        draws = own_draws(len(own), first, options, self._config.seed)
        pad = int(self._tokenizer.pad_token_id or 0)
        arithmetic = None if self._dtype is torch.float32 else self._dtype
        done = decode(self._model, own, options, pad, data.batch_size, arithmetic, draws)
        texts = [reply_text(self._tokenizer, response) for response in done.responses]
        sequences = [own[index // group] + response for index, response in enumerate(done.responses)]
        rewards, scores = self._rewards.score([row for row in asked for _ in range(group)], texts, sequences)
        replies: list[dict[str, Any]] = [
            {"text": text, "tokens": len(response), "ended": ended, "reward": round(reward, 6) if known else None}
            for text, response, ended, reward, known in zip(
                texts, done.responses, done.ended, rewards.tolist(), known_rewards(scores), strict=True
            )
        ]
        lines = []
        for index, row in enumerate(asked):
            line = {"messages": row.messages, "place": row.place, "family": row.family}
            line["replies"] = replies[index * group : (index + 1) * group]  # type: ignore[assignment]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        return "".join(lines), sum(map(len, done.responses))

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_saved_tokenizer(self._policy)
        if not tokenizer.chat_template:
            raise UserError(
                f"data=best_of_n: {self._policy} brings no chat template, so it was not trained to reply; give "
                "init_from= or data.policy= of a stage=sft run"
            )
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        return load_model(self._policy, dropout=0.0).to(self._world.device)

    @cached_property
    def _rewards(self) -> Rewards:
        alone = World(0, 0, 1, self._world.device)
        return Rewards(
            self._config.reward, self._context.parents, self._tokenizer, alone, self._dtype, self._data.batch_size
        )

    @cached_property
    def _room(self) -> int:
        """Tokens that prompt and reply may have together."""
        readers = [scorer.context_length for scorer in self._rewards.scorers.values()]
        own = [load_config(self._policy).max_position_embeddings, self._config.stage.context_length]
        return min(length for length in (*readers, *own) if length)


def contents_of(checkpoint: str, memo_dir: Path) -> list[str]:
    """Hashes of a checkpoint's weights, tokenizer and settings, wherever it lies; of an adapter its base's too."""
    folder = model_folder(checkpoint)
    names = ("*.safetensors", "config.json", "reward.json", "tokenizer.json", "*.jinja")
    files = sorted(path for pattern in names for path in folder.glob(pattern))
    own = [f"{path.name} {hash_file(path, memo_dir)}" for path in files]
    return own + (contents_of(find_base(folder), memo_dir) if is_adapter_folder(folder) else [])


def _alone(part: Path, make: Any) -> int | None:
    """Tokens generated for a part: 0 where it is there; None where another process is making it."""
    if part.is_file():
        return 0
    try:
        with FileLock(f"{part}.lock", timeout=0):
            if part.is_file():
                return 0
            text, tokens = make()
            write_text_atomic(part, text)
            return tokens
    except Timeout:
        return None
