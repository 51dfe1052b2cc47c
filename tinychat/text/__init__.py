"""Text to tokens and back.

bpe (training a byte-level BPE) -> tokenizer (loading any tokenizer, encoding documents) -> report (how well
one fits).
Conversations: template_process (a chat template filled in, within bounds) -> chat_render (to text, and where the
replies are in it) -> chat_template (to tokens, and which of them are trained).
"""

from __future__ import annotations

from pathlib import Path

END_OF_TEXT = "<|endoftext|>"  # after each document; also what a text without a beginning is continued from
PAD = "<|pad|>"  # never the end of text: a masked pad must not hide where a document really ends
CHAT_START = "<|im_start|>"  # before the role of a chat message
CHAT_END = "<|im_end|>"  # after a chat message
RESERVED = (END_OF_TEXT, PAD, CHAT_START, CHAT_END)
_FOLDER = Path(__file__).parent / "templates"
# Chat templates by their names: each a file there and one in conf/template/. First the one that suits every tokenizer.
TEMPLATES = {path.stem: path for path in (_FOLDER / "instruct.jinja", *sorted(_FOLDER.glob("*.jinja")))}
