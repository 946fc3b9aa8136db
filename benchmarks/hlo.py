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
        group: devices that take part together.
    """

    kind: str
    shapes: list[tuple[int, ...]]
    bytes: int
    group: int

    @property
    def longest(self) -> int:
        return max((max(shape, default=1) for shape in self.shapes), default=1)

    @property
    def sent(self) -> float:
        """Bytes that each device sends, by the ring algorithms."""
        g = self.group
        if self.kind == "all-reduce":
            return 2 * self.bytes * (g - 1) / g
        if self.kind == "reduce-scatter":  # the result is one of g parts
            return self.bytes * (g - 1)
        return self.bytes if self.kind == "collective-permute" else self.bytes * (g - 1) / g


def _group(line: str) -> int:
    """Read how many devices take part together, from one of the three notations of XLA.

    {{0,1},{2,3}}; groups times members, [2,4]<=[8]; axes of a mesh, mesh['a'=2,'b'=4] {'b'}.
    """
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if "replica_groups={}" in line or "source_target_pairs" in line or "replica_groups" not in line:
        return 1
    raise ValueError(f"replica groups in a notation unknown here: {line}")


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
        found.append(Call(kind, shapes, total, _group(line)))
    return found


def collectives(text: str) -> list[Call]:
    return [call for call in calls(text) if call.kind in KINDS]


def decompositions(text: str) -> list[Call]:
    """Return the calls of LAPACK and its like: QR, SVD, eigenvalues, Cholesky."""
    return [call for call in calls(text) if re.match(r"lapack_|cusolver|Qr|Eigh|Chol", call.kind)]
