"""Documents, conversations or preferences in, token batches out.

documents/: text out of files -> documents of one split -> tokens in one memory-mapped file -> blocks of the context's
length in a seeded order. chats/: rows of a table file -> canonical conversations -> tokens, and which are trained ->
packed or padded. preferences/: pairs and prompts likewise. files/: what all lean on (rows out of files, hold-outs,
caches). Importing this package is cheap; pyarrow, datasets and torch are imported where they are used.
"""
