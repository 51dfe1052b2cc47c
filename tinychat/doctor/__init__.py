"""What would spoil a training without an error, looked for in its first step."""
