"""One run as TensorBoard's event files, in RUN/tensorboard: scalars, tables and reports as text, pictures. Used by one
thread; raises what TensorBoard raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinychat.tracking.base import Row, RunInfo, Status
from tinychat.tracking.mlflow_run import flatten

FOLDER = "tensorboard"
SHOWN = 50  # rows of a table; tables/NAME.json has all
LONGEST_TEXT = 20_000  # characters


class TensorboardRun:
    """Event files of an earlier start stay: what they have up to the checkpoint is not written again, and TensorBoard
    drops what they have after it (purge_step)."""

    kind, local = "TensorBoard", True

    def __init__(self, run: RunInfo) -> None:
        self.run_id: str | None = None
        self.is_open = False
        self._folder = run.run_dir / FOLDER
        self.place = f"{self.kind} in {self._folder}"
        # As metrics.jsonl is cut: a new run and one without a checkpoint begin anew.
        self._from = (run.resume_step or -1) + 1
        self._present: dict[str, set[int]] = {}
        self._step = 0

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        earlier = sorted(self._folder.glob("events.out.tfevents.*"))
        self._present = _points(earlier, self._from)
        self._writer = SummaryWriter(str(self._folder), purge_step=self._from if earlier else None)
        self.is_open, self.run_id = True, str(self._folder)
        if not earlier:
            self._text("settings", table_text(["key", "value"], [[*pair] for pair in flatten(params).items()], None))
            self._text("run", table_text(["tag", "value"], [[*pair] for pair in own_tags(tags).items()], None))

    def send_rows(self, rows: Sequence[Row], sent: Callable[[], None]) -> None:
        for row in rows:
            for name, value in row.metrics.items():
                if row.step not in self._present.get(name, ()):
                    self._writer.add_scalar(name, value, row.step, walltime=row.time)
            self._step = max(self._step, row.step)
        self._writer.flush()
        sent()

    def send_inputs(self, data: str, path: str | None) -> bool:
        return True  # TensorBoard has no place for data sets

    def send_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self._text(f"tables/{name}", table_text(columns, rows, SHOWN))

    def send_file(self, path: Path, folder: str | None) -> None:
        """A picture, or a text; of other files, which TensorBoard cannot hold, the place."""
        if path.suffix == ".png":
            from matplotlib.image import imread

            self._writer.add_image(path.stem, imread(path), self._step, dataformats="HWC")
            self._writer.flush()
        elif path.suffix == ".md":
            self._text(path.stem, path.read_text("utf-8")[:LONGEST_TEXT])

    def send_tags(self, tags: dict[str, Any]) -> None:
        for name, value in own_tags(tags).items():
            self._text(f"run/{name}", str(value))

    def close(self, status: Status, ended: float) -> None:
        self._text("run/status", status)
        self._writer.close()

    def _text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text, self._step)
        self._writer.flush()


def _points(files: Sequence[Path], before: int) -> dict[str, set[int]]:
    """The steps below `before` of each scalar in event files."""
    if not files:
        return {}
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, set[int]] = {}
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value if event.step < before else ():
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, set()).add(event.step)
    return found


def own_tags(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that mean something to MLflow alone; its description under its plain name."""
    named = {"mlflow.note.content": "description"}
    found = {named.get(name, name): value for name, value in tags.items()}
    return {name: value for name, value in found.items() if not name.startswith("mlflow.")}


def table_text(columns: Sequence[str], rows: Sequence[Sequence[Any]], most: int | None) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[Any]) -> str:
        shown = ("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells)
        return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in shown) + " |"

    lines = [line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows[:most])]
    left = len(rows) - len(rows[:most])
    return "\n".join(lines) + (f"\n\nand {left} more" if left else "")
