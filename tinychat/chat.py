"""Talk to a checkpoint: it continues what it is given.

    python -m tinychat.chat outputs/default/RUN/TIME --prompt "Once upon a time"

torch is imported after the arguments have been read, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn, Protocol

from tinychat import hub, runs
from tinychat.errors import UserError
from tinychat.models.sampling import SamplingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

EXAMPLES = """examples:
  python -m tinychat.chat CKPT                                   type texts, it continues them
  python -m tinychat.chat CKPT --prompt "Once upon a time"       one text
  echo "The cat" | python -m tinychat.chat CKPT --greedy         from a pipe
  python -m tinychat.chat CKPT --prompt "" --seed 1 --top_p 0.9  a text from nothing, the same each time

--prompt and a pipe print the prompt and what follows it. Options may be written with - or _."""
HINT = "/quit or Ctrl-D leaves, Ctrl-C stops a text; an empty line starts one from nothing"


class Mode(Protocol):
    """What an interactive session does with the lines typed."""

    def reply(self, line: str) -> Iterator[str]:
        """The answer in pieces; closing the iterator stops it."""


class Continuation:
    """Every line is a new text to continue."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: SamplingOptions):
        self._model, self._tokenizer, self._options = model, tokenizer, options

    def reply(self, line: str) -> Iterator[str]:
        from tinychat.models.generate import stream_text

        return stream_text(self._model, self._tokenizer, line, self._options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m tinychat.chat --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    default = SamplingOptions()
    parser = _Parser(
        prog="python -m tinychat.chat",
        description="Continue text with any checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder, run folder or hub id")
    parser.add_argument("--prompt", metavar="TEXT", help='the text to continue; "" starts from nothing')
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--max_new_tokens",
        type=int,
        default=default.max_new_tokens,
        metavar="N",
        help="at most (default %(default)s)",
    )
    sampling.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        metavar="X",
        help="above 0; low is predictable, 1 the model's own distribution (default %(default)s)",
    )
    sampling.add_argument(
        "--top_k",
        type=int,
        default=default.top_k,
        metavar="K",
        help="only the K likeliest tokens (default 0: all)",
    )
    sampling.add_argument(
        "--top_p",
        type=float,
        default=default.top_p,
        metavar="P",
        help="only the likeliest tokens that together have probability P (default %(default)s: all)",
    )
    sampling.add_argument(
        "--repetition_penalty",
        type=float,
        default=default.repetition_penalty,
        metavar="X",
        help="above 1 discourages tokens already there (default %(default)s: off)",
    )
    sampling.add_argument("--greedy", action="store_true", help="always the likeliest token; ignores the three above")
    sampling.add_argument("--seed", type=int, metavar="N", help="the same text each time (default: another each time)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default %(default)s")
    return parser.parse_args([_underscored(argument) for argument in arguments])


def _underscored(argument: str) -> str:
    """--top-k as --top_k; values and negative numbers as they are."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


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


def load(checkpoint: str, device_name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer of a checkpoint, run folder or hub id, on the device. Raises UserError."""
    path = checkpoint if hub.is_hub_id(checkpoint) else str(runs.resolve_checkpoint(checkpoint))
    import torch

    from tinychat.models.load import load_model
    from tinychat.text.tokenizer import load_saved_tokenizer

    if device_name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_saved_tokenizer(path)
    return load_model(path).to(device_name), tokenizer


def say(pieces: Iterator[str]) -> None:
    """Print pieces as they come."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def converse(mode: Mode, prompt: str = "> ") -> None:
    """Read lines and print replies until /quit or Ctrl-D. Ctrl-C stops a reply, or clears the line being
    typed."""
    with contextlib.suppress(ImportError):  # not on Windows; input() then has no history
        import readline  # noqa: F401
    print(HINT)
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{HINT}")
            continue
        if line.strip() == "/quit":
            return
        if line.startswith("/"):
            print(HINT)
            continue
        pieces = mode.reply(line)
        try:
            say(pieces)
        except KeyboardInterrupt:
            print(" [stopped]")
        finally:
            pieces.close()  # type: ignore[attr-defined]


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    options = sampling_options(args)
    prompt = args.prompt if args.prompt is not None else piped_prompt()
    mode = Continuation(*load(args.checkpoint, args.device), options)
    if prompt is None:
        converse(mode)
    else:
        print(prompt, end="", flush=True)
        say(mode.reply(prompt))


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
