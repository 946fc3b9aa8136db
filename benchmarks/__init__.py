"""Benchmarks: what is claimed of the library, as scripts that measure it."""
