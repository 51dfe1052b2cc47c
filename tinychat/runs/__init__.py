"""What is on disk: run folders, which run builds on which, lineage, trials, failures, and what a stage gets.

Called as a function (`tinychat.runs("tinychat")`) the package gives the runs of an experiment as a table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


class _Runs(ModuleType):
    def __call__(self, experiment: str = "tinychat", outputs: str | Path = "outputs") -> pandas.DataFrame:
        """The runs of an experiment, the oldest first, as a pandas.DataFrame: run, stage, model, data, seed, status,
        minutes, objective, the final metrics by their names (eval/..., train/...), and folder. Raises
        tinychat.errors.UserError for an experiment that has no runs."""
        import pandas

        from tinychat.errors import no_such
        from tinychat.runs import folders
        from tinychat.runtime.run_files import at_home

        place, rows = at_home(outputs), []
        for folder, config in folders.iter_runs(place, experiment):
            result = folders.read_result(folder) or {}
            state = result.get("status") or ("running" if folders.is_live(folder) else "unfinished")
            names = {group: (config.get(group) or {}).get("name") for group in ("stage", "model", "data")}
            row: dict[str, Any] = {"run": "/".join(folder.parts[-2:]), **names, "seed": config.get("seed")}
            row |= {"status": state, "minutes": result.get("minutes"), "objective": result.get("objective")}
            rows.append({**row, **(result.get("metrics") or {}), "folder": str(folder)})
        if not rows:
            known = sorted({path.parents[2].name for path in place.glob(f"*/*/*/{folders.CONFIG}")})
            raise no_such("experiment", experiment, f"experiment with runs in {place}", known or ["none yet"])
        table = pandas.DataFrame(rows[::-1])
        return table[[name for name in table.columns if name != "folder"] + ["folder"]]


sys.modules[__name__].__class__ = _Runs
