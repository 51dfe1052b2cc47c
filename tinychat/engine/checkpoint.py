"""Checkpoints: a Hugging Face folder, a lineage file, and (for the newest ones) all that an exact resume needs.

    step-000100/
        model.safetensors  config.json  tokenizer.json ...   what AutoModelForCausalLM and AutoTokenizer load (of an
                                                             adapter: its own weights, and which base they belong to)
        lineage.json                                         where it comes from
        manifest.json                                        size and checksum of every file: damage is noticed
        trainer_state/                                       step, counters, optimizer, random numbers

A checkpoint is written under a temporary name, synced to disk, and renamed: a crash or a full disk leaves the ones
before it as they were.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from tinychat.engine import Engine
from tinychat.errors import UserError
from tinychat.models.checkpoints import save_weights
from tinychat.models.load import one_line
from tinychat.runs import folders
from tinychat.runtime import manifest
from tinychat.runtime.run_files import disk_full, sync_folder
from tinychat.runtime.world import World

TRAINER_FILE = "trainer.json"


@dataclass
class Checkpointer:
    """Saves and prunes the checkpoints of one run. Every rank has one and calls its methods together."""

    run_dir: Path
    world: World
    keep_last: int
    keep_best: int

    @property
    def folder(self) -> Path:
        return self.run_dir / folders.CHECKPOINTS

    def save(
        self,
        step: int,
        engine: Engine,
        tokenizer: Any,
        trainer: dict[str, Any],
        lineage: dict[str, Any],
        score: float | None = None,
    ) -> Path:
        """Write checkpoint `step` and prune older ones; a lower score is better. Returns its folder.

        Raises UserError on every rank when any rank cannot write (a full disk, say); older checkpoints survive.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".saving-step-{step:06d}"
        weights = engine.full_state_dict()  # a collective: outside the guarded part, so that no rank is left waiting

        def write_shared() -> None:
            folders.remove_half_checkpoints(self.run_dir)
            (temporary / folders.TRAINER_STATE).mkdir(parents=True)
            save_weights(engine.model, weights, temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / folders.LINEAGE).write_text(json.dumps(lineage, indent=1), encoding="utf-8")
            state = json.dumps({"step": step, "world_size": self.world.size, **trainer})
            (temporary / folders.TRAINER_STATE / TRAINER_FILE).write_text(state, encoding="utf-8")

        def write_own() -> None:
            torch.save(random_state(), temporary / folders.TRAINER_STATE / f"random-rank{self.world.rank}.pt")
            engine.save_state(temporary / folders.TRAINER_STATE)

        def publish() -> None:
            manifest.write_manifest(temporary, score)
            _sync_tree(temporary)
            if final.exists():  # the same step again, after a resume from an older checkpoint
                _remove(final)
            os.replace(temporary, final)
            sync_folder(self.folder)

        try:
            self._together(write_shared if self.world.is_main else None, final)
            self._together(write_own, final)
            self._together(publish if self.world.is_main else None, final)
        except UserError:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._together(self._prune if self.world.is_main else None, final)
        return final

    def _verify_state(self, path: Path) -> None:
        """Compare the trainer's state with its checksums, every rank its share of the files."""
        state = sorted(file for file in (path / folders.TRAINER_STATE).rglob("*") if file.is_file())
        own = {str(file.relative_to(path)) for file in state[self.world.rank :: self.world.size]}
        problem = ""
        try:
            folders.verify_contents(path, own.__contains__)
        except UserError as error:
            problem = str(error)
        if told := next(filter(None, self.world.gather_objects(problem)), None):
            raise UserError(told)

    def _together(self, action: Callable[[], None] | None, target: Path) -> None:
        """Run an action that may fail on this rank; if it failed on any, raise the same on all."""
        problem = ""
        try:
            if action is not None:
                action()
        except (OSError, SafetensorError, RuntimeError) as error:
            problem = disk_full(error) or (str(error).splitlines() or [type(error).__name__])[0]
        reason = next(filter(None, self.world.gather_objects(problem)), None)
        if reason is not None:
            last = folders.list_checkpoints(self.run_dir)
            kept = f"{last[-1]} is intact" if last else "no checkpoint was saved before it"
            raise UserError(f"could not save {target}: {reason}; {kept}; free space and continue with resume=auto")

    def is_among_best(self, step: int, score: float | None) -> bool:
        """Whether a checkpoint of this step with this score would be one of the `keep_best` best there are. A
        collective: rank 0 looks, for not every rank may see the same folder at the same time."""
        if score is None or not self.keep_best:
            return False
        found = False
        if self.world.is_main:
            best = [path for path in folders.best_checkpoints(self.run_dir) if folders.checkpoint_step(path) != step]
            bound = manifest.checkpoint_score(best[self.keep_best - 1]) if len(best) >= self.keep_best else None
            found = bound is None or score < bound
        return self.world.max(float(found)) > 0

    def _prune(self) -> None:
        every = folders.list_checkpoints(self.run_dir)
        newest = set(every[-self.keep_last :])
        best = set(folders.best_checkpoints(self.run_dir)[: self.keep_best])
        for path in every:
            if path in newest:
                continue
            if path not in best:
                _remove(path)
            elif (path / folders.TRAINER_STATE).exists():
                _remove(path / folders.TRAINER_STATE)

    def latest(self) -> Path | None:
        """The newest checkpoint that a resume can start from; raises UserError if a file of it was cut short."""
        able = folders.resumable_checkpoints(self.run_dir)
        if not able:
            return None
        folders.verify_checkpoint(able[-1])
        return able[-1]

    def load(self, path: Path, engine: Engine, same_ranks: bool) -> dict[str, Any]:
        """Put engine and random numbers back as they were; returns the trainer's own counters.

        same_ranks: the engine's state is split over ranks (ZeRO), so their number must not have changed.
        Raises UserError on every rank for a state that is damaged, or was saved by another number of ranks.
        """
        self._verify_state(path)
        folder = path / folders.TRAINER_STATE
        trainer = folders.read_json(folder / TRAINER_FILE)
        if not isinstance(trainer, dict) or not {"step", "world_size", "metrics"} <= trainer.keys():
            raise UserError(
                f"{folder / TRAINER_FILE}: missing or unreadable; remove {path} to resume from the one before"
            )
        if same_ranks and trainer["world_size"] != self.world.size:
            saved = trainer["world_size"]
            raise UserError(
                f"{path} was saved by {saved} DeepSpeed ranks, it cannot be resumed by {self.world.size}; "
                f"use launch.nproc={saved}, or start from its weights: init_from={path}"
            )
        own = folder / f"random-rank{self.world.rank}.pt"
        try:
            engine.load_state(folder)
            if own.exists():
                restore_random_state(torch.load(own, weights_only=True))
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError, UnpicklingError) as error:
            # What torch and DeepSpeed raise on files that are damaged, or of another version.
            raise UserError(
                f"{folder}: cannot be loaded: {one_line(error)}; remove {path} to resume from the one before"
            ) from error
        return trainer


def random_state() -> dict[str, Any]:
    """The state of every global random generator, as tensors and plain numbers (loads with weights_only=True)."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": (version, list(internal), gauss),
        "numpy": (torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),  # type: ignore[index,union-attr]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _remove(path: Path) -> None:
    """Delete a folder so that it is gone as a checkpoint at once, even if the deletion is interrupted."""
    doomed = path.with_name(f".removing-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
