"""tinychat: the ChatGPT recipe from scratch, at a size one person can train."""

__version__ = "0.1.0"
