"""Talk to a checkpoint: a chat checkpoint answers messages, a pretrained one continues texts.

    python -m tinychat.chat latest

torch is imported after the arguments have been read, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from tinychat.chat.repl import HISTORY_ENV, as_utf8, converse, history_file
from tinychat.chat.session import Session, find, open_session, short_names
from tinychat.errors import UserError
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.runtime.console import Parser, add_model_code, main_of
from tinychat.runtime.run_files import at_home
from tinychat.runtime.terminal import as_text, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DESCRIPTION = """Talk to any checkpoint. One that was trained to chat (its tokenizer has a chat template) answers
messages and remembers the dialogue; any other continues the text it is given.

examples:
  python -m tinychat.chat latest                                   talk to the newest run; /help lists the commands
  python -m tinychat.chat PRETRAINED SFT                           two checkpoints answer the same lines
  python -m tinychat.chat CKPT --prompt "What is 2 + 3?"           one reply
  python -m tinychat.chat CKPT --system "Answer in one word."      with a system message
  python -m tinychat.chat CKPT --prompt "Copy the text." --input "owl muffin red"   an instruction and its input
  echo "The cat" | python -m tinychat.chat CKPT --greedy           all of the pipe is one prompt
  python -m tinychat.chat CKPT --lines < questions.txt > replies.txt     a reply a line
  python -m tinychat.chat CKPT --mode text --prompt "" --seed 1    a text from nothing, the same each time

CKPT is a checkpoint folder (adapters too), a run folder, the name of an experiment or of a run in it (tinychat,
tinychat/sft-mini-tinyworld: the newest finished there), latest (of all experiments), runs:/ID of MLflow, a GGUF file
(FILE.gguf, PACKAGE:FILE.gguf), or a hub id (OWNER/NAME, gpt2)."""
EPILOG = f"""output:
  --prompt, a pipe and --lines print a chat checkpoint's reply alone, but another's prompt with what follows it
  (--lines: what follows it). With several checkpoints each reply has its checkpoint's name before it; under --lines
  they are columns parted by tabs. In --lines output a line end within a reply is written \\n, a tab \\t; an empty
  line is answered by an empty line.

commands while talking:
  /undo /retry /reset /system TEXT /params NAME=VALUE /save FILE /help /quit; Ctrl-C stops a reply.
  Lines typed are kept in {{history}}
  ({HISTORY_ENV}=FILE: elsewhere; {HISTORY_ENV}=0: nowhere).

Options may be written with - or _."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("chat", DESCRIPTION, EPILOG.format(history=history_file() or "no file now"))
    add = parser.add_argument
    add("checkpoints", metavar="CKPT", nargs="+", help="one checkpoint, or several to compare")
    add("--prompt", metavar="TEXT", type=as_utf8, help="one prompt instead of a dialogue")
    add("--lines", action="store_true", help="every line of standard input is a prompt of its own, without memory")
    add("--system", metavar="TEXT", type=as_utf8, default="", help="system message of a chat")
    add(
        "--input", metavar="TEXT", default="", help="with one prompt: what the instruction is about, a field of its own"
    )
    add(
        "--mode",
        choices=["auto", "chat", "text"],
        default="auto",
        help="chat: as messages, in the instruct template where the tokenizer has none; text: continue them; "
        "auto: chat where there is a template (default)",
    )
    add("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default: %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default %(default)s")
    add_model_code(parser)
    _add_sampling(parser.add_argument_group("sampling"))
    args = parser.parse_args(arguments)
    if args.lines and args.prompt is not None:
        raise UserError("--lines reads its prompts from standard input; leave out --prompt")
    return args


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    default = SamplingOptions()

    def add(name: str, kind: type, metavar: str, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=getattr(default, name), metavar=metavar, help=text)

    add("max_new_tokens", int, "N", "at most (default %(default)s)")
    add("temperature", float, "X", "above 0; low is predictable, 1 the model's own distribution (default %(default)s)")
    add("top_k", int, "K", "only the K likeliest tokens (default 0: all)")
    add("top_p", float, "P", "only the likeliest tokens that together have probability P (default %(default)s: all)")
    add("repetition_penalty", float, "X", "above 1 discourages tokens already there (default %(default)s: off)")
    group.add_argument("--greedy", action="store_true", help="always the likeliest token; no chance is involved")
    group.add_argument("--seed", type=int, metavar="N", help="the same replies each time (default: others each time)")


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    return SamplingOptions(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        greedy=args.greedy,
        seed=args.seed,
    )


def piped_prompt() -> str | None:
    """The text on standard input where that is a pipe or a file, without its last line end; None on a
    terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from None
    if not text.strip():
        raise UserError(
            'standard input is empty; pipe a text in, or give --prompt TEXT (--prompt "" starts from nothing)'
        )
    return text.removesuffix("\n").removesuffix("\r")


def load(checkpoint: str, device_name: str, outputs: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer of what find takes, on the device. Raises UserError."""
    path = find(checkpoint, at_home(outputs))
    import torch

    from tinychat.models.checkpoints import load_model
    from tinychat.models.load import no_language_model
    from tinychat.models.word_judge import is_word_judge
    from tinychat.text.tokenizer import load_saved_tokenizer

    if is_word_judge(path):  # it has no tokenizer to look for
        raise no_language_model(path)
    if device_name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_saved_tokenizer(path)
    return load_model(path).to(device_name), tokenizer


def open_sessions(args: argparse.Namespace) -> list[Session]:
    """Every checkpoint of the command line, loaded. Raises UserError."""
    sessions = []
    if args.model_code:
        from tinychat.models.custom import load_classes

        load_classes(args.model_code, f"--model-code {args.model_code}")
    for checkpoint, name in zip(args.checkpoints, short_names(args.checkpoints), strict=True):
        model, tokenizer = load(checkpoint, args.device, args.outputs)
        if args.mode == "chat" and not tokenizer.chat_template:
            say(f"note: {name} has no chat template; it is spoken to in the instruct template")
        sessions.append(open_session(model, tokenizer, name, args.mode, args.system))
    for option, value in (("--system", args.system), ("--input", args.input)):
        if value and all(session.kind == "text" for session in sessions):
            why = "not for --mode text" if args.mode == "text" else f"and {args.checkpoints[0]} has no chat template"
            raise UserError(f"{option} is for chats, {why}; try --mode chat")
    return sessions


def answer_once(sessions: list[Session], prompt: str, input_text: str, options: SamplingOptions) -> None:
    """Print every session's answer to one prompt as it comes; after the prompt where it is continued."""
    for session in sessions:
        label = f"[{session.name}] " if len(sessions) > 1 else ""
        print(as_text(label + (prompt if session.kind == "text" else "")), end="", flush=True)
        for piece in session.reply(prompt, options, input_text):
            print(as_text(piece), end="", flush=True)
        print(flush=True)


def answer_lines(sessions: list[Session], input_text: str, options: SamplingOptions) -> None:
    """Print one line for each line of standard input, as soon as it was read."""
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"standard input, line {number}: is not UTF-8 text; convert it first") from None
        replies = []
        for session in sessions:
            session.reset()
            try:
                replies.append("".join(session.reply(line, options, input_text)) if line.strip() else "")
            except UserError as error:
                raise UserError(f"standard input, line {number}: {error}") from None
        print("\t".join(_on_one_line(reply) for reply in replies), flush=True)


def _on_one_line(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    return as_text(escaped)


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    options = sampling_options(args)
    prompt = args.prompt
    if prompt is None and not args.lines:
        prompt = piped_prompt()
        if prompt is None and args.input:
            raise UserError("--input goes with one prompt: give --prompt TEXT too, or pipe one in")
    sessions = open_sessions(args)
    if args.lines:
        answer_lines(sessions, args.input, options)
    elif prompt is None:
        converse(sessions, options)
    else:
        answer_once(sessions, prompt, args.input, options)


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    with contextlib.suppress(AttributeError):  # a stdout that is no text file of Python's
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    main_of(run)


if __name__ == "__main__":
    main()
