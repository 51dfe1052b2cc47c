"""Texts to packed blocks."""
