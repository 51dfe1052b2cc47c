"""Several stages as one command, with gates and one report."""
