"""A model that MLflow loads and serves (its python_function flavour), and its place in MLflow's registry."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinychat.errors import UserError
from tinychat.export.card import CARD, write_card
from tinychat.export.folder import new_folder, show
from tinychat.export.source import Part, Source, write_folder
from tinychat.models import reward
from tinychat.models.checkpoints import load_config
from tinychat.models.load import one_line, quiet
from tinychat.runs import folders
from tinychat.text.chat_template import end_ids, end_token_id
from tinychat.tracking.mlflow_run import read_identity, register_model
from tinychat.tracking.store import load_mlflow

NEEDS = ("mlflow", "torch", "transformers")  # of the files in served/
ARTIFACT = "pyfunc"  # where its files lie among those of the run in MLflow


def export(source: Source, out: Path, name: str | None) -> None:
    """Write the model, and register it as a version of `name` beside the run that made it. Raises UserError."""
    tokenizer = source.tokenizer
    if not tokenizer.chat_template:
        raise UserError(
            f"--to mlflow: {source.path} has no chat template, so that it answers no chat; use --to hf or --to gguf"
        )
    settings: dict[str, Any] = {"name": source.name, "end_ids": list(end_ids(tokenizer))}
    code = "chat.py"
    if source.part is Part.reward:
        code = "scores.py"
    load_mlflow()
    import mlflow

    with new_folder(out, anew=True) as folder, tempfile.TemporaryDirectory() as scratch, quiet():
        model = Path(scratch) / "model"
        write_folder(source, model)
        write_card(source, model)
        if source.part is Part.reward:
            found = reward.settings(load_config(str(model)))
            settings = {"end": end_token_id(tokenizer), **{key: found[key] for key in ("range", "mean", "std")}}
        try:
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).parent / "served" / code),
                artifacts={"model": str(model)},
                model_config=settings,
                pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in NEEDS],
            )
        except Exception as error:  # whatever MLflow raises
            raise UserError(f"--to mlflow: MLflow did not write the model: {one_line(error)}") from None
        (folder / CARD).write_text((model / CARD).read_text(encoding="utf-8"), encoding="utf-8")
    show(out)
    _register(source, out, name)
    print(f"mlflow models serve -m {out} --env-manager local --port 5001")
    row = '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}'
    if source.part is Part.reward:
        row = '{"dataframe_records": [{"prompt": "How are you?", "response": "Fine."}]}'
    print(f"curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{row}'")


def _register(source: Source, out: Path, name: str | None) -> None:
    """Make it known to the MLflow store of its run, where it has one."""
    identity = read_identity(source.run, source.run.parents[2]) if source.run else None
    if source.run is None or identity is None:
        if name:
            raise UserError(
                f"--name {name}: {source.path} belongs to no run that MLflow knows, beside which it would be "
                f"registered; it was written to {out}"
            )
        print("not registered: it belongs to no run that MLflow knows")
        return
    chosen = name or f"{source.run.parents[1].name}-{source.name}"
    tags = {"checkpoint": str(source.folder), "stage": str(folders.read_config(source.run)["stage"].get("name"))}
    try:
        place = f"{ARTIFACT}/{source.folder.name}"
        number = register_model(identity["uri"], chosen, identity["run_id"], out, place, tags)
    except Exception as error:  # whatever MLflow raises
        raise UserError(
            f"{out} is written, but MLflow at {identity['uri']} did not register it: {one_line(error)}"
        ) from None
    print(f"registered as models:/{chosen}/{number}, beside MLflow's run {identity['run_id']}")
