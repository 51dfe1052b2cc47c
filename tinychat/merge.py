"""Make a full checkpoint of an adapter's: its product is added to the weights of its base.

    python -m tinychat.merge outputs/tinychat/RUN/TIME merged/

torch is imported after the arguments have been read, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinychat.runs import folders
from tinychat.runtime import hub
from tinychat.runtime.console import Parser, add_model_code, main_of
from tinychat.runtime.run_files import at_home

DESCRIPTION = """Merge an adapter (peft=lora or qlora) into its base and write a full checkpoint: config.json,
model.safetensors in fp32, tokenizer with chat template, lineage. It computes what the adapter on its base does, only
faster, and loads wherever transformers models do.

An adapter trained with peft=qlora is merged into the fp32 weights, not into the 4-bit ones it was trained beside."""
EPILOG = """examples:
  python -m tinychat.merge outputs/tinychat/sft-mini-tinyworld/TIME merged/      the run's chosen checkpoint
  python -m tinychat.merge outputs/tinychat/RUN/TIME/checkpoints/step-000100 merged/
  python -m tinychat.chat merged/"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("merge", DESCRIPTION, EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="an adapter's checkpoint folder, its run folder or a hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; must be new or empty")
    add_model_code(parser)
    return parser.parse_args(arguments)


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    path = args.checkpoint if hub.is_hub_id(args.checkpoint) else str(folders.resolve_checkpoint(args.checkpoint))
    from tinychat.models.checkpoints import merge_checkpoint
    from tinychat.models.custom import load_classes

    if args.model_code:
        load_classes(args.model_code, f"--model-code {args.model_code}")
    merge_checkpoint(path, at_home(args.out))
    print(f"merged {path} into {args.out}")


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
