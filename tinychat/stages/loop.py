"""The optimizer steps of a stage that trains: learning rate, logging, evaluation, checkpoints, resuming, stopping.

A stage writes its own loop and calls these in order:

    with TrainingLoop(config, context, engine, tokenizer, origin, speed) as loop:
        for step in loop:
            done = loop.train(micro_batches, loss_fn, tokens, samples)
            loop.log(done, {...})
            if loop.evaluation_due:
                loop.evaluate(lambda most: {...}, during=stage.eval_rows)
            loop.save_if_due()
    return loop.result(facts)

At the end it says whether the stage has taught its model anything: by its objective then, at the start, and by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinychat.config.schema import Config
from tinychat.config.specs import spec_named
from tinychat.engine import Batch, Engine, LossFn, StepStats
from tinychat.engine.checkpoint import Checkpointer
from tinychat.engine.optim import lr_factor
from tinychat.errors import UserError
from tinychat.runs import folders
from tinychat.runtime import manifest
from tinychat.runtime.console import Progress
from tinychat.stages import Context, StageResult
from tinychat.stages.common import Speedometer, log
from tinychat.tracking import MetricsLog
from tinychat.tracking.vocabulary import goal_of

NOISE = 0.01  # of the value at the start: the first measurement reads fewer rows than the last


def verdict(
    objective: str, first: Mapping[str, float], last: Mapping[str, float], chance: tuple[float, str] | None = None
) -> str:
    """A sentence where the objective is no better than chance or worse than at the start; "" where all is well.

    first, last: metrics as measured first and last, by name. chance: the objective of a model that knows nothing, in
    its unit, and what such a model does.
    """
    if objective not in last:
        return ""
    value, sign = last[objective], -1 if goal_of(objective) == "minimize" else 1
    if chance is not None and not sign * value > sign * chance[0]:
        return (
            f"{objective} is {value:.4g}, and {chance[1]} gives {chance[0]:.4g}: nothing useful was learnt; "
            "try more steps, or another stage.lr"
        )
    start = first.get(objective, value)
    if sign * (value - start) < -NOISE * abs(start):
        return (
            f"{objective} ends at {value:.4g} and was {start:.4g} when it was measured first: the model has become "
            "worse; try a lower stage.lr, or other data"
        )
    return ""


class TrainingLoop:
    """Iterating gives the step number: optimizer steps done once this one is. It begins where a resume goes on."""

    def __init__(
        self,
        config: Config,
        context: Context,
        engine: Engine,
        tokenizer: Any,
        origin: dict[str, Any],
        speed: Speedometer,
        score: str = "eval/loss",
    ):
        """score: the held-out metric by which the best checkpoints are kept, lowest first; with a leading - highest."""
        self.stage, self.context, self.engine = config.stage, context, engine
        self._tokenizer, self._origin, self._speed = tokenizer, origin, speed
        self._every, self._keep_best = config.checkpoint.every, config.checkpoint.keep_best
        self._score_name = score
        world = context.world
        self._saves = Checkpointer(context.run_dir, world, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self.checkpoint: Path | None = self._saves.latest()
        self.step, self.metrics, self.stopped = 0, {}, False
        self._score: float | None = None
        self.state: dict[str, Any] = {}  # a stage's own, saved with every checkpoint: plain numbers and words
        self._first: dict[str, float] = {}  # what each metric was when it was measured first
        if self.checkpoint is not None:
            trainer = self._saves.load(self.checkpoint, engine, same_ranks=config.ds.enabled)
            self.step, self.metrics = trainer["step"], trainer["metrics"]
            self.state, self._first = trainer.get("stage", {}), trainer.get("first", {})
            log.info("resumed from %s", self.checkpoint)
            if world.is_main:
                self._tell_gap()
        self._progress = Progress(self.stage.max_steps, self.step, show=world.is_main)

    def __enter__(self) -> TrainingLoop:
        self.context.stop.patient = True
        self._progress.__enter__()
        self._speed.begin()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._progress.__exit__(*problem)

    def __iter__(self) -> Iterator[int]:
        while self.step < self.stage.max_steps and not self.stopped:
            self.step, self._score = self.step + 1, None  # that of step 0 is of the start, which is not saved
            self._factor = lr_factor(self.step - 1, self.stage)
            self.engine.set_lr(self._factor)
            yield self.step

    @property
    def last(self) -> bool:
        return self.step == self.stage.max_steps

    @property
    def evaluation_due(self) -> bool:
        return self.last or bool(self.stage.eval_every and self.step % self.stage.eval_every == 0)

    def _is_logged(self, step: int) -> bool:
        return step % self.stage.log_every == 0 or step == 1

    def _tell_gap(self) -> None:
        """Warn where the curves lack what was logged before the step that the run goes on from."""
        path = self.context.run_dir / "metrics.jsonl"
        there = {row.step for row in MetricsLog(path).read() if "schedule/lr" in row.metrics}
        logged = [step for step in range(1, self.step + 1) if self._is_logged(step)]
        if lost := len(set(logged) - there):
            log.warning("%s: %d of %d logged steps are gone, so there is a gap in its curves", path, lost, len(logged))

    def train(self, micro_batches: Sequence[Batch], loss_fn: LossFn, tokens: int, samples: int) -> StepStats:
        """One optimizer step over `tokens` (padding not counted) in `samples` sequences, both over all ranks.

        Raises UserError when the loss or the gradient is not finite; the last good checkpoint stays.
        """
        if self.context.examiner is None:
            done = self.engine.train_step(micro_batches, loss_fn)
        else:
            done = self.context.examiner.train_step(self.engine, self._tokenizer, micro_batches, loss_fn)
        if not (math.isfinite(done.loss) and (done.skipped or math.isfinite(done.grad_norm))):
            said = f"loss is {done.loss} at step {self.step}, the gradient's norm {done.grad_norm}"
            raise UserError(self._not_finite(said))
        self._speed.step_done(tokens, samples)
        return done

    def log(self, done: StepStats, more: dict[str, float]) -> None:
        """Log the step where that is due."""
        row = None
        if self._is_logged(self.step) or self.last:
            row = {
                "train/loss": done.loss,
                "train/grad_norm": done.grad_norm,
                "schedule/lr": self.stage.lr * self._factor,
                **more,
                **self._speed.read(),
            }
            self.metrics |= row
            self.context.log(self.step, row)
        self._progress.step(self.step, row)

    def evaluate(
        self,
        measure: Callable[[int | None], dict[str, float]],
        during: int | None = None,
        score: Callable[[int | None], dict[str, float]] | None = None,
    ) -> None:
        """Measure, log, and keep the score for a checkpoint of this step.

        measure(most): the metrics over so many held-out rows or tokens (None: all). during: how many in every
        evaluation but the last, which takes all. To be compared with the others, the last checkpoint's score is of as
        many as theirs: measured once more, by score(most) where that is quicker than `measure`.

        Raises UserError when the score is not finite: the weights are of no use.
        """
        with self._speed.paused():
            few = (score or measure)(during) if self.last and during is not None and self._keep_best else None
            found = measure(None if self.last else during)
        self.context.log(self.step, found)
        self._progress.evaluated(self.step, found)
        self.metrics |= found
        self._first = found | self._first
        name = self._score_name.removeprefix("-")
        value = found.get(name)
        if value is not None and not math.isfinite(value):
            raise UserError(self._not_finite(f"{name} is {value} at step {self.step}"))
        if self.last and during is not None:
            value = None if few is None else few[name]
        self._score = value if value is None or name == self._score_name else -value

    def save_if_due(self, prepare: Callable[[], None] | None = None) -> None:
        """Save every `checkpoint.every` steps, where an evaluation found one of the best (checkpoint.keep_best), at the
        end, and when told to stop (then the loop ends). prepare: called before every save, by all ranks."""
        self.stopped = self.context.should_stop()
        pruned = self.context.pruning and not self.last  # nobody goes on from there
        due = self.last or self.stopped or bool(self._every and self.step % self._every == 0)
        if not pruned and (due or self._saves.is_among_best(self.step, self._score)):
            state = {"metrics": self.metrics, "stage": self.state, "first": self._first}
            with self._speed.paused():
                if prepare is not None:
                    prepare()
                self.checkpoint = self._saves.save(
                    self.step, self.engine, self._tokenizer, state, self._origin, self._score
                )
            self._progress.pause_ended(self.step)

    @property
    def unfinished(self) -> bool:
        """Stopped before the last step."""
        return self.stopped and not self.last

    def result(self, facts: dict[str, Any], chance: tuple[float, str] | None = None) -> StageResult:
        """What the stage ends with; its objective is the one that its description names. chance: that of a model that
        knows nothing, and what that one does; where the stage is no better than that, or than it began, its log and
        report say so."""
        objective = spec_named(self.stage.name).objective
        if self.unfinished and self.context.pruning:
            return StageResult(self.metrics, objective, self.checkpoint, stopped=True, facts=facts)
        if self.unfinished:
            return StageResult(self.metrics, checkpoint=self.checkpoint, stopped=True, facts=facts)
        if said := verdict(objective, self._first, self.metrics, chance):
            if self.context.world.is_main:
                log.warning("%s", said)
            facts = {"warning": said, **facts}
        return StageResult(self.metrics, objective, self.checkpoint, facts=facts | self._best_fact())

    def _best_fact(self) -> dict[str, str]:
        """For the report: which checkpoint init_from=best would take, where any has a score."""
        best = folders.best_checkpoint(self.context.run_dir)
        score = manifest.checkpoint_score(best) if best is not None else None
        if best is None or score is None:
            return {}
        name = self._score_name.removeprefix("-")
        return {"best checkpoint": f"{best.name}, {name} {score if name == self._score_name else -score:.4g}"}

    def _not_finite(self, said: str) -> str:
        kept = self._saves.latest()
        safe = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved before it"
        return f"{said}; {safe}; try a lower stage.lr (now {self.stage.lr:g}), a longer warm-up, or precision=fp32"
