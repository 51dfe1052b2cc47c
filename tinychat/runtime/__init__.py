"""What surrounds a process: ranks, seeds, memory, terminal, hub, small files, command-line conventions."""
