"""What would refuse a job is asked before its run folder is made: a command that is refused leaves nothing behind.

Runs in the parent process; nothing heavy is loaded, unless a tokenizer or a hub data set has to be asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tinychat.config.rollout_stages import RolloutStage
from tinychat.config.schema import Config, PeftKind, TokenizerKind
from tinychat.config.shapes import shape_of
from tinychat.config.specs import Made, spec_of
from tinychat.config.stages import ReplyEvaluation, TaskEvaluation
from tinychat.errors import UserError
from tinychat.runs import folders, parents
from tinychat.runtime import gguf, hub
from tinychat.tracking import check_packages


def check(config: Config, said: Sequence[str]) -> None:
    """Raise UserError for a package, a parent or data that are missing, and data that cannot be read as the stage needs
    them. said: the command's overrides."""
    check_packages(config.tracker)
    if config.peft.kind is PeftKind.qlora:
        hub.need(*hub.QLORA)
    if (spec := spec_of(config)).makes is Made.corpus:
        for package in hub.CORPUS:
            hub.need(package, "corpus", f"stage={spec.name}", "make it elsewhere: data=corpus needs neither")
    if spec.makes is Made.word_judge:
        from tinychat.models.word_judge import need_scikit_learn

        need_scikit_learn(f"stage={spec.name}")
    if isinstance(config.stage, TaskEvaluation) and config.stage.tasks:
        from tinychat.stages.tasks import look_at_tasks

        look_at_tasks(config)
    found = parents.find_parents(config, said)
    own = None if found["init_from"] or not shape_of(config.model).from_weights else config.model.path
    for address in filter(None, (own, *found.values())):
        if gguf.is_gguf(address):
            gguf.folder_of(address)
    from_package = not (found.get("init_from") or config.tokenizer.path) and config.tokenizer.kind is TokenizerKind.gpt2
    if from_package and importlib.util.find_spec(hub.GPT2_PACKAGE) is None:
        from tinychat.text.tokenizer import load_tokenizer

        load_tokenizer(config.tokenizer, None)  # from the hub, or the line that says what works
    if rows := spec_of(config).reads:
        from tinychat.data.look import look

        look(parents.with_corpus(config, found), rows)
    if isinstance(config.stage, RolloutStage) or (isinstance(config.stage, ReplyEvaluation) and config.stage.held_out):
        from tinychat.data.look import look_at_sets

        look_at_sets(config)


def changed_data(config: Config, run_dir: Path) -> list[str]:
    """What is not as a finished run learnt from it, in words: splits whose files are others, code of the user's. What
    cannot be read now is none of them."""
    rows = spec_of(config).reads
    lineage = folders.read_json(run_dir / folders.LINEAGE) or {}
    then, code_then = lineage.get("data"), lineage.get("code", {})
    if not rows or not isinstance(then, dict):
        return []
    from tinychat.data.look import code_hashes, fingerprints

    now: dict[str, str] = {}
    code: dict[str, str] = {}
    with contextlib.suppress(UserError):
        now = fingerprints(parents.with_corpus(config, parents.told(run_dir)), rows)
    if isinstance(code_then, dict) and code_then:
        with contextlib.suppress(UserError):
            code = code_hashes(config)
    splits = [split for split in now if split in then and then[split].get("fingerprint") != now[split]]
    rewritten = [address for address in code if address in code_then and code_then[address] != code[address]]
    return [
        *([f"{' and '.join(splits)} data"] if splits else []),
        *([f"code of yours ({', '.join(rewritten)})"] if rewritten else []),
    ]
