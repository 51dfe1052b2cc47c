"""What is on disk: run folders, which run builds on which, lineage, trials, failures, and what a stage gets."""
