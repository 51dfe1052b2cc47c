"""Compare runs from their folders, without a server: in the terminal and as a report.

    python -m tinychat.compare ppo_bayes

What is heavy is imported after the arguments have been read, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinychat.errors import UserError
from tinychat.runtime.console import Parser, main_of
from tinychat.runtime.run_files import at_home, said_of
from tinychat.runtime.terminal import as_text, output_console

if TYPE_CHECKING:
    from rich.console import Console

    from tinychat.compare.groups import Comparison, ItemPairs, SeedPairs
    from tinychat.compare.report import TextTable

DESCRIPTION = """Compare runs: a table sorted by a metric, mean and spread over seeds, paired tests where the same seeds
ran, and a report with the curves over each other. Read from the run folders: no MLflow server is needed.

NAME is any of these, and several are compared together:
  ppo_bayes                            a study: the trials of a sweep, finished or not
  outputs/sweeps/ppo_bayes             a sweep's own folder, that of a plain multirun too
  tinychat                             an experiment: all its runs; tinychat/RUN_NAME: some
  outputs/tinychat/RUN_NAME/TIME        a run
  runs:/ID, or the bare id             a run or a sweep in MLflow"""
EPILOG = """examples:
  python -m tinychat.compare ppo_bayes                                 trials by the study's objective
  python -m tinychat.compare tinychat --stage sft                      one stage of an experiment
  python -m tinychat.compare RUN RUN RUN --metric ppl                  runs by another metric
  python -m tinychat.compare mine --by lr epochs --top 5               groups by two settings, the five best
  python -m tinychat.compare a b --by experiment_name --metric eval/safe_rate --metric eval/over_refusal

A metric may be said by its last name where that is clear (ppl for eval/ppl), a setting without "stage.". Groups are
runs with the same settings and other seeds; runs that failed, were pruned or still run are listed, not averaged."""
SHOWN = 30  # groups in the terminal
SHOWN_SETTINGS = 6  # columns in the terminal
SHOWN_METRICS = 4  # beside the compared one, in the terminal


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("compare", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("names", metavar="NAME", nargs="+", help="study, sweep, experiment, run folder or MLflow run id")
    add("--metric", metavar="NAME", action="append", default=[], help="what to compare (default: the objective); "
        "again: further metrics shown and drawn")  # fmt: skip
    add("--stage", metavar="NAME", help="only runs of this stage (pretrain, sft, reward, ppo, ...)")
    add("--by", metavar="KEY", nargs="+", default=[], help="settings that make a group (default: all in which the "
        "runs differ but for the seed, paths and names)")  # fmt: skip
    add("--sort", metavar="NAME", help="sort by another metric, a setting or minutes (default: best metric first)")
    add("--goal", choices=["minimize", "maximize"], help="which end of the metric is good (default: the study's, else "
        "what is usual for it)")  # fmt: skip
    add("--top", metavar="N", type=int, help=f"groups shown in the terminal (default {SHOWN}; the report has all)")
    add("--output", metavar="FOLDER", help="where the report goes (default: OUTPUTS/compare/NAMES)")
    add("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.top is not None and args.top < 1:
        raise UserError(f"--top {args.top}: must be at least 1")
    if args.output and at_home(args.output).is_file():
        raise UserError(f"--output {args.output}: is a file; name a folder")
    return args


def run(arguments: list[str]) -> None:
    """Raises UserError."""
    args = parse(arguments)
    from tinychat.compare import groups, report
    from tinychat.compare.runs import find

    outputs = at_home(args.outputs)
    found = groups.compare(find(args.names, outputs), args.metric, args.by, args.stage, args.sort, args.goal)
    seeds, items = groups.seed_pairs(found), groups.item_pairs(found)
    _print(found, seeds, items, args.top or SHOWN)
    folder = at_home(args.output) if args.output else outputs / "compare" / folder_name(args.names)
    command = "python -m tinychat.compare " + shlex.join(arguments)
    drawn = [found.metric, *found.further] if len(args.metric) > 1 else [found.metric] if args.metric else []
    try:
        page = report.write(found, seeds, items, folder, " and ".join(args.names[:4]), command, drawn)
    except OSError as error:
        hint = "choose another folder with --output"
        raise UserError(f"{said_of(error, folder)}; {hint}") from None
    print(f"report: {page}")


def folder_name(names: list[str]) -> str:
    """A folder's name out of what is compared: the same names, the same folder."""
    ends = ["-".join(Path(name.removeprefix("runs:/")).parts[-2:]) for name in names]
    return re.sub(r"[^\w.-]+", "-", "-vs-".join(ends)).strip("-.")[:100] or "runs"


def _print(found: Comparison, seeds: Sequence[SeedPairs], items: Sequence[ItemPairs], top: int) -> None:
    from tinychat.compare import report as compare_table
    from tinychat.compare.report import headline

    console = output_console()
    console.print(as_text(headline(found)), style="bold")
    for note in found.notes:
        console.print(as_text(note))
    _show(console, compare_table.groups_table(found, found.groups[:top], SHOWN_METRICS, SHOWN_SETTINGS))
    if len(found.keys) > SHOWN_SETTINGS:
        console.print(f"{len(found.keys) - SHOWN_SETTINGS} more settings differ; the report has them, --by chooses")
    if len(found.groups) > top:
        console.print(f"{len(found.groups) - top} more in the report (--top shows more)")
    failed = [one for group in found.groups for one in group.runs if not one.finished and one.why]
    for one in failed[:3]:
        console.print(as_text(f"{one.state}: {one.name}: {one.why[:200]}"))
    table = compare_table.seeds_table(found, seeds)
    if table.rows:
        console.print("best against the others, over the seeds of both", style="bold")
        _show(console, compare_table.TextTable(table.columns, table.rows[:10], table.numbers))
    for note in compare_table.pairs_notes(found, seeds):
        console.print(as_text(note))
    if items:
        console.print("best run against other single runs, on the same held-out items", style="bold")
        _show(console, compare_table.items_table(found, items))


def _show(console: Console, shown: TextTable) -> None:
    from rich.table import Table

    table = Table()
    for index, name in enumerate(shown.columns):
        table.add_column(as_text(name), justify="right" if index in shown.numbers else "left", overflow="fold")
    for row in shown.rows:
        table.add_row(*map(as_text, row))
    console.print(table)


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
