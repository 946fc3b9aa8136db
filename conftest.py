"""The configuration of JAX under which the tests and all doctests run; there is no other.

Environment:
    JAXSVD_X64=0      x64 off; of the tests only those marked x32 run.
    JAXSVD_OPTIMIZE=1 programs compiled as users have them; a third slower in all.
    JAXSVD_CACHE_DIR  a folder for compiled programs, kept from one run to the next.
    JAXSVD_BRANCH     a platform, "cuda" or "tpu", whose algorithms run here in place of this one's.
"""

import contextlib
import gc
import importlib.metadata
import itertools
import os

# Eight CPU devices for the sharding tests, and programs that are compiled fast rather than well:
# most of the time went into LLVM (Hessians of three functions: 1.7 s to compile, 0.35 s so). Both
# count only if set before jax starts its backend.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
if os.environ.get("JAXSVD_OPTIMIZE", "0") == "0":
    _FLAGS += ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # others end at unknown flags
        _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_given = os.environ.get("XLA_FLAGS", "")
_missing = [flag for flag in _FLAGS if flag.split("=")[0] not in _given]
os.environ["XLA_FLAGS"] = " ".join([_given, *_missing]).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402

X64 = os.environ.get("JAXSVD_X64", "1") != "0"

jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Where in Python an operation comes from is a tenth of what it takes to lower a program.
jax.config.update("jax_traceback_in_locations_limit", 0)

if _cache := os.environ.get("JAXSVD_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", _cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The algorithms of a GPU are the library's own but for LAPACK, which stands in for cuSOLVER.
if _branch := os.environ.get("JAXSVD_BRANCH"):

    def _of_that_platform(*args, default=None, **branches):
        return branches.get(_branch, default)(*args)

    jax.lax.platform_dependent = _of_that_platform

# On accelerators a product keeps three digits unless it asks for more. Those of the library do, by
# themselves (tests/test_precision.py reads the programs); those of the tests, a hundred, do here.
if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")

# An example may compile, so it has no deadline; the same examples come in every run.
hypothesis.settings.register_profile("jaxsvd", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxsvd")


def pytest_collection_modifyitems(config, items):
    if X64:
        return
    left_out = [item for item in items if item.get_closest_marker("x32") is None]
    if left_out:
        items[:] = [item for item in items if item.get_closest_marker("x32") is not None]
        config.hook.pytest_deselected(items=left_out)


# A process that has run a thousand tests holds gigabytes of traces and programs. The collector of
# garbage is not to walk through them again and again, nor is who asks for a collection (ten times
# the time of test_longrun): what is alive now and then counts as alive for good.
gc.set_threshold(200_000, 20, 20)

# Each compiled program holds some four memory maps, and Linux allows a process 65530: one that runs
# a thousand tests here passes that and dies of a segmentation fault while it compiles.
_TESTS_BETWEEN_LOOKS = 10  # which add far less than a quarter of them
_tests_run = itertools.count(1)


def pytest_runtest_teardown():
    gc.freeze()
    if next(_tests_run) % _TESTS_BETWEEN_LOOKS:
        return
    with contextlib.suppress(OSError), open("/proc/sys/vm/max_map_count") as limit:
        with open("/proc/self/maps") as maps:
            if 4 * sum(1 for _ in maps) > 3 * int(limit.read()):
                jax.clear_caches()
