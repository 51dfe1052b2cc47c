"""Which checkpoint is meant by what the command line of the chat says, and what to say to it first."""

from __future__ import annotations

import heapq
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tinychat.config.specs import Made, makers
from tinychat.errors import UserError
from tinychat.runs import folders
from tinychat.runtime import hub
from tinychat.runtime.run_files import at_home, if_readable, read_json

LATEST = "latest"
_BARE_HUB_ID = re.compile(r"^\w[\w.-]*$")  # gpt2: of the hub's first models, without an owner


def find(spec: str, outputs: Path) -> str:
    """The folder of the checkpoint that `spec` means, or a hub id.

    spec: a checkpoint or run folder; the folder of an experiment or of a run's name, or such a name below `outputs`:
    the newest finished run there; latest: that of all experiments; runs:/ID; a hub id. Raises UserError.
    """
    path = at_home(spec)
    if path.is_file():
        raise UserError(f"checkpoint {spec}: is a file; give the folder it is in")
    if spec == LATEST and not path.exists():
        return _newest(spec, [folder for folder in _folders(outputs) if _holds_runs(folder)])
    if spec.startswith("runs:/"):
        from tinychat.tracking.store import resolve_uri, run_folder_of

        run_id = spec.removeprefix("runs:/").split("/")[0]
        return str(folders.resolve_checkpoint(run_folder_of(run_id, resolve_uri(None, outputs), outputs)))
    places = [path, outputs / spec]
    if "/" not in spec:  # an experiment before a folder that is called alike: a checkout has a folder tinychat
        places.reverse()
    for folder in places:
        if folder.is_dir() and _holds_runs(folder):
            return _newest(spec, [folder])
    if path.exists():
        return str(folders.resolve_checkpoint(spec))
    if hub.is_hub_id(spec):
        return spec
    if _BARE_HUB_ID.match(spec):
        return _from_hub(spec, outputs)
    return str(folders.resolve_checkpoint(spec))  # which says what is missing


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []


def _holds_runs(folder: Path) -> bool:
    """Whether it is an experiment's or a run name's folder, above those of runs."""
    if (folder / folders.CONFIG).is_file():
        return False
    return any(any(folder.glob(f"{'*/' * depth}{folders.CONFIG}")) for depth in (1, 2))


def _newest(spec: str, places: list[Path]) -> str:
    """The checkpoint of the newest finished run in the places that can be talked to; it is told."""
    newest_first = heapq.merge(*map(_talkable, places), key=lambda run: (folders.order_of(run)[1:], run), reverse=True)
    found = folders.first_usable(newest_first)
    if found is None:
        where = ", ".join(map(str, places)) or "there are no runs yet"
        raise UserError(
            f"checkpoint {spec}: no finished run of stage {', '.join(makers(Made.language))} ({where}); make run, or "
            "python -m tinychat.train, makes one"
        )
    print(f"note: {spec} is {found}", file=sys.stderr)
    return str(found)


def _talkable(place: Path) -> Iterator[Path]:
    """The finished runs below an experiment's or a run name's folder that can be talked to, newest first."""
    depth = 1 if any(place.glob(f"*/{folders.CONFIG}")) else 2
    experiment = place if depth == 2 else place.parent
    for run, config in folders.iter_runs(experiment.parent, experiment.name):
        if depth == 1 and run.parent.name != place.name:
            continue
        stage = config.get("stage")
        talks = isinstance(stage, dict) and stage.get("name") in makers(Made.language)
        if talks and (folders.read_result(run) or {}).get("status") == "finished":
            yield run


def _from_hub(spec: str, outputs: Path) -> str:
    """The local copy of a hub repository without an owner."""
    there = [folder.name for folder in _folders(outputs) if _holds_runs(folder)]
    known = f"has the experiments {', '.join(there)}" if there else "has no runs"
    instead = f"nor is it a folder, nor below {outputs}, which {known}; give one of these, {LATEST}, or a checkpoint"
    return str(hub.repository_folder(spec, (*hub.MODEL_FILES, *hub.TOKENIZER_FILES), instead))


LONGEST = 70  # characters of a prompt; the shorter ones are taken


def examples(checkpoint: Path, most: int = 3) -> list[str]:
    """Prompts of one line out of the table of held-out replies in the checkpoint's run folder, answered right, of
    different task families where there are some; [] for a checkpoint without such a table."""
    for run in (checkpoint, checkpoint.parent.parent):
        path = run / folders.TABLES / "predictions.json"
        table = if_readable(lambda path=path: read_json(path, {"rows": list}))  # type: ignore[misc]
        if table is not None:
            return _short(table["rows"], most)
    return []


def _short(rows: list[list[object]], most: int) -> list[str]:
    """The shortest right one of each family; then the shortest of these."""
    found: dict[str, str] = {}
    for family, prompt, reply, expected, score in (row for row in rows if isinstance(row, list) and len(row) == 5):
        right = score == 1 and reply and expected
        if not right or not isinstance(prompt, str) or "\n" in prompt or not prompt.strip():
            continue
        if len(prompt) <= LONGEST and len(prompt) < len(found.get(str(family), "x" * (LONGEST + 1))):
            found[str(family)] = prompt
    return sorted(found.values(), key=len)[:most]
