"""The templates of all pages that tinychat writes: those of the package's folders, filled in and escaped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.report.headline import as_cell, as_fence

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST_SHORT, LONG = 16, 40  # characters of a cell that is not broken, and of one that needs a wide column


def render(template: str, report: object, **values: Any) -> str:
    """A template of the package (FOLDER/NAME) with `report` and `values`; .html.j2 ones escape."""
    return templates(template.endswith(".html.j2")).get_template(template).render(report=report, **values)


@functools.cache
def templates(escape: bool) -> Environment:
    """Those of the package, each compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}  # of |tojson
    environment.filters["cell"] = as_cell
    environment.filters["fence"] = as_fence
    environment.filters["kinds"] = lambda table: kinds_of(table.columns, table.rows)
    return environment


def kinds_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The class of each column's cells: numbers and a few words, as ">= 0.95", are not broken; long texts have room."""
    longest = [max((len(row[index]) for row in rows), default=0) for index in range(len(columns))]
    return ["short" if n <= LONGEST_SHORT else "long" if n > LONG else "text" for n in longest]
