"""Score replies with a reward model or a judge.

    python -m tinychat.score outputs/tinychat/RUN/TIME replies.jsonl > scored.jsonl

torch is imported after the arguments and the rows have been read, so that `--help`, a wrong option and a bad row answer
at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from tinychat.errors import UserError
from tinychat.runs import folders
from tinychat.runtime import hub
from tinychat.runtime.console import Parser, add_model_code, main_of
from tinychat.runtime.run_files import at_home

if TYPE_CHECKING:
    from tinychat.models.scorer import AnyScorer

DESCRIPTION = """Score replies with a reward model (stage=reward) or a judge (stage=judge). A line is written for each
row: the row as it was, with its score. Rows are JSON lines, a JSON list or another table:

  {"prompt": "How are you?", "response": "Fine."}                      -> "score"
  {"messages": [{"role": "user", "content": ...}, ...]}                -> "score" of the last message, the assistant's
  {"prompt": "How are you?", "chosen": "Fine.", "rejected": "No."}     -> "score_chosen", "score_rejected", "wins"

`prompt` is a text or a list of messages; a column `system` or `history` (earlier turns) stands before it."""
EPILOG = """examples:
  python -m tinychat.score CKPT replies.jsonl --out scored.jsonl
  python -m tinychat.score CKPT pairs.jsonl > scored.jsonl          the accuracy comes on standard error
  echo '{"prompt": "Hi", "response": "Hello!"}' | python -m tinychat.score CKPT

CKPT is a checkpoint folder (adapters too), a run folder under outputs/, or a hub id. What a score means is a choice of
its training: stage.score_range=standard (mean 0, standard deviation 1 on replies of the training data), unit (0 to 1,
of a judge the probability that the reply is safe) or raw. Options may be written with - or _."""
PIPE = "standard input"
CHUNKS = 16  # batches read and scored before their rows are written: enough to sort by length


@dataclass(frozen=True)
class Row:
    """One row, and the conversations that are scored: one, or the chosen and the rejected side."""

    place: str
    content: dict[str, Any]
    prompt: list[dict[str, str]]
    replies: tuple[str, ...]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("score", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="a reward model")
    add("file", metavar="FILE", nargs="?", default="-", help="rows to score; without it, or -: standard input")
    add("--out", metavar="FILE", help="where the scored rows go, whole or not at all (default: standard output)")
    add("--batch-size", metavar="N", type=int, default=32, help="replies scored side by side (default %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default %(default)s")
    add_model_code(parser)
    args = parser.parse_args(arguments)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.file == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError("no rows: name a FILE, or pipe JSON lines in; see python -m tinychat.score --help")
    if args.out and at_home(args.out).is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a file")
    return args


def read(file: str) -> Iterator[Row]:
    """The rows of a file, or of standard input for "-". Raises UserError, naming file and line."""
    from tinychat.data.files.tables import Meter, pipe_as_file, read_rows

    path, name = at_home(file), file
    if file == "-":
        path, name = pipe_as_file(texts=False), PIPE
    elif not path.is_file():
        raise UserError(f"{file}: {'is a folder' if path.is_dir() else 'no such file'}; give a file of JSON lines")
    count = 0
    try:
        for place, content in read_rows(path, Meter()):
            count += 1
            yield row_of(f"{name}, {place}", content)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None
    finally:
        if file == "-":
            path.unlink()
    if not count:
        raise UserError(f"{name}: holds no rows")


def row_of(place: str, row: Any) -> Row:
    """Raises UserError for a row that cannot be scored."""
    from tinychat.data.chats.files import listed, opening
    from tinychat.data.chats.rows import BadRow, as_columns, chat_row
    from tinychat.data.chats.tools import shown_as_text
    from tinychat.data.files.tables import Unreadable
    from tinychat.data.preferences.rows import paired_row, preference_row

    if not isinstance(row, (dict, Unreadable)):
        raise UserError(f'{place}: is no object with "prompt" and "response"')
    try:
        own, content = as_columns(row, place), as_columns(shown_as_text(row), place)
        begun = opening(content, place)
        if "chosen" in content and "rejected" in content:
            if isinstance(content["chosen"], list):
                chosen, rejected = ([*begun, *listed(content[name], place, name)] for name in ("chosen", "rejected"))
                pair = paired_row(chosen, rejected, place)
            else:
                pair = preference_row([*begun, *_prompt(content, place)], content["chosen"], content["rejected"], place)
            return Row(place, own, pair.prompt, (pair.chosen, pair.rejected))
        if "messages" in content:
            messages = chat_row([*begun, *listed(content["messages"], place, "messages")], place).messages
        else:
            if "response" not in content:
                raise BadRow(
                    place, f"has no 'response' (nor messages, nor chosen and rejected); it has {_keys(content)}"
                )
            reply = {"role": "assistant", "content": content["response"]}
            messages = chat_row([*begun, *_prompt(content, place), reply], place).messages
    except BadRow as bad:
        raise UserError(f"{place}: {bad.why}; mend or remove this row") from None
    return Row(place, own, messages[:-1], (messages[-1]["content"],))


def _prompt(content: dict[str, Any], place: str) -> list[Any]:
    from tinychat.data.chats.rows import BadRow

    prompt = content.get("prompt")
    if isinstance(prompt, list) and prompt:
        return prompt
    if not isinstance(prompt, str):
        raise BadRow(place, f"'prompt' must be a text or a list of messages; the row has {_keys(content)}")
    return [{"role": "user", "content": prompt, "input": content.get("input")}]


def _keys(content: dict[str, Any]) -> str:
    return ", ".join(map(str, content)) or "nothing"


def load(checkpoint: str, device: str, batch_size: int) -> AnyScorer:
    """The reward model of a checkpoint, run folder or hub id. Raises UserError."""
    path = checkpoint if hub.is_hub_id(checkpoint) else str(folders.resolve_checkpoint(checkpoint))
    import torch

    from tinychat.models.scorer import open_scorer

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_scorer(path, device, torch.float32, batch_size)


def scores_of(scorer: AnyScorer, rows: list[Row]) -> list[list[float]]:
    """For each row the scores of its replies. Raises UserError, naming the row, for one that is too long or that the
    chat template refuses."""
    from tinychat.text.chat_render import Refused

    pairs = [(row, reply) for row in rows for reply in row.replies]
    encoded = []
    found = scorer.encode([row.prompt for row, _ in pairs], [reply for _, reply in pairs])
    for (row, _), ids in zip(pairs, found, strict=True):
        if isinstance(ids, Refused):
            raise UserError(f"{row.place}: {ids}; mend or remove this row")
        if len(ids) > scorer.context_length:
            raise UserError(
                f"{row.place}: prompt and reply have {len(ids)} tokens, the model takes {scorer.context_length}; "
                "shorten or remove this row"
            )
        encoded.append(ids)
    scores = iter(scorer.score_ids(encoded))
    return [[next(scores) for _ in row.replies] for row in rows]


def result(row: Row, scores: list[float]) -> dict[str, Any]:
    """The row as it is written."""
    if len(scores) == 1:
        return {**row.content, "score": scores[0]}
    chosen, rejected = scores
    wins = "tie" if chosen == rejected else "chosen" if chosen > rejected else "rejected"
    return {**row.content, "score_chosen": chosen, "score_rejected": rejected, "wins": wins}


def score(scorer: AnyScorer, rows: list[Row], out: IO[str]) -> None:
    """Write a line for each row; say on standard error how far it is, and at the end the accuracy on pairs."""
    begin, right, pairs, size = time.monotonic(), 0.0, 0, CHUNKS * scorer.batch_size
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        for row, scores in zip(chunk, scores_of(scorer, chunk), strict=True):
            done = result(row, scores)
            if "wins" in done:
                pairs += 1
                right += {"chosen": 1.0, "tie": 0.5, "rejected": 0.0}[done["wins"]]
            out.write(json.dumps(done, ensure_ascii=False) + "\n")
        out.flush()
        if sys.stderr.isatty():
            print(f"\r{start + len(chunk):,} of {len(rows):,} rows", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begin
    end = "\n" if sys.stderr.isatty() else ""
    print(f"{end}{len(rows):,} rows scored ({scorer.score_range}) in {seconds:.1f} s", file=sys.stderr)
    if pairs:
        from tinychat.evaluation.statistics import wilson

        low, high = wilson(round(right), pairs)
        print(
            f"accuracy {right / pairs:.1%} (95 %: {low:.1%} to {high:.1%}): the chosen reply scores higher in "
            f"{right:g} of {pairs:,} pairs",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _output(file: str | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears when all is written."""
    if file is None:
        with contextlib.suppress(AttributeError):  # a stdout that is no text file of Python's
            sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        return
    path = at_home(file)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as out:
            yield out
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"--out {file}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    rows = list(read(args.file))
    if args.model_code:
        from tinychat.models.custom import load_classes

        load_classes(args.model_code, f"--model-code {args.model_code}")
    scorer = load(args.checkpoint, args.device, args.batch_size)
    with _output(args.out) as out:
        score(scorer, rows, out)


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
