"""The doctor: what would spoil a training without an error, before it is paid for.

    python -m tinychat.doctor stage=ppo model=gpt6x512

Takes the words of tinychat.train, makes the first step of that job in a folder that goes afterwards, prints a table.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from tinychat import train
from tinychat.config import checks, schema
from tinychat.config.specs import SPECS, spec_of
from tinychat.errors import UserError
from tinychat.launch import job, preflight
from tinychat.runtime import gguf
from tinychat.runtime.terminal import error_line, output_console

PROGRAM = "tinychat.doctor"
statuses: list[int] = []


def look(node: DictConfig) -> None:
    """Examine the job and print what was found. Raises UserError as tinychat.train does."""
    config = schema.to_config(node)
    if config.sweep is not None:
        raise UserError(f"sweep={config.sweep.name} is many runs; {PROGRAM} looks at one: leave it out")
    checks.check(config)
    if not spec_of(config).trains:
        able = ", ".join(spec.name for spec in SPECS.values() if spec.trains)
        raise UserError(f"stage={config.stage.name} trains no model; there are {able}")
    said = job.overrides()
    with gguf.kept_in(config.paths.cache):
        preflight.check(config, said)
        job.forget_launcher()
        from tinychat.doctor.examine import examine  # torch loads here

        examined = examine(config, said)
    statuses.append(_print(examined))


def _print(examined: object) -> int:
    """The example and the table. Returns the exit status."""
    from tinychat.doctor.examine import Examined
    from tinychat.text.chat_template import coloured_example

    assert isinstance(examined, Examined)
    console = output_console()
    if examined.example is not None:
        console.print("a sequence of the first update; what is trained stands between ⟦ and ⟧", style="bold")
        console.print(coloured_example(*examined.example, brackets=True))
    console.print(examined.findings.table())
    failed = examined.findings.failed
    verdict = f"{len(failed)} checks fail" if len(failed) > 1 else "1 check fails" if failed else "no check fails"
    console.print(verdict, style="bold")
    return 1 if failed else 0


def main() -> None:
    """Console entry. Exit status: 0 all checks pass, 1 one fails, or an error that was explained."""
    if any(word in ("-m", "--multirun") for word in sys.argv[1:]):
        sys.exit(error_line(f"-m is many runs; {PROGRAM} looks at one: leave it out"))
    train.command(PROGRAM, look)
    sys.exit(statuses[0] if statuses else 0)


if __name__ == "__main__":
    main()
