"""What MLflow's pages show of an experiment and a run at once: columns of the table, descriptions, data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

HEADLINE = "headline"  # tag: the run's first figure in words
NOTE = "mlflow.note.content"  # tag: the description, in Markdown
VIEW = "tinychat"  # name of the table's view, in its address: ?viewStateShareKey=tinychat
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # of an experiment; where MLflow's interface looks for it
DIGEST = 36  # characters that MLflow takes
_COLUMNS = (
    "metrics.`eval/ppl`",
    "metrics.`eval/instruction_accuracy`",
    "metrics.`eval/safe_rate`",
    f"tags.`{HEADLINE}`",
    "tags.`stage`",
    "tags.`model`",
    "tags.`data`",
)


def experiment_tags(experiment: str) -> dict[str, str]:
    """Of an experiment by its id: a description that leads to the table with its columns, and these."""
    state: dict[str, Any] = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "searchFilter": "",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runListHidden": False,
        "viewMaximized": False,
    }
    note = f"[The runs with headline, stage, model and data]({address_of(experiment)})"
    return {VIEW_TAG: json.dumps(state), NOTE: note}


def address_of(experiment: str) -> str:
    """Of the experiment's table, after the server's own address."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def dataset_inputs(lineage: Mapping[str, Any], data: str, path: str | None) -> list[DatasetInput]:
    """As mlflow.log_input would make them, of lineage.json's data: one for each split, with its fingerprint as digest
    and its counts as profile. data: the name of the data; path: where it lies, None where it is generated."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits = lineage.get("data")
    inputs = []
    for split, facts in splits.items() if isinstance(splits, dict) else ():
        if not isinstance(facts, dict) or not isinstance(facts.get("fingerprint"), str):
            continue
        counts = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        source = {"uri": path} if path else {"tags": {"generator": data}}
        dataset = Dataset(
            name=f"{data}-{split}",
            digest=facts["fingerprint"][:DIGEST],
            source_type="local" if path else "code",
            source=json.dumps(source),
            profile=json.dumps(counts),
        )
        context = {"train": "training", "validation": "validation"}.get(split, split)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs
