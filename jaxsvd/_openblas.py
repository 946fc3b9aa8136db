"""How long the threads of OpenBLAS, behind LAPACK on CPU, wait for more work before they sleep.

By default 2^26 ticks of the clock, some 20 ms, while they spin on the cores that XLA's own threads
multiply with: the top 50 of 4096 x 4096 took 142 ms, and 90 with 2^18 ticks, a tenth of a
millisecond. That is enough within one call: an SVD of 128 to 1024 columns takes no longer than by
default, where with 2^10 ticks one of 128 takes twice as long (2 cores).

OpenBLAS reads the variable when SciPy loads it, which `import jax` does not do yet. Where SciPy was
there first nothing changes, and a value that the environment has already stays.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")
