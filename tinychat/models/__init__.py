"""Transformers models: built from a configuration or loaded, counted, and made to generate text."""
