"""A function of a suite in a process of its own: nobody else's threads, caches and garbage.

The first call of a program is what a fresh process pays. And who takes another library has not
imported this one, at whose import the threads that both share learn to sleep (`jaxsvd._openblas`).
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def alone(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Return what a function returns in a new process.

    Args:
        function: at the top level of a module; what it returns can be written as JSON.
        arguments: that can be written as JSON.
        environment: variables set there, beside those of this process.
    """
    module = function.__module__
    if module == "__main__":  # python -m benchmarks.topk
        spec = sys.modules[module].__spec__
        module = module if spec is None else spec.name
    called = [sys.executable, "-m", "benchmarks.alone", module, function.__name__]
    done = subprocess.run(
        [*called, json.dumps(arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    home, name, given = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(home), name)(*json.loads(given))))
