"""Several runs of one command: searches of hyperparameters (sweep=) and plain multiruns (-m)."""
