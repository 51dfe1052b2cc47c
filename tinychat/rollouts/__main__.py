"""Look at the replies that a policy learnt from: by reward, token by token, step beside step.

    python -m tinychat.rollouts latest

What is heavy is imported after the arguments have been read, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tinychat.config.specs import SPECS
from tinychat.errors import UserError
from tinychat.runs import folders
from tinychat.runs.rollouts import COLUMNS, FOLDER, ORDERS, Rollout, numbered, ranges, read, steps_of, words_of
from tinychat.runtime.console import Parser, main_of
from tinychat.runtime.run_files import at_home, said_of, write_text_atomic
from tinychat.runtime.terminal import say

DESCRIPTION = """Look at the replies of a run of PPO, GRPO or RLVR: those of a step sorted by reward, advantage, KL or
length, their tokens coloured by what was measured of them; two steps beside each other; the replies to a prompt over
time.

RUN is a run folder (or a checkpoint in it), the name of an experiment or of a run in it (tinychat,
tinychat/ppo-mini-tinyworld: the newest there that has rollouts), latest (of all experiments), or runs:/ID of MLflow.

examples:
  python -m tinychat.rollouts latest                               the last step: the best and the worst replies
  python -m tinychat.rollouts RUN --step 4 --sort kl --by kl       which tokens took the policy furthest from its start
  python -m tinychat.rollouts RUN --against 1                      the last step beside the first
  python -m tinychat.rollouts RUN --held-out --step 0 --against 16     the same prompts, answered before and after
  python -m tinychat.rollouts RUN --prompt steal                   prompts with that word, over the steps
  python -m tinychat.rollouts RUN --prompt 7                       the 7th held-out prompt, at every evaluation
  python -m tinychat.rollouts RUN --html replies.html              all of it as a page"""
EPILOG = f"""what tokens are coloured by:
{chr(10).join(f"  {name:10}{meaning}" for name, (_, _, meaning) in COLUMNS.items())}

What a reply is sorted by: its reward (with penalties for its length), the mean advantage of its tokens, the sum of
their KL, their number, or a part of the reward by its name. Where the output is no terminal, or with --numbers, the
number of each token stands below it."""
SHOWN = 5  # replies from each end, and prompts over time
MOST_STEPS, MOST_TOKENS, MOST_READ = 200, 400_000, 2_000_000_000  # of --html: a page of some 20 MB at most


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("rollouts", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run that learnt from rollouts")
    add("--step", metavar="N", type=int, help="whose replies (default: the last)")
    add("--against", metavar="N", type=int, help="another step, beside it")
    add("--held-out", "--held_out", action="store_true", help="replies to held-out prompts, the same at every "
        "evaluation, instead of those learnt from")  # fmt: skip
    add("--sort", metavar="NAME", default="reward", help=f"{', '.join(ORDERS)} or a part of the reward (default "
        "%(default)s)")  # fmt: skip
    add("--by", metavar="NAME", default="logprob", choices=list(COLUMNS), help=f"colour: {', '.join(COLUMNS)} (default "
        "%(default)s)")  # fmt: skip
    add("--top", metavar="N", type=int, help=f"show the N highest (default {SHOWN} unless --bottom is given)")
    add("--bottom", metavar="N", type=int, help=f"show the N lowest (default {SHOWN} unless --top is given)")
    add("--prompt", metavar="TEXT", help="replies over the steps to prompts with this text, or to prompt number N of "
        "the held-out ones (without these: of the step)")  # fmt: skip
    add("--numbers", action="store_true", help="below each token its number")
    add("--html", metavar="FILE", help="write a page instead of showing anything")
    add("--force", action="store_true", help="--html may overwrite FILE")
    add("--outputs", metavar="FOLDER", default="outputs", help="where runs are (default: %(default)s)")
    args = parser.parse_args(arguments)
    for option in ("top", "bottom"):
        if (count := getattr(args, option)) is not None and count < 0:
            raise UserError(f"--{option} {count}: must be 0 or more")
    if args.top is None and args.bottom is None:
        args.top = args.bottom = SHOWN
    if args.against is not None and args.prompt is not None:
        raise UserError("--against shows two steps, --prompt a prompt over all of them; give one of the two")
    if args.html:
        check_file(args.html, args.force)
    return args


def check_file(file: str, force: bool) -> None:
    """Of --html. Raises UserError."""
    path = at_home(file)
    if path.is_dir():
        raise UserError(f"--html {file}: is a folder; name a file")
    if path.exists() and not force:
        raise UserError(f"--html {file}: exists; --force overwrites it")
    if not path.parent.is_dir():
        raise UserError(f"--html {file}: no folder {path.parent}")


def find(name: str, outputs: Path) -> Path:
    """The run folder that has rollouts. Raises UserError."""
    path = at_home(name)
    if path.parent.name == folders.CHECKPOINTS and path.is_dir():
        path = path.parent.parent
    if (path / folders.CONFIG).is_file():
        there = [path]
    elif name == "latest" and not path.exists():
        there = [config.parent for config in outputs.glob(f"*/*/*/{folders.CONFIG}")]
        there.sort(key=lambda folder: (folders.order_of(folder)[1:], folder))
        if not there:
            raise UserError(f"latest: there are no runs in {outputs}; say with --outputs where they are")
    else:
        from tinychat.compare import runs

        there = [one.folder for one in runs.find([name], outputs)]
        there.sort(key=folders.order_of)
    usable = [folder for folder in there if steps_of(folder) or steps_of(folder, held_out=True)]
    if not usable:
        stages = ", ".join(stage for stage, spec in SPECS.items() if spec.rollouts)
        what = f"{there[0]} has" if len(there) == 1 else f"none of its {len(there)} runs has"
        raise UserError(f"{name}: {what} no {FOLDER}/; runs of stage={stages} write it, with stage.keep_rollouts=true")
    if usable[-1:] != [path]:
        say(f"note: {name} is {usable[-1]}")
    return usable[-1]


def read_step(run_dir: Path, step: int | None, held_out: bool, option: str) -> Rollout:
    """Of a step, None: the last. Raises UserError."""
    steps = steps_of(run_dir, held_out)
    what = "evaluations with held-out replies" if held_out else "steps with rollouts"
    if not steps:
        why = "leave out --held-out" if held_out else "--held-out shows its evaluations"
        raise UserError(f"{run_dir}: has no {what}; {why}")
    if step is not None and step not in steps:
        raise UserError(f"{option} {step}: no such file; {what}: {ranges(steps)}")
    return read(run_dir, steps[-1] if step is None else step, held_out)


def check_names(args: argparse.Namespace, rollouts: list[Rollout]) -> None:
    """--by and --sort name what a rollout has. Raises UserError."""
    for rollout in rollouts:
        for option, name, names in (("--by", args.by, rollout.columns), ("--sort", args.sort, rollout.orders)):
            if name not in names:
                raise UserError(f"{option} {name}: {rollout.path.name} has no such numbers; it has {', '.join(names)}")


def run(arguments: list[str]) -> None:
    """Raises UserError."""
    args = parse(arguments)
    run_dir = find(args.run, at_home(args.outputs))
    first = read_step(run_dir, args.step, args.held_out, "--step")
    beside = [] if args.against is None else [read_step(run_dir, args.against, args.held_out, "--against")]
    check_names(args, [first, *beside])
    words = words_of(run_dir)
    if words.tokenizer is None:
        say(f"note: {run_dir} has no checkpoint with a tokenizer.json, nor has what it began from; ids are shown")
    if args.html:
        write_html(args, run_dir, first)
        return
    from tinychat.rollouts import show

    if args.prompt is None:
        show.show(args, run_dir, [first, *beside], words)
    else:
        show.over_time(args, run_dir, first, words)


def write_html(args: argparse.Namespace, run_dir: Path, first: Rollout) -> None:
    """Raises UserError."""
    from tinychat.report.rollouts import chosen_steps, page

    always = [(step, args.held_out) for step in (first.step, args.against) if step is not None]
    there = chosen_steps(run_dir, always, MOST_STEPS, MOST_READ)
    rollouts = (read(run_dir, *which) for which in there)
    number = int(args.prompt) if args.prompt and args.prompt.isdecimal() else None
    view = {
        "heldOut": args.held_out,
        "step": first.step,
        "against": args.against,
        "order": args.sort,
        "by": args.by,
        "find": args.prompt if args.prompt and number is None else "",
        "prompt": () if number is None else numbered(number, run_dir, first),
        "lowest": not args.top,
    }
    file = at_home(args.html)
    try:
        write_text_atomic(file, page(run_dir, rollouts, words_of(run_dir), MOST_TOKENS // len(there), **view))
    except OSError as error:
        raise UserError(f"--html {args.html}: {said_of(error, file)}") from None
    print(f"page: {file}", file=sys.stdout)


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    main_of(run)


if __name__ == "__main__":
    main()
