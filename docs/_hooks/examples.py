"""The heading `Example:` of our docstrings, which the parser knows in the plural only."""

import re

import griffe


class Examples(griffe.Extension):
    """Reads `Example:` as a section of examples, so that sessions are shown as code."""

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
