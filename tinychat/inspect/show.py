"""What was found, as one JSON object, and that as tables for a terminal."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tinychat.data.files.row_sources import named
from tinychat.data.files.splits import format_of
from tinychat.inspect.layouts import PLAIN, PROMPT_LINES, path_for
from tinychat.inspect.measure import Measure, languages_of, lengths_of, samples_of
from tinychat.inspect.survey import MOST, SAMPLE, Group, Seen, may_be_prompts
from tinychat.runtime.terminal import as_text
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import EncodedChat, coloured_example
from tinychat.text.tokenizer import decode_exactly

SAMPLES = 3
HEAD, TAIL = 400, 80  # tokens of a long sample that are shown
BINS, BAR = 10, 40  # of the histogram
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)  # lengths of which it is said how many rows are longer


def facts_of(files: list[Seen], groups: list[Group], measure: Measure | None, asked: str) -> dict[str, Any]:
    """All that is known, for --json."""
    return {
        "path": asked,
        "usable": any(is_usable(group) for group in groups),
        "tokenizer": None if measure is None or measure.bytes else measure.name,
        "files": [
            {
                "path": str(seen.path),
                "format": format_of(seen.path),
                "split": seen.split,
                "bytes": seen.size,
                "layout": seen.known.name if seen.known else None,
                "columns": seen.columns,
                "rows": seen.rows,
                "read_to_its_end": not seen.cut,
                "problem": seen.problem or None,
            }
            for seen in files
        ],
        "layouts": [_facts(group, files, measure, asked) for group in groups],
    }


def is_usable(group: Group) -> bool:
    return group.usable > 0 and any(not seen.problem for seen in group.files)


def _facts(group: Group, files: list[Seen], measure: Measure | None, asked: str) -> dict[str, Any]:
    known = group.known
    others = [seen.path for seen in files if seen not in group.files]
    path, before = path_for(known, [seen.path for seen in group.files], others, asked)
    more = [
        *(["data.tool_calls=text"] if group.with_tools else []),
        *(["data.on_bad_row=skip"] if group.broken else []),
    ]
    commands = {stage: known.command(stage, path, *more) for stage in known.stages(group.labelled)}
    if known == PLAIN and may_be_prompts(group.files):
        commands |= {stage: PROMPT_LINES.command(stage, path) for stage in PROMPT_LINES.stages()}
    languages, how = languages_of(group.sample)
    found: dict[str, Any] = {
        "layout": known.name,
        "shape": known.shape,
        "commands": commands,
        "before": "; ".join(filter(None, [_mend(group), before])) or None,
        "rows": group.rows,
        "usable": group.usable,
        "blank": group.blank,
        "with_tool_calls": group.with_tools,
        "broken": group.broken,
        "reasons": dict(group.reasons.most_common()),
        "first_broken": group.first_broken,
        "columns_not_used": dict(group.unused.most_common()),
        "equal_rows": group.rows_once.again,
        "first_equal_row": group.rows_once.first or None,
        "equal_prompts": group.prompts_once.again if known.shape != "documents" else None,
        "prompts_in_training_and_others": group.shared if len({seen.split for seen in group.files}) > 1 else None,
        "remembered_rows": MOST if group.rows_once.full else None,
        "roles": dict(group.roles),
        "replies": dict(sorted(group.replies.items())),
        "labels": {name: count for name, count in group.labels.items() if count},
        "languages": languages,
        "languages_told": how,
        "characters": group.characters,
        "longest_in_characters": group.longest,
        "sampled_rows": len(group.sample),
    }
    if measure is not None:
        found["lengths"] = _lengths(measure, group)
        found["samples"] = [
            [_sample(measure, what, encoded) for what, encoded in row]
            for row in samples_of(measure, group.sample, SAMPLES)
        ]
    return found


def _mend(group: Group) -> str:
    broken = [seen.path.name for seen in group.files if seen.problem]
    return (
        f"mend {', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}, which ends every training" if broken else ""
    )


def _lengths(measure: Measure, group: Group) -> dict[str, Any]:
    lengths = lengths_of(measure, group.sample)
    if not len(lengths):
        return {"unit": measure.unit, "rows": 0}
    low, high, tail = int(lengths.min()), int(lengths.max()), int(np.percentile(lengths, 99))
    edges = np.unique(np.linspace(low, tail + 1, BINS + 1).astype(int)).tolist()
    edges += [high + 1] if high >= edges[-1] else []  # one more for the longest, so that they do not flatten the rest
    counts, _ = np.histogram(lengths, edges)
    return {
        "unit": measure.unit,
        "rows": len(lengths),
        "refused": len(group.sample) - len(lengths),
        "mean": float(lengths.mean()),
        "least": low,
        **{f"p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99)},
        "most": high,
        "total_estimated": round(float(lengths.mean()) * group.usable),
        "longer_than": {
            size: float((lengths > size).mean()) for size in CONTEXTS if not measure.bytes and (lengths > size).any()
        },
        "histogram": [[edges[index], edges[index + 1] - 1, int(n)] for index, n in enumerate(counts)],
    }


def _sample(measure: Measure, what: str, encoded: Any) -> dict[str, Any]:
    if isinstance(encoded, Refused):
        return {"what": what, "refused": str(encoded)}
    parts = [
        {"text": decode_exactly(measure.tokenizer, encoded.ids[start:stop].tolist()), "trained": is_trained}
        for start, stop, is_trained in _stretches(encoded)
    ]
    return {"what": what, "tokens": len(encoded.ids), "trained": int(encoded.trained.sum()), "parts": parts}


def _stretches(encoded: EncodedChat) -> Iterator[tuple[int, int, bool]]:
    """[start, stop) of each stretch of equal trained, and that."""
    for trained, stretch in itertools.groupby(range(len(encoded.ids)), lambda place: bool(encoded.trained[place])):
        places = list(stretch)
        yield places[0], places[-1] + 1, trained


def show(facts: dict[str, Any], console: Console, rows: int | None) -> None:
    """Print the facts."""
    console.print(_files_table(facts["files"]))
    for seen in facts["files"]:
        if seen["problem"]:
            console.print(Text(as_text(f"cannot be trained on: {seen['problem']}"), style="bold red"))
    if rows is not None and not all(seen["read_to_its_end"] for seen in facts["files"]):
        console.print(f"--rows {rows}: of larger files only so many rows were read, the first", style="bold")
    for group in facts["layouts"]:
        _show_group(group, facts, console)
    if not facts["usable"]:
        console.print("nothing here can be trained on as it stands", style="bold red")


def _files_table(files: list[dict[str, Any]]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("file", "split", "MB", "rows", "layout"):
        table.add_column(name, justify="right" if name in ("MB", "rows") else "left", overflow="fold")
    for seen in files[:50]:
        count = f"{seen['rows']:,}{'' if seen['read_to_its_end'] else ' +'}"
        layout = seen["layout"] or "none"
        size = f"{seen['bytes'] / 1e6:,.2f}"
        table.add_row(
            as_text(seen["path"]), seen["split"], size, count, f"{layout}{' (broken)' if seen['problem'] else ''}"
        )
    if len(files) > 50:
        table.add_row(f"and {len(files) - 50:,} more", "", "", "", "")
    return table


def _show_group(group: dict[str, Any], facts: dict[str, Any], console: Console) -> None:
    console.rule(Text(f"{group['layout']}: {group['shape']}", style="bold"), align="left")
    for number, command in enumerate(group["commands"].values()):
        console.print(Text(f"{'read it:' if not number else 'also:':9}{as_text(command)}"), soft_wrap=True)
    if group["before"]:
        console.print(f"first:   {group['before']}")
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(group):
        table.add_row(name, Text(as_text(value)))
    console.print(table)
    if lengths := group.get("lengths"):
        _show_lengths(lengths, facts["tokenizer"], console)
    if group["broken"]:
        console.print(_broken_table(group))
        for line in group["first_broken"]:
            console.print(Text(f"  {as_text(line)}"), soft_wrap=True)


def _lines(group: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what there is."""
    usable, shape = group["usable"], group["shape"]
    rows = f"{group['rows']:,}, {usable:,} can be used"
    rows += f", {group['broken']:,} cannot" if group["broken"] else ""
    rows += f", {group['blank']:,} are blank" if group["blank"] else ""
    lines = [("rows", rows)]
    if group["with_tool_calls"]:
        lines.append(("tool calls", f"in {group['with_tool_calls']:,} rows, which need data.tool_calls=text"))
    lines.append(("characters", f"{group['characters']:,}, the longest row {group['longest_in_characters']:,}"))
    shares = [f"{name} {share:.0%}" for name, share in group["languages"].items() if share >= 0.01]
    if shares:
        lines.append(("languages", f"{', '.join(shares[:6])} ({group['languages_told']})"))
    if shape == "conversations":
        replies = Counter({int(count): n for count, n in group["replies"].items()})
        spread = ", ".join(f"{count}: {n:,}" for count, n in sorted(replies.items())[:8])
        lines.append(("replies", f"in a conversation, by their number: {spread}{' ...' if len(replies) > 8 else ''}"))
    if group["roles"]:
        lines.append(("messages", ", ".join(f"{name} {count:,}" for name, count in group["roles"].items())))
    if group["labels"]:
        lines.append(("labels", ", ".join(f"{name}: {count:,}" for name, count in group["labels"].items())))
    again = f"{group['equal_rows']:,} rows come again"
    again += f", the first at {group['first_equal_row']}" if group["first_equal_row"] else ""
    if group["equal_prompts"] is not None:
        again += f"; {group['equal_prompts']:,} rows have the prompt of an earlier one"
    if group["remembered_rows"]:
        again += f" (among the first {group['remembered_rows']:,} different ones)"
    lines.append(("duplicates", again))
    if (shared := group["prompts_in_training_and_others"]) is not None:
        what = "documents" if shape == "documents" else "prompts"
        lines.append(("splits", f"{shared:,} {what} are in training files and in others (validation, test) too"))
    if group["columns_not_used"]:
        lines.append(("not used", named(Counter(group["columns_not_used"]))))
    return lines


def _show_lengths(lengths: dict[str, Any], tokenizer: str | None, console: Console) -> None:
    if not lengths["rows"]:
        return
    unit = lengths["unit"]
    sampled = f"a sample of {lengths['rows']:,} rows" if lengths["rows"] >= SAMPLE else f"{lengths['rows']:,} rows"
    what = f"{unit} ({tokenizer})" if tokenizer else f"{unit} (no tokenizer: --tokenizer PATH, or gpt2)"
    console.print(
        Text(
            as_text(
                f"length in {what}, {sampled}: mean {lengths['mean']:,.0f}, median {lengths['p50']:,}, 90 % "
                f"{lengths['p90']:,}, 99 % {lengths['p99']:,}, most {lengths['most']:,}; about "
                f"{lengths['total_estimated']:,} in all"
            )
        )
    )
    most = max(count for _, _, count in lengths["histogram"])
    for start, stop, count in lengths["histogram"]:
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        console.print(Text(f"  {start:>8,} - {stop:>8,} {count:>7,} {bar}"))
    if lengths["longer_than"]:
        shares = ", ".join(f"{size:,}: {share:.1%}" for size, share in lengths["longer_than"].items())
        console.print(f"  longer than {shares}")
    if lengths.get("refused"):
        console.print(f"  {lengths['refused']:,} rows of the sample are refused by the chat template", style="red")


def _broken_table(group: dict[str, Any]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("rows", justify="right")
    table.add_column("that cannot be used, by reason", overflow="fold")
    for why, count in list(group["reasons"].items())[:12]:
        table.add_row(f"{count:,}", Text(as_text(why)))
    if len(group["reasons"]) > 12:
        table.add_row("", f"and {len(group['reasons']) - 12} reasons more")
    return table


def show_samples(group: Group, measure: Measure, console: Console) -> None:
    """Rows as the chat template writes them; what is trained stands between ⟦ and ⟧."""
    console.rule(Text(f"samples of {group.known.name}; what is trained stands between ⟦ and ⟧"), align="left")
    for row in samples_of(measure, group.sample, SAMPLES):
        for what, encoded in row:
            if isinstance(encoded, Refused):
                console.print(Text(f"{what}: {as_text(str(encoded))}", style="red"))
                continue
            counts = f"{len(encoded.ids):,} tokens" if not measure.bytes else f"{len(encoded.ids):,} bytes"
            console.print(Text(f"{what}, {counts}, {int(encoded.trained.sum()):,} trained", style="bold"))
            console.print(_shortened(measure, encoded))


def _shortened(measure: Measure, encoded: EncodedChat) -> Text:
    """With the middle left out where it is long: how it begins and how it ends is what a mask can have wrong."""
    if len(encoded.ids) <= HEAD + TAIL:
        return coloured_example(measure.tokenizer, encoded, brackets=True)
    parts = [
        coloured_example(
            measure.tokenizer, replace(encoded, ids=encoded.ids[kept], trained=encoded.trained[kept]), True
        )
        for kept in (slice(HEAD), slice(-TAIL, None))
    ]
    return Text(f" ... {len(encoded.ids) - HEAD - TAIL:,} more ... ", style="bold").join(parts)
