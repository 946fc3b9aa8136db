"""What `safe` replaced, where, and by which rule."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax

_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MEANING = {
    "spectral_map": "U f(S) Vh, right at every tie",
    "hermitian_map": "Q f(w) Q^H, right at every tie",
    "spectral_sum": "sum f(s), second order too",
    "hermitian_sum": "sum f(w), second order too",
    "core_svd": "U f(S) U^H, V f(S) V^H, or a part of the spectrum: right at ties inside it",
    "core_eigh": "a part of the spectrum: right at ties inside it",
    "values": "single values: right where they are distinct, sums over ties to first order",
    "masked": "raw vectors: right where values are distinct, and at ties for losses that do not "
    "tell the tied vectors apart",
    "constant": "never differentiated",
    "left": "as it was",
}


@dataclasses.dataclass(frozen=True)
class Replacement:
    """One decomposition, or one thing made of it, and the rule of its derivative.

    Attributes:
        primitive: "svd" or "eigh", or what was left as it was.
        rule: a key of `jaxsvd.foreign.report.MEANING`.
        shape: of the decomposed matrix; () where it is not known.
        at: line of the decomposition, "file:line (function)".
        used_at: line where the pattern ends, or a raw output is used.
        inside: what it is nested in, outermost first: "jit svd", "scan", ...
        note: why something was left.
    """

    primitive: str
    rule: str
    shape: tuple[int, ...]
    at: str
    used_at: str = ""
    inside: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        inside = f" in {' > '.join(self.inside)}" if self.inside else ""
        used = f", used at {self.used_at}" if self.used_at else ""
        note = self.note or MEANING[self.rule]
        return f"{self.primitive} {shape} at {self.at}{inside}{used}: {self.rule} ({note})"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SafeReport:
    """What `safe` did to a function; printed, a line for each replacement.

    It is a pytree without leaves, so that it passes through `jit`, `vmap` and `grad(has_aux=True)`.

    Attributes:
        replacements: in the order of the program.
    """

    replacements: tuple[Replacement, ...]

    def rules(self) -> tuple[str, ...]:
        """Return the rule of each replacement."""
        return tuple(replacement.rule for replacement in self.replacements)

    def __str__(self) -> str:
        return "\n".join(map(str, self.replacements)) or "no svd or eigh in this function"


def place(eqn: Any) -> str:
    """Return the line outside JAX that an equation comes from, "" if there is none."""
    traceback = getattr(eqn.source_info, "traceback", None)
    frames: Iterable[Any] = traceback.frames if traceback is not None else ()
    for frame in frames:
        name = os.path.abspath(frame.file_name)
        if not name.startswith((_JAX + os.sep, _HERE + os.sep)) and os.path.exists(name):
            short = os.sep.join(name.split(os.sep)[-2:])
            return f"{short}:{frame.line_num} ({frame.function_name})"
    return ""


def _debug_info(eqn: Any) -> Any:
    body = getattr(eqn.params.get("call_jaxpr"), "jaxpr", None)
    return getattr(body, "debug_info", None)


def is_of_jax(eqn: Any) -> bool:
    """Return whether the function that an equation calls is defined in JAX."""
    return _JAX + os.sep in str(getattr(_debug_info(eqn), "func_src_info", ""))


class Log:
    """Collects replacements while a function is evaluated."""

    def __init__(self):
        self.rows: list[Replacement] = []
        self.opened: list[Replacement] = []
        self.inside: tuple[str, ...] = ()
        self.called_at = "unknown"

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Give rows the name of what their equations are nested in."""
        outside, self.inside = self.inside, (*self.inside, name)
        try:
            yield
        finally:
            self.inside = outside

    @contextlib.contextmanager
    def at(self, eqn: Any) -> Iterator[None]:
        """Give rows the line of an equation; inside JAX there are none, then that around it."""
        outside, self.called_at = self.called_at, place(eqn) or self.called_at
        try:
            yield
        finally:
            self.called_at = outside

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Forget the rows."""
        rows, self.rows = self.rows, []
        try:
            yield
        finally:
            self.rows = rows

    def open(self, eqn: Any, shape: tuple[int, ...]) -> int:
        """Enter a decomposition and return its index."""
        name = eqn.primitive.name
        row = Replacement(name, "constant", shape, self.called_at, inside=self.inside)
        self.opened.append(row)
        return len(self.opened) - 1

    def row(self, index: int, rule: str, eqn: Any) -> None:
        """Note that a rule serves a decomposition, at an equation or as a result (None)."""
        opened = self.opened[index]
        used_at = "" if eqn is None or self.called_at == opened.at else self.called_at
        self.rows.append(dataclasses.replace(opened, rule=rule, used_at=used_at))

    def leave(self, eqn: Any, why: str) -> None:
        """Note that an equation is left as it is."""
        named = getattr(_debug_info(eqn), "func_name", None)
        name = str(eqn.params.get("name") or named or eqn.primitive.name)
        self.rows.append(
            Replacement(name, "left", (), self.called_at, inside=self.inside, note=why)
        )

    def report(self) -> SafeReport:
        """Return what was replaced; decompositions that nothing depends on, too."""
        used = {(row.at, row.inside, row.shape) for row in self.rows}
        rest = [row for row in self.opened if (row.at, row.inside, row.shape) not in used]
        return SafeReport(tuple(dict.fromkeys([*self.rows, *rest])))
