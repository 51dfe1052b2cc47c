"""Documents or conversations in, token batches out.

files (which files a path means) -> documents (text out of a file) -> sources (documents of one split) ->
cache (tokens in one memory-mapped file) -> packing (blocks of the context's length in a seeded order).
Conversations: chat_files (rows of a table file to canonical chat_rows) -> chat_sources (rows of one split) ->
chat_cache (tokens, and which are trained) -> chat_batches (packed or padded).
Both lean on tables (rows out of a file), splits (files and hold-out of a split), hub_rows and cache_folder.
Importing this package is cheap; pyarrow, datasets and torch are imported where they are used.
"""
