"""LoRA and 4-bit bases."""
