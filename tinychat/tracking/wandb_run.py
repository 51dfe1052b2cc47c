"""One run in Weights & Biases, offline unless asked otherwise: RUN/wandb/offline-run-... for `wandb sync`. Used by one
thread; raises what wandb raises."""

from __future__ import annotations

import json
import secrets
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinychat.config.schema import WandbMode
from tinychat.runtime.run_files import if_readable, read_json, write_text_atomic
from tinychat.tracking.base import Row, RunInfo, Status
from tinychat.tracking.tensorboard_run import own_tags

IDENTITY = "wandb.json"  # of a run folder: which run it is, and up to which step it was sent
STEP = "step"  # the axis of all metrics: rows that come again after a resume are points at the same place


class WandbRun:
    """A resume goes on with the same run: offline in a folder of its own, which `wandb sync` adds to it by its id."""

    kind = "wandb"

    def __init__(self, run: RunInfo, mode: WandbMode, system_metrics: bool) -> None:
        self.run_id: str | None = None
        self.is_open = False
        self.local = mode is WandbMode.offline
        self.place = f"{self.kind} ({mode.value}) in {run.run_dir}"
        self._info, self._mode, self._system_metrics = run, mode, system_metrics
        self._sent = -1  # step up to which an earlier start sent its rows

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        import wandb

        known = if_readable(lambda: read_json(self._path, {"id": str, STEP: int})) or {}
        resumed = self._info.resume_step is not None and bool(known)
        letters = string.ascii_lowercase + string.digits
        self.run_id = known["id"] if resumed else "".join(secrets.choice(letters) for _ in range(8))
        # Rows after the checkpoint are made again.
        self._sent = min(known[STEP], self._info.resume_step or -1) if resumed else -1
        named = own_tags(tags)
        self._run = wandb.init(
            project=self._info.experiment_name,
            name=self._info.run_name,
            id=self.run_id,
            resume="allow",
            dir=str(self._info.run_dir),
            mode=self._mode.value,
            config=dict(params),
            tags=[str(named[key]) for key in ("stage", "model", "data") if key in named],
            reinit="create_new",  # beside other runs of this process, and of its user's notebook
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=not self._system_metrics,
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._write(self._sent)
        self.is_open = True

    def send_rows(self, rows: Sequence[Row], sent: Callable[[], None]) -> None:
        new = [row for row in rows if row.step > self._sent]
        for row in new:
            self._run.log({**row.metrics, STEP: row.step, "_timestamp": row.time})
        sent()
        if new:
            self._write(max(row.step for row in new))

    def send_inputs(self, data: str, path: str | None) -> bool:
        return True  # the settings name them; lineage.json goes with the run's files

    def send_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        self._run.log({f"tables/{name}": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})

    def send_file(self, path: Path, folder: str | None) -> None:
        """A copy: wandb's own way is a link, which does not survive outputs that are moved."""
        files = Path(self._run.dir)
        target = files / (folder or "") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        self._run.save(str(target), base_path=str(files), policy="now")

    def send_tags(self, tags: dict[str, Any]) -> None:
        named = own_tags(tags)
        self._run.notes = str(named.pop("description", "")) or self._run.notes
        self._run.summary.update(named)

    def close(self, status: Status, ended: float) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)

    @property
    def _path(self) -> Path:
        return self._info.run_dir / IDENTITY

    def _write(self, step: int) -> None:
        write_text_atomic(self._path, json.dumps({"id": self.run_id, STEP: step}) + "\n")
