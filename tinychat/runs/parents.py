"""What a stage builds on: the tokenizer and the checkpoint that `auto` and null stand for.

Resolved once, in the parent process, before anything is allocated; written beside the run's configuration so that a
resumed run keeps the parents it began with. A folder below the outputs is written from the run folder ("../../..."), so
that outputs may be moved as a whole. And lineage.json: where a checkpoint comes from.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tinychat
from tinychat.config.plugins import makes_replies, origins_of, reward_models, rewarded, source_of
from tinychat.config.schema import BestOfNConfig, Config, TokenizerKind
from tinychat.config.shapes import shape_of
from tinychat.config.specs import JUDGES, SPECS, Made, Start, makers, spec_of
from tinychat.config.words import for_shell
from tinychat.errors import UserError, about
from tinychat.runs import folders, trial
from tinychat.runtime import gguf, run_files
from tinychat.runtime.manifest import verifying
from tinychat.runtime.run_files import Unreadable, at_home, if_readable, tell_once

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "deepspeed", "peft", "mlflow", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python, tinychat and the packages that results depend on, and the git commit of the checkout."""
    found = {"python": sys.version.split()[0], "tinychat": tinychat.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if commit := git_commit():
        found["git_commit"] = commit
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout tinychat is imported from, "-dirty" where files differ from it; None outside one."""
    root = Path(tinychat.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def earlier_data(
    checkpoint: Path | None, data: dict[str, Any], may_change: bool, code: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The data of a resumed run's earlier steps, where they or code of the user's were others:
    [{"until_step": 100, "data": facts, "code": hashes}, ...].

    checkpoint: what is resumed from, with its own lineage; None: nothing. data: facts by split, of now. code: hashes
    by address. Raises UserError where a fingerprint or a hash differs from the checkpoint's, unless that `may_change`.
    """
    before = folders.read_json(checkpoint / folders.LINEAGE) if checkpoint else None
    if checkpoint is None or before is None:
        return []
    known, then, code_then = list(before.get("earlier_data", [])), before.get("data", {}), before.get("code", {})
    changed = [split for split in then if split in data and _print(then[split]) != _print(data[split])]
    code_now = code or {}
    rewritten = [name for name in code_then if name in code_now and code_then[name] != code_now[name]]
    if not changed and not rewritten:
        return known
    step = folders.checkpoint_step(checkpoint)
    if may_change:
        return [*known, {"until_step": step, "data": then, **({"code": code_then} if code_then else {})}]
    learnt = [f"from other {' and '.join(changed)} data ({_difference(then, data, changed)})"] if changed else []
    learnt += [f"with other code of yours ({', '.join(rewritten)})"] if rewritten else []
    what = "the files, or how they are read," if changed else "the file, or one that it imports,"
    raise UserError(
        f"{checkpoint} learnt {' and '.join(learnt)}: {what} changed since step {step}; put them back, go on with what "
        "is there now: resume_data=changed, or begin a run of its own: resume=never"
    )


def _print(facts: dict[str, Any]) -> str:
    return str(facts.get("fingerprint", ""))


def _difference(then: dict[str, Any], now: dict[str, Any], splits: list[str]) -> str:
    """Numbers of the splits that differ, else the fingerprints."""
    said = [
        f"{split} {key}: {old} then, {now[split].get(key)} now"
        for split in splits
        for key, old in then[split].items()
        if key != "fingerprint" and old != now[split].get(key)
    ]
    prints = [f"{split} {_print(then[split])[:8]} then, {_print(now[split])[:8]} now" for split in splits]
    return ", ".join(said or prints)


def describe(
    run_dir: Path,
    parents: dict[str, str | None],
    data: dict[str, Any],
    earlier: list[dict[str, Any]] | None = None,
    code: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The lineage of what a run makes: `data` holds names, fingerprints and token counts by split, `earlier` what
    earlier_data gives, `code` hashes of the user's code by address."""
    return {
        "run_dir": str(run_dir.resolve()),
        "parents": {key: value for key, value in parents.items() if value},
        "data": data,
        **({"code": dict(code)} if code else {}),
        **({"earlier_data": earlier} if earlier else {}),
        "config": folders.read_config(run_dir),
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


FILE = "parents.json"
CORPUS = "corpus.json"  # in a corpus: what it holds
_PATH = (str, type(None))
# Words for the newest finished run of the stage before: auto takes the checkpoint it ended with, best the one with the
# best score. The same of a named run: its folder, and FOLDER/best.
AUTO = ("auto", folders.BEST)
_SETTINGS = {"init_from": "init_from", "tokenizer": "tokenizer.path", Made.corpus.value: "data.path"}
_SETTINGS |= {key: f"stage.{key}" for key in (*JUDGES, "teacher")} | {"policy": "data.policy"}


def setting_of(parent: str) -> str | None:
    """The setting that stands for a parent of find_parents: reward.mine -> reward.parts.mine.path; None: there is none
    that null or auto could stand in."""
    kind, _, part = parent.partition(".")
    name, member, _ = part.partition(".")
    return f"reward.parts.{name}.{'options.paths' if member else 'path'}" if kind == "reward" else _SETTINGS.get(parent)


def write(run_dir: Path, found: dict[str, str | None], outputs: Path) -> None:
    """parents.json of a run. Raises OSError."""
    root, own = outputs.resolve(), run_dir.resolve()
    kept = {}
    for name, value in found.items():
        path = at_home(value) if value else None
        if value and path is not None and (path.is_absolute() or value.startswith(".")):
            value = str(path.resolve())
            if own.is_relative_to(root) and path.resolve().is_relative_to(root):
                value = os.path.relpath(value, own)
        kept[name] = value
    run_files.write_text_atomic(run_dir / FILE, json.dumps(kept, indent=1))


def read(run_dir: Path) -> dict[str, str | None] | None:
    """The parents of a run as find_parents gave them, at the place where they lie now; None where there is no
    parents.json. Raises Unreadable."""
    found = run_files.read_json(run_dir / FILE, {"init_from": _PATH, "tokenizer": _PATH})
    for name, value in (found or {}).items():
        if value is not None and not isinstance(value, str):
            raise Unreadable(f"{run_dir / FILE}: {name} is {value!r}, not a path")
    return (
        None
        if found is None
        else {"init_from": None, "tokenizer": None}
        | {
            name: str((run_dir / value).resolve()) if value and value.startswith(".") else value
            for name, value in found.items()
        }
    )


def told(run_dir: Path) -> dict[str, str | None]:
    """The parents for a table or report; {} where they are not known, which is said once."""
    return if_readable(lambda: read(run_dir)) or {}


def keep(run_dir: Path, config: Config, said: Sequence[str]) -> None:
    """See that a run that is continued has its parents.json: where it is missing or unreadable it is made anew, from
    the run's lineage, else as for a new run; which is said. Raises UserError, OSError."""
    try:
        if read(run_dir) is not None:
            return
        problem = f"{run_dir / FILE}: is missing"
    except Unreadable as error:
        problem = str(error)
    found = _from_lineage(run_dir)
    tell_once(f"{problem}; made anew from {run_dir / folders.LINEAGE if found else 'what the command line says'}")
    write(run_dir, found or find_parents(config, said), Path(config.paths.outputs))


def _from_lineage(run_dir: Path) -> dict[str, str | None] | None:
    """The parents that a run has written down, where they lie now if all outputs were moved."""
    kinds: dict[str, run_files.Kind] = {"parents": dict, "run_dir": str}
    lineage = if_readable(lambda: run_files.read_json(run_dir / folders.LINEAGE, kinds))
    if lineage is None:
        return None
    found: dict[str, str | None] = {"init_from": None, "tokenizer": None}
    for name, path in lineage["parents"].items():
        here = (run_dir / os.path.relpath(path, lineage["run_dir"])).resolve() if os.path.isabs(path) else None
        found[name] = str(here) if here is not None and not Path(path).exists() and here.exists() else str(path)
    return found


def find_parents(config: Config, said: Sequence[str] = ()) -> dict[str, str | None]:
    """{"init_from": checkpoint folder, GGUF file, hub id or None, "tokenizer": folder or None}; and where a stage has
    them "reward.NAME" (the model of that part of the reward; of an ensemble "reward.NAME.0", ...), "policy" (who
    answers for data=best_of_n), those of JUDGES, "teacher", "against.0", "against.1", ...

    said: the command's overrides. Raises UserError, with the commands that make the missing parents.
    """
    with verifying(config.checkpoint.verify):
        return _find_parents(config, said)


def _find_parents(config: Config, said: Sequence[str]) -> dict[str, str | None]:
    if rewarded(config):
        _check_several(config, said)
    corpus = _corpus(config, said)  # first: a tokenizer is trained on it
    init_from = _init_from(config, said)
    found = {"init_from": init_from, "tokenizer": None if init_from else _tokenizer(config, said)}
    named = config.tokenizer.path or config.tokenizer.kind is TokenizerKind.gpt2
    if init_from and named and any(word.startswith(("tokenizer=", "tokenizer.path=")) for word in said):
        # Only to be compared with the checkpoint's own, which is used.
        found["named_tokenizer"] = config.tokenizer.path or config.tokenizer.name
    return found | corpus | _scorers(config, init_from)


def _corpus(config: Config, said: Sequence[str]) -> dict[str, str | None]:
    """The corpus that data=corpus reads: the one named, else the newest of the experiment."""
    if not source_of(config.data).of_corpus:
        return {}
    if config.data.path:
        folder = find_corpus(config.data.path).resolve()
        folders.verify_contents(folder)
        return {Made.corpus.value: str(folder)}
    made_by = makers(Made.corpus)
    if found := folders.first_usable(_finished(config, lambda other: other["stage"]["name"] in made_by)):
        return {Made.corpus.value: str(found.resolve())}
    raise UserError(
        f"data=corpus: no finished {made_by[0]} run in experiment {config.experiment_name!r}; make one: python -m "
        f"tinychat.train stage={made_by[0]} data=text data.path=FILES{_same(said)}; or give data.path=FOLDER"
    )


def find_corpus(path: str, key: str = "data.path") -> Path:
    """The corpus folder that a path means: itself, or that of a run. Raises UserError where it is none, or a file is
    missing or cut short."""
    try:
        folder = folders.resolve_checkpoint(path)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from None
    if not (folder / CORPUS).is_file():
        raise UserError(f"{key}={path}: no corpus; the folder of a run of stage=corpus, or the corpus/ in it")
    return folder


def with_corpus(config: Config, found: Mapping[str, str | None]) -> Config:
    """The configuration with the corpus that its data.path stands for."""
    return replace(config, data=replace(config.data, path=path)) if (path := found.get("corpus")) else config


def _scorers(config: Config, policy: str | None) -> dict[str, str | None]:
    """The checkpoints that score or are compared, by their keys in find_parents. policy: what the stage starts from."""
    stage = config.stage
    found: dict[str, str | None] = {}
    if isinstance(data := config.data, BestOfNConfig) and makes_replies(config) and data.policy is not None:
        auto = _newest_checkpoint(config, (), data.policy) if data.policy in AUTO else None
        found["policy"] = policy = auto or _resolve(data.policy, config)
    if rewarded(config):
        for name, spec in reward_models(config.reward).items():
            newest = _newest(config, *makers(Made.reward), which=spec, policy=policy) if spec in AUTO else None
            with about(f"reward.parts.{name}"):
                found[f"reward.{name}"] = str(newest) if newest else _resolve(spec, config)
    for key, made in JUDGES.items() if not getattr(stage, "tasks", ()) else ():  # which are measured alone
        if (judge := getattr(stage, key, None)) in AUTO:
            newest = _newest(config, *makers(made), which=judge)
            found[key] = str(newest) if newest else None
        elif judge is not None:
            found[key] = _resolve(judge, config)
    if getattr(stage, "teacher", None) is not None:
        found["teacher"] = find_teacher(config)
    for index, spec in enumerate(getattr(stage, "against", ())):
        found[f"against.{index}"] = _resolve(spec, config)
    return found


def _check_several(config: Config, said: Sequence[str]) -> None:
    """Of a stage with a policy and a reward: raise one UserError with the command for each parent that is missing, in
    their order."""
    spec = spec_of(config)
    wanted: list[str] = []
    missing: list[str] = []
    origins = origins_of(config)
    if config.init_from in AUTO and not _own_weights(config) and not _newest(config, *origins):
        wanted.append(origins[0])
        missing += _chain(config, origins[0])
    models = reward_models(config.reward).values()
    if any(path in AUTO for path in models) and not _newest(config, *makers(Made.reward)):
        wanted.append(makers(Made.reward)[0])
        missing.append(makers(Made.reward)[0])
    if not wanted:
        return
    commands = [_command(config, stage, said) for stage in missing]
    if config.tokenizer.kind is TokenizerKind.bpe and any(SPECS[stage].needs_tokenizer for stage in missing):
        commands.insert(0, _command(config, makers(Made.tokenizer)[0], said))
    raise UserError(
        f"stage={spec.name} needs {' and '.join(SPECS[name].called for name in wanted)} of model={config.model.name} "
        f"in experiment {config.experiment_name!r}, and there is none yet; make what is missing, in this order: "
        f"{'; '.join(commands)}; or name folders: init_from=FOLDER reward.parts.model.path=FOLDER"
    )


def _chain(config: Config, stage: str) -> list[str]:
    """The stages to run, in order, until there is a checkpoint of one that has none."""
    spec = SPECS[stage]
    if spec.start is Start.optional or _newest(config, *spec.origins):
        return [stage]
    return [*_chain(config, spec.origins[-1]), stage]


def _command(config: Config, stage: str, said: Sequence[str]) -> str:
    words = "".join(f" {for_shell([word])}" for word in said if word.startswith(("data=", "tokenizer=")))
    model = f" model={config.model.name}" if SPECS[stage].has_model else ""
    return f"python -m tinychat.train stage={stage}{model}{words}{_same(said)}"


def _init_from(config: Config, said: Sequence[str]) -> str | None:
    spec, stage = config.init_from, spec_of(config)
    weights = stage.start is Start.weights and shape_of(config.model).from_weights and not makes_replies(config)
    if spec is None or (spec in AUTO and weights):
        if stage.start is not Start.optional and not weights:
            does = "starts from" if stage.trains else "measures"
            raise UserError(f"init_from=null: stage={stage.name} {does} a checkpoint; give init_from=FOLDER or auto")
        return None
    if spec in AUTO:
        return _newest_checkpoint(config, said)
    return _resolve(spec, config)


def _own_weights(config: Config) -> str | None:
    """What model=pretrained brings, from which each stage can start; None for a model that is trained from scratch."""
    path = config.model.path if shape_of(config.model).from_weights else None
    return _resolve(path, config) if path else None


def _resolve(spec: str, config: Config) -> str:
    """The checkpoint folder that a path or runs:/ address means; a GGUF file's address and a hub id as they are."""
    if gguf.is_gguf(spec):
        gguf.find_file(spec)
        return gguf.address_of(spec)
    if spec.startswith("runs:/"):
        best = f"/{folders.BEST}" if spec.rstrip("/").endswith(f"/{folders.BEST}") else ""
        return _whole(_mlflow_run_dir(spec, config) + best)
    if at_home(spec).exists() or folders.means_best(Path(spec)) or not _looks_like_hub_id(spec):
        return _whole(spec)
    return spec


def _whole(spec: str) -> str:
    """The checkpoint folder that a path means, compared with its checksums before anything is started from it."""
    checkpoint = folders.resolve_checkpoint(spec).resolve()
    folders.verify_contents(checkpoint)
    return str(checkpoint)


def _looks_like_hub_id(spec: str) -> bool:
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and not spec.startswith("outputs/")


def _newest_checkpoint(config: Config, said: Sequence[str], which: str | None = None) -> str:
    stages = origins_of(config)
    if not stages:
        raise UserError(f"init_from={config.init_from}: stage={config.stage.name} starts from no checkpoint; use null")
    if found := _newest(config, *stages, which=which or config.init_from):
        return str(found)
    if own := _own_weights(config):
        return own
    raise UserError(
        f"init_from={config.init_from}: no finished {' or '.join(stages)} run of model={config.model.name} in "
        f"experiment {config.experiment_name!r}; make one: python -m tinychat.train stage={stages[-1]} "
        f"model={config.model.name}{_same(said)}; or name a folder: init_from=FOLDER"
    )


def _newest(config: Config, *stages: str, which: str | None = "auto", policy: str | None = None) -> Path | None:
    """The checkpoint (`which` of AUTO) of the newest finished run of the first of some stages that has one, of this
    model and experiment. Stages that go on from the same ones (PPO, DPO and GRPO from SFT) are as good as each other:
    of them the newest run. One that is damaged or gone is passed over, as is one that reads other tokens than a
    policy's where there is one that reads the same. A trial of a search is no such run: it may be a bad one. Raises
    UserError where all are damaged."""
    found: Iterator[Path] = itertools.chain.from_iterable(
        _finished(config, partial(_trained, config, tuple(alike)))
        for _, alike in itertools.groupby(stages, key=lambda name: (SPECS[name].start, SPECS[name].starts_from))
    )
    if policy is not None and (wanted := _tokens_of(policy)) is not None:
        every = list(found)
        found = iter([folder for folder in every if _tokens_of(str(folder)) in (wanted, None)] or every)
    checkpoint = folders.first_usable(found, folders.BEST if which == folders.BEST else "")
    return checkpoint.resolve() if checkpoint else None


def find_teacher(config: Config) -> str:
    """The checkpoint that stage.teacher means; for one of AUTO that of the newest run of this stage and experiment that
    trained another model. Raises UserError."""
    stage, student, which = config.stage.name, config.model.name, config.stage.teacher
    if which not in AUTO:
        with about(f"stage.teacher={which}"):
            return _resolve(which, config)

    def wanted(other: dict) -> bool:
        return other["stage"]["name"] == stage and other["model"]["name"] != student

    if found := folders.first_usable(_finished(config, wanted), folders.BEST if which == folders.BEST else ""):
        return str(found.resolve())
    raise UserError(
        f"stage.teacher={which}: no finished {stage} run of another model than model={student} in experiment "
        f"{config.experiment_name!r}; make one: python -m tinychat.train stage={stage} model=NAME, or name a folder: "
        "stage.teacher=FOLDER"
    )


def _tokens_of(spec: str) -> Any:
    """What decides which ids a text gets, of a checkpoint or of the one that a run ended with; None where it cannot be
    told, as of an address of the hub."""
    try:
        state = run_files.read_json(folders.resolve_checkpoint(spec) / "tokenizer.json") or None
    except (UserError, Unreadable):
        return None
    return state and {key: part for key, part in state.items() if key not in ("truncation", "padding")}


def _trained(config: Config, stages: Sequence[str], other: dict) -> bool:
    name = other["stage"]["name"]
    return name in stages and (other["model"]["name"] == config.model.name or not SPECS[name].has_model)


def _finished(config: Config, wanted: Callable[[dict], bool]) -> Iterator[Path]:
    outputs = Path(config.paths.outputs)
    return folders.matching_runs(outputs, config.experiment_name, wanted, finished=True, skip=trial.of_search)


def _tokenizer(config: Config, said: Sequence[str]) -> str | None:
    tokenizer, data, spec = config.tokenizer, config.data, spec_of(config)
    if tokenizer.kind is not TokenizerKind.bpe or spec.makes in (Made.tokenizer, Made.word_judge):
        return None
    if spec.makes is Made.corpus and not tokenizer.path:  # it only counts with one
        return None
    if shape_of(config.model).from_weights and spec.has_model:
        raise UserError(
            f"tokenizer={tokenizer.name}: a pretrained model needs its own; use tokenizer=pretrained "
            f"tokenizer.path={config.model.path}"
        )
    if tokenizer.path:
        return str(folders.resolve_checkpoint(tokenizer.path).resolve())

    def wanted(other: dict) -> bool:
        return (
            other["stage"]["name"] in makers(Made.tokenizer)
            and other["tokenizer"]["vocab_size"] == tokenizer.vocab_size
            and [other["data"].get(key) for key in ("name", "path", "source")] == [data.name, data.path, data.source]
        )

    if found := folders.first_usable(_finished(config, wanted)):
        return str(found.resolve())
    raise UserError(
        f"tokenizer=bpe: none of {tokenizer.vocab_size} entries was trained on data={data.name} yet in experiment "
        f"{config.experiment_name!r}; train it: python -m tinychat.train stage={makers(Made.tokenizer)[0]} "
        f"data={data.name} tokenizer.vocab_size={tokenizer.vocab_size}{_same(said)}; or give tokenizer.path=FOLDER"
    )


def _same(said: Sequence[str]) -> str:
    """What the command says about its data and where things lie, for the command that makes its parent."""
    kept = ("experiment_name=", "model.path=", "data.", "paths.", "tracker")
    return "".join(f" {for_shell([word])}" for word in said if word.startswith(kept))


def _mlflow_run_dir(spec: str, config: Config) -> str:
    """The run folder behind a `runs:/ID` address, from the tag that tinychat sets on each of its MLflow runs."""
    from tinychat.tracking.store import resolve_uri, run_folder_of

    uri = resolve_uri(config.tracker.uri, Path(config.paths.outputs))
    return run_folder_of(spec.removeprefix("runs:/").split("/")[0], uri, Path(config.paths.outputs))
