"""What a compiled program does between devices and with which libraries, read from its HLO."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")

_INSTRUCTION = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) (?P<kind>" + "|".join(KINDS) + r"|custom-call)(?:-start)?\("
)
_SHAPE = re.compile(r"\b(?P<dtype>pred|bf16|[sufc]\d+)\[(?P<dims>[\d,]*)\]")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
BYTES = {"pred": 1, "bf16": 2}


class Call(NamedTuple):
    """One instruction of a program.

    Attributes:
        kind: one of KINDS, or the name of the library function called.
        shapes: of its results, on one device.
        bytes: of its results, on one device.
    """

    kind: str
    shapes: list[tuple[int, ...]]
    bytes: int

    @property
    def longest(self) -> int:
        return max((max(shape, default=1) for shape in self.shapes), default=1)


def calls(text: str) -> list[Call]:
    """Return all collectives and custom calls of `compiled.as_text()`, in every branch."""
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        shapes, total = [], 0
        for shape in _SHAPE.finditer(match["shape"]):
            dims = tuple(int(d) for d in shape["dims"].split(",") if d)
            dtype = shape["dtype"]
            shapes.append(dims)
            total += math.prod(dims) * (BYTES.get(dtype) or int(dtype[1:]) // 8)
        kind = match["kind"]
        if kind == "custom-call":
            target = _TARGET.search(line)
            kind = target[1] if target else kind
        found.append(Call(kind, shapes, total))
    return found


def collectives(text: str) -> list[Call]:
    return [call for call in calls(text) if call.kind in KINDS]


def decompositions(text: str) -> list[Call]:
    """Return the calls of LAPACK and its like: QR, SVD, eigenvalues, Cholesky."""
    return [call for call in calls(text) if re.match(r"lapack_|cusolver|Qr|Eigh|Chol", call.kind)]
