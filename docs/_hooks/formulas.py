"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def _mathml(text: str, display: str, page: str) -> str:
    try:
        return convert(html.unescape(text).strip(), display=display)
    except Exception as error:
        raise ValueError(f"{page}: no formula: {text!r} ({error!r})") from error


def rendered(content: str, page: str) -> str:
    """Return the HTML of a page with its LaTeX turned into MathML."""
    content = DISPLAY.sub(
        lambda m: f'<div class="formula">{_mathml(m[1], "block", page)}</div>', content
    )
    return INLINE.sub(lambda m: _mathml(m[1], "inline", page), content)
