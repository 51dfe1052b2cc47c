"""The stages: one file each, whose `run(config, context)` reads from top to bottom."""
