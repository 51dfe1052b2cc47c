"""What several stages do the same way: tokenizer and model from their parents, the token cache, evaluation, samples."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinychat.config.plugins import source_of
from tinychat.config.schema import Config, DataConfig, ResumeData
from tinychat.config.shapes import shape_of
from tinychat.data.batching import padded_width
from tinychat.data.documents.mixture import MixedTokens
from tinychat.data.documents.sources import Split, TextSource, text_source
from tinychat.data.documents.tokens import TokenCache, document_segments, token_cache
from tinychat.data.look import code_hashes
from tinychat.engine import Batch, Engine
from tinychat.errors import UserError
from tinychat.evaluation.held_out import perplexity
from tinychat.models.adapters import is_adapter
from tinychat.models.build import build_model, describe, matmul_rate, model_vocab_size
from tinychat.models.checkpoints import load_model, pretrained_path, start_model
from tinychat.models.custom import try_out
from tinychat.models.generation.generate import continue_texts
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.runs import folders, parents
from tinychat.runtime import gguf
from tinychat.runtime.console import peak_memory_gb
from tinychat.runtime.world import World
from tinychat.stages import Context
from tinychat.text.tokenizer import load_saved_tokenizer, load_tokenizer, text_beginning, vocabulary_size

log = logging.getLogger("tinychat")


def get_tokenizer(config: Config, context: Context) -> Any:
    """The tokenizer of the checkpoint the stage starts from; of one that a run from scratch goes on from; else the
    configured one."""
    if start := context.parents["init_from"]:
        return load_saved_tokenizer(start)
    if own := folders.resumable_checkpoints(context.run_dir):  # the trained folder may have gone meanwhile
        return load_saved_tokenizer(str(own[-1]))
    return load_tokenizer(config.tokenizer, context.parents["tokenizer"])


def get_model(config: Config, context: Context, tokenizer: Any) -> Any:
    """The model to start from: a checkpoint's, or one built (from scratch or pretrained) from the model group."""
    size = vocabulary_size(tokenizer)
    if start := context.parents["init_from"]:
        model = load_model(start)
        entries = model.get_input_embeddings().num_embeddings
        if entries < size:
            raise UserError(
                f"init_from={start}: the model has {entries} entries, its tokenizer {size}; "
                "the folder holds another model's tokenizer"
            )
    elif shape_of(config.model).from_weights:
        model = start_model(pretrained_path(config.model), config.peft, config.model.dropout, entries=size).train()
    else:
        rows, begin = model_vocab_size(config.model, size), text_beginning(tokenizer)[0]
        model = build_model(config.model, rows, tokenizer.pad_token_id, tokenizer.eos_token_id, begin)
    log.info("model: %s", describe(model))
    try_own_model(config, model)
    return model


def try_own_model(config: Config, model: Any) -> None:
    """Of arch=custom see that the model does what the stage will ask. Raises UserError as custom.try_out."""
    if not shape_of(config.model).own_code:
        return
    stage, base = config.stage, model.get_base_model() if is_adapter(model) else model
    packs = getattr(stage, "isolate_documents", False) or getattr(stage, "packing", False)
    try_out(base, packs, generates=bool(getattr(stage, "samples", ())) or hasattr(stage, "generate_tokens"))


def context_length(wanted: int | None, model: Any) -> int:
    """Tokens per sequence: the stage's, else the model's. Raises UserError when the model cannot take so many."""
    most = model.config.max_position_embeddings
    if wanted is not None and wanted > most:
        raise UserError(f"stage.context_length={wanted} is longer than the model's {most}; lower it to at most {most}")
    return wanted or most


def get_tokens(
    data: DataConfig, split: Split, tokenizer: Any, config: Config, context: Context
) -> TokenCache | MixedTokens:
    """The split's token cache, of a mixture one for each source; built by whichever rank or run comes first."""

    def cached(source: TextSource) -> TokenCache:
        return token_cache(source, tokenizer, Path(config.paths.cache), progress=context.world.is_main)

    parts = source_of(data).parts(data, split)
    tokens: TokenCache | MixedTokens
    if len(parts) > 1:
        caches = {name: cached(source) for name, (source, _) in parts.items()}
        tokens = MixedTokens.of(caches, {name: weight for name, (_, weight) in parts.items()})
    else:
        tokens = cached(text_source(data, split))
    log.info("%s: %s", split, tokens.describe())
    return tokens


def split_batch(rows: Batch, micro_batch_size: int, device: torch.device) -> list[Batch]:
    """A rank's rows (B, ...) as micro-batches on the device."""
    parts = {key: value.split(micro_batch_size) for key, value in rows.items()}
    count = len(next(iter(parts.values())))
    return [{key: part[index].to(device) for key, part in parts.items()} for index in range(count)]


def split_padded(
    rows: Batch, used: Tensor, micro_batch_size: int, device: torch.device, together: int = 1
) -> list[Batch]:
    """A rank's padded rows (B, T) as micro-batches on the device, the longest first, each no wider than its own rows
    need (a multiple of 8). In which micro-batch of a step a row is changes nothing but rounding.

    Args:
        rows: input_ids among them; each (B, ...), of two dimensions or more (B, T, ...).
        used: (B,) columns of each row that there is something to learn from; the others are cut where no row of a
            micro-batch has them.
        together: so many rows side by side (a pair, a group) stay side by side.
    """
    if len(used) > micro_batch_size:
        longest = used.view(-1, together).amax(1).repeat_interleave(together)
        order = torch.argsort(longest, descending=True, stable=True)
        rows, used = {key: value[order] for key, value in rows.items()}, used[order]
    most = rows["input_ids"].shape[1]
    widths = [padded_width(int(part.max()), most) for part in used.split(micro_batch_size)]
    parts = split_batch(rows, micro_batch_size, device)
    return [
        {key: value[:, :width] if value.dim() > 1 else value for key, value in part.items()}
        for part, width in zip(parts, widths, strict=True)
    ]


def up_to_last_target(targets: Tensor) -> Tensor:
    """(B,) columns of each row up to its last target, of targets (B, T), IGNORED where there is none."""
    places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return torch.where(targets != IGNORED, places, 0).amax(1).clamp_min(1)


def describe_engine(engine: Engine) -> dict[str, Any]:
    """What the report says of where and how it was trained."""
    precision = str(engine.dtype).removeprefix("torch.")
    return {"device": str(engine.world.device), "ranks": engine.world.size, "precision": precision}


def data_facts(tokens: TokenCache | MixedTokens) -> dict[str, Any]:
    """What lineage says of a split."""
    return {"fingerprint": tokens.fingerprint, "documents": tokens.n_docs, "tokens": tokens.n_tokens}


def write_lineage(config: Config, context: Context, data: dict[str, Any]) -> dict[str, Any]:
    """Where this run's checkpoints come from, also written into the run folder. `data`: facts by split, a fingerprint
    among them. Raises UserError where a resume would go on with other data, or other code of the user's, and
    resume_data=same."""
    newest = folders.resumable_checkpoints(context.run_dir)[-1:]
    may_change = config.resume_data is ResumeData.changed
    code = code_hashes(config)
    earlier = parents.earlier_data(newest[0] if newest else None, data, may_change, code)
    if earlier:
        log.warning("up to step %s this run learnt from other data or code (lineage.json)", earlier[-1]["until_step"])
    origin = parents.describe(context.run_dir, context.parents, data, earlier, code) | _gguf_facts(config, context)
    if context.world.is_main:
        folders.write_text_atomic(context.run_dir / folders.LINEAGE, json.dumps(origin, indent=1))
    return origin


def _gguf_facts(config: Config, context: Context) -> dict[str, Any]:
    """{"gguf": what lineage says of the GGUF file that the stage starts from}, of which the log tells; {} for none."""
    start = context.parents["init_from"] or (config.model.path if shape_of(config.model).from_weights else None)
    if start is None or not gguf.is_gguf(start):
        return {}
    facts = (folders.read_json(gguf.folder_of(start) / folders.LINEAGE) or {}).get("gguf", {})
    log.info("%s: padding is %s; %s ends a text", start, facts.get("padding"), facts.get("end"))
    return {"gguf": facts}


def evaluate(
    engine: Engine,
    tokens: TokenCache | MixedTokens,
    length: int,
    batch_size: int,
    max_tokens: int | None,
    context: Context,
    begin_id: int | None = None,
) -> dict[str, float]:
    """eval/loss, eval/ppl, ... over validation tokens, the work shared among the ranks; of a mixture over those of all
    sources, as many of each as it holds. begin_id: the token that begins a document, where each is to be read by
    itself."""

    def alone(input_ids: torch.Tensor) -> Batch:
        return {} if begin_id is None else document_segments(input_ids, begin_id)

    with engine.inference() as model:

        def measure(cache: TokenCache, most: int | None) -> dict[str, float]:
            return perplexity(
                lambda input_ids, targets: token_nll(model, input_ids, targets, **alone(input_ids)),
                cache,
                length,
                batch_size,
                context.world,
                most,
            )

        if isinstance(tokens, TokenCache):
            return measure(tokens, max_tokens)
        return tokens.together({name: measure(part, most) for name, part, most in tokens.shared_out(max_tokens)})


def write_samples(
    engine: Engine, tokenizer: Any, prompts: list[str], new_tokens: int, seed: int, context: Context
) -> list[dict[str, str]]:
    """Continue the prompts (every rank computes, rank 0 writes samples.json and the tracker's table)."""
    if not prompts:
        return []
    options = SamplingOptions(temperature=0.8, top_k=50, seed=seed, max_new_tokens=new_tokens)
    with engine.generation() as model, torch.no_grad():
        texts = continue_texts(model, tokenizer, prompts, options)
    rows = [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, texts, strict=True)]
    if context.tracker is not None:
        content = json.dumps(rows, indent=1, ensure_ascii=False)
        folders.write_text_atomic(context.run_dir / "samples.json", content)
        context.tracker.log_table("samples", ["prompt", "continuation"], [list(row.values()) for row in rows])
        for row in rows:
            log.info("sample: %s|%s", row["prompt"], row["continuation"].replace("\n", " / "))
    return rows


def write_table(
    context: Context, name: str, title: str, columns: list[str], rows: list[list[Any]], shown: int | None = None
) -> None:
    """Keep a table with the run: tables/NAME.json for the report (which shows its first rows), and the tracker's.

    Rank 0 alone writes.
    """
    if context.tracker is None:
        return
    folder = context.run_dir / folders.TABLES
    folder.mkdir(exist_ok=True)
    content = {"title": title, "columns": columns, "rows": rows, "shown": shown}
    folders.write_text_atomic(folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False))
    context.tracker.log_table(name, columns, rows)


class Speedometer:
    """Tokens per second, step time and utilisation since the last reading, evaluation and saving left out."""

    def __init__(self, flops_per_token: float, dtype: torch.dtype, world: World):
        """flops_per_token: 0 where tokens do not tell the arithmetic; there is no utilisation then."""
        self.flops_per_token = flops_per_token
        self.peak = matmul_rate(world.device, dtype) * world.size
        self.device = world.device
        self.begin()

    def begin(self) -> None:
        """Time and counts start now."""
        self._steps = self._tokens = self._samples = 0
        self._begin = time.perf_counter()

    def step_done(self, tokens: int, samples: int) -> None:
        """Count an optimizer step over all ranks' tokens (padding left out) in so many sequences."""
        self._steps, self._tokens, self._samples = self._steps + 1, self._tokens + tokens, self._samples + samples

    def read(self) -> dict[str, float]:
        """The perf/ metrics since the last reading, in which at least one step was done."""
        seconds = time.perf_counter() - self._begin
        found = {
            "perf/tokens_per_s": self._tokens / seconds,
            "perf/samples_per_s": self._samples / seconds,
            "perf/step_seconds": seconds / self._steps,
            "perf/memory_gb": peak_memory_gb(str(self.device)),
        }
        if self.flops_per_token:
            found["perf/mfu"] = self.flops_per_token * self._tokens / seconds / self.peak
        self.begin()
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin


class Clock:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begin = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._begin = self.laps.get(name, 0.0) + now - self._begin, now
