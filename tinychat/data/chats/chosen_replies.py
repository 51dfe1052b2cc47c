"""Preferences as conversations: the chosen replies, of which none that is known to be unsafe."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from tinychat.config.schema import DataConfig, Source
from tinychat.data.chats.rows import BadRow, ChatRow
from tinychat.data.files.row_sources import Found, hashed
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.errors import UserError

log = logging.getLogger(__name__)


def chosen_replies(
    config: DataConfig, found: Found[PreferenceRow], validation: Found[PreferenceRow] | None
) -> tuple[Found[ChatRow], Found[ChatRow] | None]:
    """The conversations of preferences, each once although their prompt may have several pairs, and for the
    prompts that training lacks those of their validation.

    Left out are replies labelled unsafe and, of PKU-SafeRLHF, where the safer of two replies may be unsafe too,
    those without a label. Reading raises UserError where that leaves none.
    """
    needs_label = config.source is Source.pku_saferlhf

    def read() -> Iterator[ChatRow | BadRow]:
        seen: set[str] = set()
        unsafe = 0
        for row in found.read():
            if isinstance(row, BadRow):
                yield row
            elif row.chosen_safe is False or (needs_label and row.chosen_safe is None):
                unsafe += 1
            elif (chat := _chosen(row)).content() not in seen:
                seen.add(chat.content())
                yield chat
        if unsafe and not seen:
            raise UserError(
                f"{found.description}: none of {unsafe} chosen replies is labelled safe (chosen_safe; of "
                "pku_saferlhf is_response_0_safe and is_response_1_safe), so that no conversation is left"
            )
        if unsafe:
            log.info("%s: %d chosen replies that are not labelled safe left out", config.name, unsafe)

    def read_all() -> Iterator[ChatRow | BadRow]:
        assert validation is not None
        return (row if isinstance(row, BadRow) else _chosen(row) for row in validation.read())

    def identify(memo_dir: Path | None) -> str:
        return hashed(["chosen", found.identify(memo_dir)])

    chosen = Found(f"the chosen replies of {found.description}", read, identify, found.hold_out, found.size)
    return chosen, Found(validation.description, read_all, validation.identify) if validation else None


def _chosen(row: PreferenceRow) -> ChatRow:
    return ChatRow(row.conversations()[0], row.place, unused=row.unused)
