"""Say what is in files that somebody brings, before a training reads them.

    python -m tinychat.inspect my_chats.jsonl

What is heavy is imported after the arguments have been read and the files found, so that `--help` and a wrong option
answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinychat.errors import UserError
from tinychat.runtime.console import Parser, main_of
from tinychat.runtime.run_files import at_home
from tinychat.runtime.terminal import output_console

DESCRIPTION = """Say what a file, a folder or a glob holds (txt, jsonl, json, csv, tsv, each also .gz, and parquet), and
which command trains on it: layout, counts, languages, lengths with a histogram, duplicates, rows that cannot be used
and why, columns that are not used, and three rows as the chat template writes them, with what is trained marked."""
EPILOG = """examples:
  python -m tinychat.inspect my_chats.jsonl
  python -m tinychat.inspect my_folder/ --tokenizer gpt2            lengths in GPT-2's tokens
  python -m tinychat.inspect 'data/*.parquet' --rows 10000          of each file the first 10,000 rows
  python -m tinychat.inspect pairs.csv --json | jq .layouts[0].commands

Files are read as streams, all rows unless --rows says otherwise; lengths and languages are those of a sample of 2,000
rows, drawn evenly. Without --tokenizer the newest run's under --outputs is used; where there is none, lengths are in
characters and the samples are shown in bytes.

Exit status: 0, 1 where nothing can be trained on or an error was explained."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("inspect", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("path", metavar="PATH", help="a file, a folder or a glob in quotes")
    add("--rows", metavar="N", type=int, help="read at most N rows of each file, the first (default: all)")
    add("--tokenizer", metavar="CKPT", help="gpt2, a tokenizer's folder, a checkpoint or run, latest, a hub id")
    add(
        "--template",
        metavar="NAME",
        help="chat template: chatml, instruct or FILE.jinja (default: the tokenizer's own)",
    )
    add("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default: %(default)s)")
    add("--json", action="store_true", help="one JSON object in place of the tables")
    args = parser.parse_args(arguments)
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows {args.rows}: must be at least 1")
    return args


@contextlib.contextmanager
def progress_of(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on standard error, where that is a terminal, over `total` bytes."""
    if not sys.stderr.isatty():
        yield lambda name, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda name, done: bar.update(task, description=name, completed=done)


def run(arguments: list[str]) -> None:
    args = parse(arguments)
    from tinychat.inspect.survey import found_files, survey

    files = found_files(args.path)
    with progress_of(sum(seen.size for seen in files)) as progress:
        groups = survey(files, args.rows, progress)
    from tinychat.inspect import show
    from tinychat.inspect.measure import measure_of  # torch loads here

    measure = measure_of(args.tokenizer, args.template, Path(at_home(args.outputs)))
    facts: dict[str, Any] = show.facts_of(files, groups, measure, args.path)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        console = output_console()
        show.show(facts, console, args.rows)
        for group in groups:
            if group.sample:
                show.show_samples(group, measure, console)
    if not facts["usable"]:
        sys.exit(1)


def main() -> None:
    """Console entry. Exit status: 0 something can be trained on, 1 nothing can, or an error that was explained."""
    main_of(run)


if __name__ == "__main__":
    main()
