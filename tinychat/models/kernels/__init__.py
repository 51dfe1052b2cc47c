"""Arithmetic that is faster than the library's: head, attention, decoding, buffers."""
