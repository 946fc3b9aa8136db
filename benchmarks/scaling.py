"""What a step costs on many devices: operations and bytes of the compiled programs themselves.

    python -m benchmarks.scaling            writes benchmarks/scaling.md

Nothing is run: the step of subspace iteration (Z = A^H U with A V = U S, both bases orthonormalized
twice) is compiled for meshes of up to 512 virtual devices, for matrices that no machine here holds,
and its collectives and operations are counted. Times of virtual devices, which share the cores of
one machine, would say nothing.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

DEVICES = 512
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from jaxsvd.algorithms import subspace  # noqa: E402
from jaxsvd.operators import Dense  # noqa: E402

from .hlo import collectives, decompositions  # noqa: E402

P = PartitionSpec
COLUMNS = 64
ITEM = 4  # float32

MATRICES = ((10**5, 10**4), (10**6, 10**5), (10**8, 10**5), (10**9, 10**6))
SIZES = (1, 8, 64, 512)

# Machines as flop/s in float32 and bytes/s that a device sends; round numbers, to be replaced.
MACHINES = {
    "GPU, NVLink": (50e12, 400e9),
    "GPU, network": (50e12, 50e9),
    "CPU node, network": (2e12, 12.5e9),
}


class Step(NamedTuple):
    """One compiled step.

    Attributes:
        m: rows of A.
        n: columns of A.
        rows: devices along the rows.
        columns: devices along the columns.
        flops: of one device.
        sent: bytes that one device sends.
        held: bytes of A on one device.
        temporary: further bytes on one device.
        kinds: collectives of the program, by kind.
    """

    m: int
    n: int
    rows: int
    columns: int
    flops: float
    sent: float
    held: int
    temporary: int
    kinds: dict[str, int]

    @property
    def devices(self) -> int:
        return self.rows * self.columns

    @property
    def model_flops(self) -> float:
        """Two products with A; the SVD's two products; two passes of CholeskyQR on each side."""
        m, n, l = self.m / self.rows, self.n / self.columns, COLUMNS
        return 4 * m * n * l + 2 * (m + n) * l * l + 2 * 2 * 2 * (m + n) * l * l

    @property
    def model_sent(self) -> float:
        """A sum over the columns of A V, one over the rows of A^H U; l x l sums left out."""
        return sent(self.m, self.n, self.rows, self.columns)


def sent(m: float, n: float, rows: int, columns: int) -> float:
    """Return the bytes a device sends for the two sums of a step on a mesh (rows, columns)."""
    ring = lambda g: 2 * (g - 1) / g  # noqa: E731
    return ITEM * COLUMNS * (ring(columns) * m / rows + ring(rows) * n / columns)


def best_mesh(m: int, n: int, devices: int) -> tuple[int, int]:
    """Return the mesh (rows, columns) that sends least."""
    splits = [(r, devices // r) for r in (2**i for i in range(devices.bit_length()))]
    return min((s for s in splits if math.prod(s) == devices), key=lambda s: sent(m, n, *s))


def compiled_step(m: int, n: int, rows: int, columns: int) -> Step:
    """Compile a step for A (m, n) on a mesh, and count."""
    devices = np.asarray(jax.devices()[: rows * columns]).reshape(rows, columns)
    mesh = Mesh(devices, ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    m, n = rows * -(-m // rows), columns * -(-n // columns)

    def shape(*size, spec=P(), dtype=jnp.float32):  # noqa: B008
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec))

    l = COLUMNS
    state = subspace.State(
        U=shape(m, l, spec=P("i")),
        S=shape(l),
        V=shape(n, l, spec=P("j")),
        next=shape(n, l, spec=P("j")),
        residuals=shape(l),
        iteration=shape(dtype=jnp.int32),
    )
    step = jax.jit(lambda a, state: subspace.step(Dense(a), state), donate_argnums=1)
    program = step.lower(shape(m, n, spec=P("i", "j")), state).compile()
    text = program.as_text()
    for call in collectives(text):
        assert call.kind == "all-reduce", call
    for call in decompositions(text):
        assert call.longest <= l, call
    calls = collectives(text)
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return Step(
        m=m,
        n=n,
        rows=rows,
        columns=columns,
        flops=cost["flops"],
        sent=sum(call.sent for call in calls),
        held=ITEM * m * n // (rows * columns),
        temporary=memory.temp_size_in_bytes,
        kinds={call.kind: sum(c.kind == call.kind for c in calls) for call in calls},
    )


def power(x: float) -> str:
    """Return a number with two digits, such as 1.2e5; 1e5 for a power of ten."""
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if x else "0"


def bytes_of(x: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    which = min(int(math.log10(max(x, 1)) / 3), len(units) - 1)
    return f"{x / 1000**which:.3g} {units[which]}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def line(step: Step) -> list[str]:
    return [
        f"{power(step.m)} x {power(step.n)}",
        f"{step.devices} ({step.rows} x {step.columns})",
        bytes_of(step.held),
        bytes_of(step.temporary),
        power(step.flops),
        bytes_of(step.sent),
        power(step.flops / step.sent) if step.sent else "-",
        str(sum(step.kinds.values())),
    ]


HEAD = [
    "matrix",
    "devices (mesh)",
    "A each",
    "other memory each",
    "flop each",
    "sent each",
    "flop per byte",
    "sums",
]


def growth(steps: list[Step], *, weak: bool) -> str:
    """The share of one device's operations that p devices do usefully, and what they send."""
    rows = []
    for step in steps:
        work = step.flops if weak else step.flops * step.devices
        useful = steps[0].flops / work
        rows.append([*line(step)[:2], power(step.flops), f"{useful:.1%}", bytes_of(step.sent)])
    return table([*HEAD[:2], "flop each", "useful", "sent each"], rows)


def crossing(m: int, n: int, flops: float, link: float) -> tuple[str, str]:
    """The first power of two of devices at which sending takes longer than arithmetic."""
    for exponent in range(31):
        devices = 2**exponent
        rows, columns = best_mesh(m, n, devices)
        step = Step(m, n, rows, columns, 0, 0, 0, 0, {})
        if step.model_sent / link > step.model_flops / flops:
            return f"{devices:,}", f"{rows:,} x {columns:,}"
    return "beyond 1e9", "-"


def report() -> str:
    steps = [compiled_step(m, n, *best_mesh(m, n, p)) for m, n in MATRICES for p in SIZES]
    square = [compiled_step(10**6, 10**6, *best_mesh(10**6, 10**6, p)) for p in SIZES]
    strong = [compiled_step(10**5, 10**4, p, 1) for p in (1, 2, 4, 8)]
    weak = [compiled_step(10**5 * p, 10**4, p, 1) for p in (1, 2, 4, 8)]
    several = [s for s in (*steps, *square) if s.devices > 1]
    flops = [s.flops / s.model_flops for s in (*steps, *square)]
    bytes_ = [s.sent / s.model_sent for s in several]
    crossings = [
        [name, f"{power(m)} x {power(n)}", *crossing(m, n, *machine)]
        for name, machine in MACHINES.items()
        for m, n in (*MATRICES, (10**6, 10**6))
    ]
    machines = "".join(
        f"\n- {name}: {power(f)} flop/s, {power(b)} bytes/s" for name, (f, b) in MACHINES.items()
    )
    return f"""# What a step costs on many devices

Written by `python -m benchmarks.scaling` (jax {jax.__version__}). Nothing was run or timed: one
step of the truncated SVD, Z = A^H U with A V = U S, {COLUMNS} columns, float32, both bases
orthonormalized by two passes of shifted CholeskyQR, was compiled for each mesh, and the operations
(`cost_analysis`) and collectives (the compiled HLO) of one device counted. A is sharded by rows and
columns over the mesh that sends least. A sum over g devices sends 2 (g - 1)/g times its size from
each (ring). There is no other collective in any of these programs: nothing is gathered.

## From 1e5 x 1e4 to 1e9 x 1e6

{table(HEAD, [line(s) for s in (*steps, *square)])}

A device does 4 m n l / p operations in the products and 10 (m + n) l^2 in the rest (counted there:
{min(flops):.2f} to {max(flops):.2f} times the formula), and sends, on a mesh of r x c devices,

    4 l ( 2 (c - 1)/c m/r + 2 (r - 1)/r n/c ) bytes

(counted: {min(bytes_):.2f} to {max(bytes_):.2f} times), besides a few sums of l x l numbers. By
rows alone (c = 1) that is the block of n x l, whatever the number of devices; on meshes shaped like
the matrix it falls with the root of their number. A run to a tolerance takes some 5 to 50 such
steps, a gradient as many again; `randomized_svd` with q power iterations takes q + 1.

## Strong scaling: one matrix, more devices

{growth(strong, weak=False)}

## Weak scaling: rows grow with the devices

{growth(weak, weak=True)}

What is not useful is work on blocks of V, repeated on every device of a row-sharded matrix:
10 n l^2 operations. On a mesh with columns they are shared out too.

## Where communication overtakes arithmetic

The first power of two of devices at which sending takes longer than the operations, by the two
formulas, sums not overlapped. Assumed, not measured:
{machines}

{table(["machine", "matrix", "devices", "mesh"], crossings)}

Before that, memory decides: A itself at 80 GB a device needs 1 device for 1e5 x 1e4, 5 for
1e6 x 1e5, 500 for 1e8 x 1e5 and 50,000 for 1e9 x 1e6: fewer than in every line of
the table. Each byte of A that a product reads serves {COLUMNS // 2} operations;
a memory of 3e12 bytes/s feeds 1e14 flop/s, more than assumed above.
"""


def main() -> None:
    path = Path(__file__).parent / "scaling.md"
    path.write_text(report())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
