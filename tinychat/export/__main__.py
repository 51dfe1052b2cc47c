"""Hand a checkpoint on: to transformers, to llama.cpp and Ollama, to MLflow's servers, to the hub.

    python -m tinychat.export latest --to gguf

torch is imported after the arguments have been read, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tinychat.chat.session import find
from tinychat.errors import UserError, install_command
from tinychat.export.folder import new_folder, show
from tinychat.runtime.console import Parser, main_of
from tinychat.runtime.run_files import at_home

if TYPE_CHECKING:
    from tinychat.export.source import Source

DESCRIPTION = """Write a checkpoint as other programs take it. An adapter is merged into its base; tokenizer and chat
template come along; a model card (README.md) says what the lineage knows: stages, data, figures and their conditions.

  --to hf       a folder for transformers (and vLLM, TRL, lm-eval): a language model, or of a reward model, a judge or
                a value function a sequence classifier
  --to gguf     one file for llama.cpp and LM Studio, with a Modelfile for Ollama (shapes of GPT-2, Llama, Qwen3)
  --to mlflow   a model that `mlflow models serve` answers chats with (scores, of a reward model), registered in
                MLflow beside its run
  --to hub      the folder of --to hf, and the command that uploads it; with --yes it is uploaded"""
EPILOG = """examples:
  python -m tinychat.export latest --to hf
  python -m tinychat.export outputs/tinychat/RUN/TIME --to gguf --type q8_0 --out my_gguf/
  python -m tinychat.export outputs/tinychat/PPO_RUN/TIME --to hf --part value
  python -m tinychat.export CKPT --to hub --repo NAME/MODEL

CKPT is what python -m tinychat.chat takes: a checkpoint folder (adapters too), a run folder, the name of an experiment
or of a run in it, latest, runs:/ID of MLflow, a GGUF file, or a hub id. Without --out the folder is RUN/exports/...;
nothing is ever overwritten. Options may be written with - or _."""
TYPES = ("f32", "f16", "q8_0")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("export", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="what is exported")
    add("--to", required=True, choices=["hf", "gguf", "mlflow", "hub"], help="for which programs")
    add("--out", metavar="FOLDER", help="the folder to write; must be new or empty (default: in the run's folder)")
    add("--type", choices=TYPES, help="of --to gguf: how numbers are stored (default f16)")
    add(
        "--part",
        choices=["model", "value"],
        default="model",
        help="value: the value function that PPO learnt beside its policy (default %(default)s)",
    )
    add("--name", metavar="NAME", help="of --to mlflow: in the registry (default EXPERIMENT-STAGE-MODEL-DATA)")
    add("--repo", metavar="OWNER/NAME", help="of --to hub: the repository")
    add("--private", action="store_true", help="of --to hub: nobody else sees it")
    add("--yes", action="store_true", help="of --to hub: upload now, with the token of HF_TOKEN or `hf auth login`")
    add("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default %(default)s)")
    args = parser.parse_args(arguments)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    owners = {"type": ("gguf",), "name": ("mlflow",), "repo": ("hub",), "private": ("hub",), "yes": ("hub",)}
    for option, targets in owners.items():
        if getattr(args, option) and args.to not in targets:
            raise UserError(f"--{option} is an option of --to {targets[0]}, not of --to {args.to}; leave it out")
    if args.to == "hub":
        if not args.repo:
            raise UserError("--to hub: which repository? Give --repo OWNER/NAME")
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", args.repo):
            raise UserError(f"--repo {args.repo}: a repository is written OWNER/NAME, as in --repo me/my-model")
    if args.to == "gguf" and importlib.util.find_spec("gguf") is None:
        raise UserError(f"--to gguf needs the package gguf: {install_command('export')}")
    if args.to in ("gguf", "mlflow") and args.part == "value":
        raise UserError(f"--to {args.to}: a value function is exported with --to hf")


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    path = find(args.checkpoint, at_home(args.outputs))
    from tinychat.export.source import open_source

    source = open_source(path, args.part == "value")
    out = at_home(args.out) if args.out else _default_out(source, args)
    if args.to == "gguf":
        _gguf(source, out, args.type or "f16")
    elif args.to == "mlflow":
        from tinychat.export.mlflow_model import export

        export(source, out, args.name)
    else:
        _hf(source, out)
        if args.to == "hub":
            from tinychat.export.upload import offer

            offer(out, args.repo, args.private, args.yes)


def _default_out(source: Source, args: argparse.Namespace) -> Path:
    if source.run is None:
        raise UserError(f"{args.checkpoint} belongs to no run folder, in which its export would lie; give --out FOLDER")
    kind = {"hub": "hf", "gguf": f"gguf-{args.type or 'f16'}"}.get(args.to, args.to)
    return source.run / "exports" / f"{source.folder.name}-{kind}{'-value' if args.part == 'value' else ''}"


def _hf(source: Source, out: Path) -> None:
    from tinychat.export.card import write_card
    from tinychat.export.source import write_folder

    with new_folder(out) as folder:
        write_folder(source, folder)
        write_card(source, folder)
    show(out)


def _gguf(source: Source, out: Path, kind: str) -> None:
    from tinychat.export.card import write_card
    from tinychat.export.gguf import shape_of, split_name, write_gguf
    from tinychat.export.modelfile import write_modelfile
    from tinychat.export.source import Part, load_part
    from tinychat.models.checkpoints import load_config

    if source.part is not Part.policy:
        raise UserError(
            f"--to gguf: {source.path} is a reward model, and llama.cpp has no such classifier of these shapes; use "
            "--to hf"
        )
    config, tokenizer = load_config(source.path), source.tokenizer
    shape_of(config)  # before a weight is read
    split_name(tokenizer)
    name = f"{source.name}-{kind}.gguf"
    with new_folder(out) as folder:
        folder.mkdir(parents=True)
        write_gguf(load_part(source), tokenizer, folder / name, kind, source.name, source.licence)
        write_modelfile(folder / "Modelfile", name, tokenizer, config)
        write_card(source, folder, gguf=name)
    show(out)
    print(f"llama-cli -m {out / name}    or    ollama create {source.name} -f {out / 'Modelfile'}")


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
