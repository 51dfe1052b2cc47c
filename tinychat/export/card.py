"""The model card: what the lineage, the run's result and the configuration say of a model, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

import tinychat
from tinychat.config.specs import SPECS
from tinychat.export.source import Part, Source
from tinychat.models import reward
from tinychat.models.checkpoints import load_config
from tinychat.report.headline import as_cell, figure
from tinychat.report.templates import render
from tinychat.runs import folders
from tinychat.text.chat_template import PROBE, end_token_id, template_name
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import meaning_of, without_bounds

CARD = "README.md"
MOST_STAGES = 32  # of a chain of checkpoints that begin from each other
TINYWORLD = "tinyworld"
# Of a stage's settings those that say how it is measured.
_HOW = (
    "eval_rows",
    "eval_prompts",
    "generate_rows",
    "generate_tokens",
    "response_length",
    "temperature",
    "pass_samples",
    "safety_prompts",
    "safety_tokens",
    "judge",
)


@dataclass(frozen=True)
class Stage:
    """One stage of those that made the model, as a row."""

    what: str
    model: str
    data: str
    rows: str
    also: str  # other models that it learnt from


@dataclass
class Card:
    """What card.md.j2 shows; an empty part is left out."""

    name: str
    part: str
    tag: str  # the hub's name of its task
    version: str
    called: str
    architecture: str
    parameters: int | None
    template: str | None
    context: int
    vocabulary: int
    gguf: str | None
    licence: str | None  # of all of it, where it is known
    base: str | None  # hub id or file that it began from
    bos: str = ""
    tail: str = ""  # what the template writes after a reply's end token
    formula: str | None = None  # from the classifier's output to the score
    stages: list[Stage] = field(default_factory=list)
    figures: list[tuple[str, str, str, str]] = field(default_factory=list)  # metric, value, 95 %, meaning
    conditions: list[str] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def write_card(source: Source, folder: Path, gguf: str | None = None) -> None:
    """README.md of an export. gguf: the name of the file that it lies beside."""
    text = render("export/card.md.j2", card_of(source, folder, gguf))
    (folder / CARD).write_text(text, encoding="utf-8")


def card_of(source: Source, folder: Path, gguf: str | None) -> Card:
    """folder: of the export, whose weights are counted."""
    config, tokenizer, chain = load_config(source.path), source.tokenizer, list(_chain(source.lineage))
    stage = _name((chain[-1].get("config") or {}).get("stage")) if chain else ""
    data = [str(name) for one in chain if (name := _name((one.get("config") or {}).get("data")))]
    base = _base(source, chain)
    all_ours = bool(chain) and base is None and set(data) == {TINYWORLD}
    card = Card(
        name=source.name,
        part=source.part.value,
        tag="text-generation" if source.part is Part.policy else "text-classification",
        version=tinychat.__version__,
        called=_called(source, stage),
        architecture=str(config.model_type),
        parameters=_parameters(folder),
        template=template_name(tokenizer) if tokenizer.chat_template else None,
        context=int(config.max_position_embeddings),
        vocabulary=len(tokenizer),
        gguf=gguf,
        licence=source.licence or ("mit" if all_ours else None),
        base=base,
        bos=tokenizer.bos_token or tokenizer.eos_token,
        stages=[_stage(one) for one in chain],
        licences=list(_licences(source, base, data)),
    )
    if source.part is not Part.policy and tokenizer.chat_template:
        end = str(tokenizer.convert_ids_to_tokens(end_token_id(tokenizer)))
        card.tail = tokenizer.apply_chat_template(PROBE, tokenize=False).rpartition(end)[2]
    if source.part is Part.reward:
        card.formula = _formula(folder)
    measured = _measured(source)
    if source.part is not Part.value:
        card.figures = [
            (as_cell(name), figure(name, value), _bounds(name, measured), as_cell(meaning_of(name)))
            for name in without_bounds(measured)
            if (value := measured[name]) is not None
        ]
        card.conditions = list(_conditions(source)) if card.figures else []
    card.limits = list(_limits(source, card, stage, measured))
    return card


def _called(source: Source, stage: str) -> str:
    if source.part is Part.value:
        return "the value function of a policy"
    return (
        SPECS[stage].called if stage in SPECS else {"policy": "a language model"}.get(source.part.value, "a classifier")
    )


def _name(group: Any) -> str:
    return str(group.get("name") or "") if isinstance(group, dict) else ""


def _chain(lineage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lineages of the stages that made a model, the first one first; a parent that is gone ends it."""
    found: list[dict[str, Any]] = []
    while lineage and len(found) < MOST_STAGES:
        found.append(lineage)
        start = (lineage.get("parents") or {}).get("init_from")
        lineage = (folders.read_json(Path(start) / folders.LINEAGE) or {}) if start else {}
    yield from (one for one in reversed(found) if "config" in one)


def _short(path: str) -> str:
    """A checkpoint without the folders of this machine: RUN_NAME/TIME/step-000100, a hub id as it is."""
    parts = Path(path).parts
    if folders.CHECKPOINTS in parts:
        return "/".join(part for part in parts[-4:] if part != folders.CHECKPOINTS)
    if len(parts) > 2 and re.match(r"\d{4}-\d\d-\d\d_", parts[-2]):  # what a run folder holds
        return "/".join(parts[-3:-1])
    return path if not Path(path).is_absolute() and len(parts) == 2 else parts[-1] if parts else path


def _stage(lineage: dict[str, Any]) -> Stage:
    config = lineage["config"]
    stage, data = _name(config.get("stage")), config.get("data") or {}
    path = data.get("path")
    files = f" ({', '.join(Path(one).name for one in ([path] if isinstance(path, str) else path))})" if path else ""
    train = (lineage.get("data") or {}).get("train") or {}
    rows = [f"{value:,} {key}" for key, value in train.items() if isinstance(value, int)]
    prints = str(train.get("fingerprint") or "")[:12]
    others = {key: value for key, value in (lineage.get("parents") or {}).items() if key != "init_from" and value}
    peft = _name(config.get("peft"))
    return Stage(
        what=as_cell(stage + (f" (peft={peft})" if peft not in ("", "none") else "")),
        model=as_cell(_name(config.get("model"))),
        data=as_cell(f"{_name(data)}{files}"),
        rows=as_cell(", ".join([*rows, *([f"fingerprint {prints}"] if prints else [])])),
        also=as_cell(", ".join(f"{key}: {_short(str(value))}" for key, value in others.items())),
    )


def _base(source: Source, chain: list[dict[str, Any]]) -> str | None:
    """The model that all began from, where that is somebody else's: a hub id, a file's name."""
    said = source.lineage.get("gguf")
    if isinstance(said, dict):
        return str(said.get("name") or Path(str(said.get("file"))).name)
    if not chain:
        return source.path if not Path(source.path).exists() else None
    first = chain[0]
    start = (first.get("parents") or {}).get("init_from")
    model = (first.get("config") or {}).get("model") or {}
    start = start or (model.get("path") if model.get("arch") == "pretrained" else None)
    return _short(str(start)) if start else None


def _parameters(folder: Path) -> int | None:
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as found:
            for name in found.keys():  # noqa: SIM118 - no mapping
                size = 1
                for width in found.get_slice(name).get_shape():
                    size *= width
                count += size
    return count or None


def _formula(folder: Path) -> str | None:
    """How the classifier's output becomes the score that tinychat gives; None where they are the same."""
    found = reward.settings(load_config(str(folder)))
    if found["range"] == "raw":
        return None
    standard = f"(logit - {found['mean']!r}) / {found['std']!r}"
    return f"sigmoid({standard})" if found["range"] == "unit" else standard


def _measured(source: Source) -> dict[str, float]:
    """What the run measured of this very checkpoint on held-out data."""
    if source.run is None:
        return {}
    result, step = folders.read_result(source.run) or {}, folders.checkpoint_step(source.folder)
    chosen = result.get("checkpoint")
    if chosen and (source.run / chosen).resolve() == source.folder.resolve():
        found = dict(result.get("metrics") or {})
    else:
        found = {}
        for row in MetricsLog(source.run / "metrics.jsonl").read():
            if row.step == step:
                found |= row.metrics
    return {name: value for name, value in found.items() if name.startswith("eval/") and value is not None}


def _bounds(name: str, measured: dict[str, float]) -> str:
    low, high = measured.get(f"{name}_low"), measured.get(f"{name}_high")
    return f"{figure(name, low)} to {figure(name, high)}" if low is not None and high is not None else ""


def _conditions(source: Source) -> Iterator[str]:
    config = source.lineage.get("config") or {}
    stage, facts = config.get("stage") or {}, (folders.read_result(source.run) or {}).get("facts") or {}  # type: ignore[arg-type]
    held = (source.lineage.get("data") or {}).get("validation") or {}
    rows = [f"{value:,} {key}" for key, value in held.items() if isinstance(value, int)]
    if rows:
        yield f"held-out rows of data={_name(config.get('data'))}: {', '.join(rows)}" + (
            f" (fingerprint {str(held['fingerprint'])[:12]})" if held.get("fingerprint") else ""
        )
    for key in _HOW:
        if (value := stage.get(key)) is not None:
            yield f"`stage.{key}={_short(str(value)) if key == 'judge' else value}`"
    run = [f"seed {config['seed']}"] if "seed" in config else []
    run += [f"{facts[key]}" for key in ("precision", "device") if key in facts]
    if run:
        yield f"one run: {', '.join(run)}"
    commit = (source.lineage.get("versions") or {}).get("git_commit")
    if commit:
        yield f"tinychat at commit {commit}"


def _licences(source: Source, base: str | None, data: list[str]) -> Iterator[str]:
    if source.licence:
        yield f"the file of {base} says: {source.licence}"
    elif base:
        yield f"{base}: its licence is not recorded in the lineage; look it up where it is published"
    for name in dict.fromkeys(data):
        if name == TINYWORLD:
            yield "data=tinyworld is generated by tinychat, whose licence is MIT"
        else:
            yield f"data={name}: its licence is not recorded in the lineage; look it up where it is published"


def _limits(source: Source, card: Card, stage: str, measured: dict[str, float]) -> Iterator[str]:
    yield f"It sees {card.context:,} tokens at once; its tokenizer has {card.vocabulary:,} entries."
    if source.part is Part.policy and card.template is None:
        yield "It has no chat template: it continues texts and was not trained to answer."
    if source.part is Part.value:
        yield (
            "Its output on the last token is the value of what has been said so far: the return that PPO expected "
            "of its own policy, reward and penalties."
        )
    elif not measured:
        yield "No held-out figures of this checkpoint are recorded."
    elif stage in SPECS:
        lacking = [name for name in SPECS[stage].headlines if name.startswith("eval/") and name not in measured]
        if lacking:
            yield f"Not measured in this run: {', '.join(lacking)}."
    if _name((source.lineage.get("config") or {}).get("peft")) == "qlora":
        yield "The adapter was trained beside 4-bit weights and is merged into the fp32 ones."
    if len(card.stages) > 1 or card.base:
        return
    if not card.stages:
        yield "Its lineage is not recorded: how it was made is not known here."
