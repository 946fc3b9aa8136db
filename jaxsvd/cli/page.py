"""A page that needs nothing else: tables and charts as inline SVG, no script, no network."""

import html
from collections.abc import Sequence

import numpy as np

from ..plot.data import energy
from ..plot.style import BLUE, PALETTE

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem;
  padding: 0 1rem; color: #1c1c1c; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .6rem; text-align: right; }
th { border-bottom: 1px solid #888; } td { border-bottom: 1px solid #ddd; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
td { font-variant-numeric: tabular-nums; } svg text { font: 11px system-ui, sans-serif; }
"""

FLOOR = 1e-6  # values below it, relative to the largest, are drawn on the lowest line
_WIDTH, _HEIGHT, _LEFT, _BELOW = 560, 300, 46, 40


def _path(x: np.ndarray, y: np.ndarray, width: float, height: float) -> str:
    """Return points of [0, 1]^2 as an SVG path, y upwards; of a long curve every so-manieth."""
    step = max(1, len(x) // 256)
    keep = np.unique(np.append(np.arange(0, len(x), step), len(x) - 1))
    points = [f"{width * a:.1f},{height * (1 - b):.1f}" for a, b in zip(x[keep], y[keep])]  # noqa: B905
    return "M" + " L".join(points)


def _heights(s: np.ndarray) -> np.ndarray:
    """Return s / s_1 on a logarithmic scale, FLOOR at 0 and 1 at 1."""
    return 1 - np.log10(np.maximum(s / s[0], FLOOR)) / np.log10(FLOOR)


def _chart(
    title: str, across: str, ticks: Sequence[tuple[float, str]], curves: Sequence[tuple[str, str]]
) -> str:
    """Return a chart of named paths over the unit square, x a share in percent."""
    lines = [
        f'<svg role="img" aria-label="{html.escape(title)}" width="{_WIDTH + _LEFT + 10}" '
        f'height="{_HEIGHT + _BELOW + 10}"><g transform="translate({_LEFT},10)">'
    ]
    for height, text in ticks:
        y = _HEIGHT * (1 - height)
        lines.append(f'<path d="M0,{y:.1f} H{_WIDTH}" stroke="#ddd"/>')
        lines.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for share in (0, 25, 50, 75, 100):
        x = _WIDTH * share / 100
        lines.append(f'<text x="{x:.0f}" y="{_HEIGHT + 16}" text-anchor="middle">{share} %</text>')
    lines.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{across}</text>')
    for i, (name, path) in enumerate(curves):
        colour = PALETTE[i % len(PALETTE)]
        lines.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.75">'
            f"<title>{html.escape(name)}</title></path>"
        )
    return "".join([*lines, "</g></svg>"])


def _spark(s: np.ndarray) -> str:
    if not s.size or not s[0] > 0:
        return ""
    path = _path(np.linspace(0, 1, s.size), _heights(s), 120, 22)
    return f'<svg width="122" height="24"><path d="{path}" fill="none" stroke="{BLUE}"/></svg>'


def of_report(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    spectra: Sequence[np.ndarray],
    notes: Sequence[str],
) -> str:
    """Return the page of `report`: two charts of all spectra, and the table with one in each row.

    Args:
        title: the name of the file.
        header: of the table.
        rows: cells of the table; the first is the name of the matrix.
        spectra: singular values of each, descending; empty where there are none.
        notes: sentences below the title.
    """
    drawn = [(row[0], s) for row, s in zip(rows, spectra, strict=True) if s.size and s[0] > 0]
    values, energies = [], []
    for name, s in drawn:
        shares = np.arange(1, s.size + 1) / s.size
        values.append((name, _path(shares, _heights(s), _WIDTH, _HEIGHT)))
        energies.append((name, _path(shares, energy(s), _WIDTH, _HEIGHT)))
    decades = [(1 - i / 6, f"1e-{i}" if i else "1") for i in range(7)]
    percents = [(i / 4, f"{25 * i} %") for i in range(5)]
    across = "index by min(m, n)"
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in [*header, "s_i / s_1"])
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}<td>{_spark(s)}</td></tr>"
        for row, s in zip(rows, spectra, strict=True)
    )
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Singular values of {html.escape(title)}</h1>",
            *(f"<p>{html.escape(note)}</p>" for note in notes),
            "<h2>Singular values, s_i / s_1</h2>",
            _chart("singular values of each matrix", across, decades, values),
            "<h2>Energy of the leading ones</h2>",
            _chart("share of the energy of each matrix", across, percents, energies),
            "<h2>Matrices</h2>",
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            "<p>stable: |W|_F^2 / s_1^2. effective: exp of the entropy of s_i / sum s_j. 90 %, "
            "99 %: the rank that holds that share of sum s_i^2; 99 % in: what its factors hold "
            "by what the matrix does, dense where that is more.</p>",
            "</body></html>\n",
        ]
    )
