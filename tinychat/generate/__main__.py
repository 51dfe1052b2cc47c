"""Replies of a checkpoint to many prompts: prompts in, JSON lines out. Chat is for people, this is for scripts.

    python -m tinychat.generate outputs/tinychat/RUN/TIME --prompts prompts.txt --out replies.jsonl

torch is imported after the arguments and the prompts have been read, so that `--help`, a wrong option and a bad row
answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tinychat.errors import UserError
from tinychat.generate.prompts import Prompt, read
from tinychat.generate.replies import Generator, Totals, Wanted, answer, load_scorer
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.runtime.console import Parser, add_model_code, format_duration, main_of
from tinychat.runtime.run_files import at_home

DESCRIPTION = """Reply to every prompt of a file, many at a time. A line of JSON is written for each reply:

  {"id": 0, "prompt": "What is 2 + 3?", "response": "Five.", "finish": "stop", "tokens": 3}

finish is "stop" (the model ended the reply, or a --stop text did) or "length" (--max-new-tokens, or the context, cut
it). With --reward each line has its score too, with -n more than 1 its sample. The lines are rows of tinychat.score
and of data=chat as they are.

Prompts are a txt file (one a line), or a table (jsonl, json, csv, tsv, parquet; with txt, also .gz) with a column
prompt, question or instruction (and input, system, history), or messages. Other columns (id ...) are kept."""
EPILOG = """examples:
  python -m tinychat.generate latest --prompts prompts.txt > replies.jsonl
  python -m tinychat.generate CKPT --prompts questions.jsonl -n 4 --temperature 0.7 --out replies.jsonl
  python -m tinychat.generate CKPT --prompts p.txt --best-of 16 --reward REWARD     the best of 16 replies to each
  python -m tinychat.generate CKPT --prompts p.txt --greedy | python -m tinychat.score REWARD > scored.jsonl
  python -m tinychat.generate BASE --adapter ADAPTER --prompts p.txt                an adapter, put on this checkpoint
  echo "Once upon a time" | python -m tinychat.generate PRETRAINED --raw --prompts - --stop "\\n"

CKPT is what python -m tinychat.chat takes: a checkpoint folder (adapters too), a run folder, the name of an experiment
or of a run in it, latest, runs:/ID of MLflow, or a hub id. Every reply has draws of its own, by --seed, the prompt's
place and the sample's number: more samples, more prompts behind it or another --batch-size change no reply, but for
what rounding does where a draw falls on an edge (seldom in fp32, more often in bf16).

On standard error: progress on a terminal, and at the end how many tokens and replies a second. Exit status: 0 done,
1 an error that was explained, 130 stopped by Ctrl-C (what is in --out then are whole lines; --resume goes on).
Options may be written with - or _."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("generate", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="who replies")
    add("--prompts", metavar="FILE", required=True, help="prompts; -: standard input")
    add("--out", metavar="FILE", help="where the lines go (default: standard output)")
    add("--resume", action="store_true", help="go on where --out, of the same command, ends")
    add("--force", action="store_true", help="overwrite --out")
    add("--system", metavar="TEXT", default="", help="system message of prompts that bring none")
    add("--raw", action="store_true", help="no chat template: prompts are texts to continue, as of a pretrained model")
    add("--adapter", metavar="PATH", help="put the adapter in this folder on CKPT")
    sampling = parser.add_argument_group("sampling")
    _add_sampling(sampling.add_argument)
    best = parser.add_argument_group("reward")
    best.add_argument("--reward", metavar="RM", help="reward model (stage=reward) that scores each reply")
    best.add_argument(
        "--best-of", type=int, metavar="N", help="generate N replies to each prompt, keep the best (-n of them)"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", type=int, default=64, metavar="N", help="replies at a time (default %(default)s)")
    work.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default %(default)s")
    work.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="fp32",
        help="of the arithmetic (default %(default)s; auto: bf16 where the device has it)",
    )
    work.add_argument("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default %(default)s)")
    add_model_code(parser)
    args = parser.parse_args(arguments)
    _check(args)
    return args


def _add_sampling(add: Callable[..., Any]) -> None:
    own = SamplingOptions()
    add("-n", "--samples", type=int, default=1, metavar="N", help="replies to each prompt (default %(default)s)")
    add("--max-new-tokens", type=int, default=own.max_new_tokens, metavar="N", help="at most (default %(default)s)")
    add("--temperature", type=float, default=1.0, metavar="X", help="above 0; 1: the model's own (default %(default)s)")
    add("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens (default 0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="only the likeliest tokens of probability P together")
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 discourages tokens already there, those of the prompt too (default %(default)s: off)",
    )
    add("--greedy", action="store_true", help="always the likeliest token; no chance is involved")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a reply before this text; may be given several times; \\n, \\t and \\\\ are read as in JSON",
    )
    add("--seed", type=int, default=1, metavar="N", help="the same gives the same lines (default %(default)s)")


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.prompts == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError("--prompts -: standard input is a terminal; pipe prompts in, or name a FILE")
    if args.best_of is not None and not args.reward:
        raise UserError(f"--best-of {args.best_of}: by what? Name a reward model: --reward RM")
    if args.raw and (args.system or args.reward):
        option = "--system" if args.system else "--reward"
        raise UserError(f"{option} is for chats, not for texts that are continued; leave out --raw or {option}")
    if args.force and args.resume:
        raise UserError("--force begins anew, --resume goes on; give one of the two")
    if (args.force or args.resume) and not args.out:
        raise UserError(f"--{'force' if args.force else 'resume'} is about --out FILE, which is not given")
    if args.out:
        path = at_home(args.out)
        if path.is_dir():
            raise UserError(f"--out {args.out}: is a folder; name a file")
        if path.exists() and not (args.force or args.resume):
            raise UserError(f"--out {args.out}: exists; --resume goes on where it ends, --force overwrites it")


def wanted_of(args: argparse.Namespace) -> Wanted:
    """Raises UserError."""
    try:
        sampling = SamplingOptions(
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            greedy=args.greedy,
            seed=args.seed,
        )
    except UserError as error:
        name, _, rest = str(error).partition("=")
        raise UserError(f"--{name.replace('_', '-')}={rest}") from None
    stop = tuple(_unescaped(text) for text in args.stop)
    return Wanted(sampling, args.samples, args.samples if args.best_of is None else args.best_of, stop)


def _unescaped(text: str) -> str:
    r"""Shells pass \n as two characters."""
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces)


def resumed(file: str, prompts: Sequence[Prompt], each: int) -> tuple[int, int]:
    """(prompts whose lines are all there, the file's bytes up to the end of these). Raises UserError where a line is
    about another prompt than the one at its place."""
    path = at_home(file)
    if not path.exists():
        return 0, 0
    whole = size = complete = 0
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True)):
        if not raw.endswith(b"\n"):  # the process was killed while it wrote
            break
        place = number // each
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        head = prompts[place].head if place < len(prompts) else {"": None}
        if not isinstance(line, dict) or any(line.get(key, "") != value for key, value in head.items()):
            raise UserError(
                f"--out {file}, line {number + 1}: is no reply to prompt {place + 1} of --prompts; --resume is for the "
                "same command, --force begins anew"
            )
        whole += len(raw)
        if number % each == each - 1:
            complete, size = place + 1, whole
    return complete, size


@contextlib.contextmanager
def _output(file: str | None, size: int) -> Iterator[Callable[[str], None]]:
    """A function that writes whole lines to standard output, or to a file behind its first `size` bytes."""
    if file is None:
        with contextlib.suppress(AttributeError):  # a stdout that is no text file of Python's
            sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]

        def show(lines: str) -> None:
            sys.stdout.write(lines)
            sys.stdout.flush()

        yield show
        return
    path = at_home(file)
    new, wrote = not path.exists(), False

    def add(lines: str) -> None:
        """Whole lines, or none of them."""
        nonlocal wrote
        end = out.seek(0, 2) if wrote else size  # what a file has is left until there is something else
        wrote = True
        try:
            out.truncate(end)
            out.write(lines.encode())
            out.flush()
        except BaseException:  # Ctrl-C, a full disk
            out.truncate(end)
            raise

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as out:
            yield add
    except OSError as error:
        raise UserError(f"--out {file}: cannot be written ({error.strerror})") from None
    finally:
        if new and not wrote:
            path.unlink(missing_ok=True)


def run(arguments: list[str]) -> dict[str, float]:
    """The whole command. What the replies are worth to the reward model, where there is one."""
    args = parse(arguments)
    wanted = wanted_of(args)
    prompts = read(args.prompts, args.raw, args.system)
    first, size = resumed(args.out, prompts, wanted.samples) if args.resume else (0, 0)
    if first == len(prompts):
        print(f"{args.out}: all {first:,} prompts are answered there", file=sys.stderr)
        return {}
    generator = Generator(args, wanted)
    scorer = load_scorer(args, generator) if args.reward else None
    ids = generator.encode(prompts)
    begin = time.monotonic()
    with _output(args.out, size) as write:
        totals = answer(generator, scorer, prompts, ids, first, write)
    _tell(totals, time.monotonic() - begin, wanted)
    return totals.figures()


def _tell(totals: Totals, seconds: float, wanted: Wanted) -> None:
    """The throughput, on standard error."""
    end = "\n" if sys.stderr.isatty() else ""
    rate = f"{totals.tokens / seconds:,.0f} tokens/s, {totals.replies / seconds:,.1f} replies/s"
    said = f"{totals.replies:,} repl{'y' if totals.replies == 1 else 'ies'} to {totals.prompts:,} prompt"
    said += f"{'' if totals.prompts == 1 else 's'}, {totals.tokens:,} tokens"
    said = f"{end}{said} in {format_duration(seconds)}: {rate}"
    if totals.scoring:
        said += f"; {format_duration(totals.scoring)} of it scoring"
    if totals.cut:
        said += f"; {totals.cut:,} replies cut at {wanted.sampling.max_new_tokens} tokens or the end of the context"
    if totals.unscored:
        said += f"; {totals.unscored:,} lines with score null: empty, or too long for the reward model"
    print(said, file=sys.stderr)


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
