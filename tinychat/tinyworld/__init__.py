"""tinyworld: an embedded, seeded world of short stories that needs no network and no files.

`story(seed, split, index)` gives one `Story` (its structure and its text); `stories(seed, split, n)` the texts of many;
`documents(...)` stories with lessons (see `lessons`) between them.
"""

from tinychat.tinyworld.generate import documents, stories, story
from tinychat.tinyworld.scene import Story

__all__ = ["Story", "documents", "stories", "story"]
