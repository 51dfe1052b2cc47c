"""Types of what conf/ says, and checks over it: no torch, no data, no disk."""
