"""Talk to checkpoints."""
