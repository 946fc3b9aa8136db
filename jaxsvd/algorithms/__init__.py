"""Algorithms: matrices in, triplets out; they know nothing of derivatives."""
