"""Primitives: an algorithm joined to its derivative rule; the only home of `ruled`."""
