"""Benchmarks: what is claimed of the library, as scripts that measure it."""

# Before SciPy, as README advises: both share one OpenBLAS, and its threads (`jaxsvd._openblas`).
import jaxsvd as jaxsvd
