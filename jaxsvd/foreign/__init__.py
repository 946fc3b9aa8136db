"""Code that one does not own: its decompositions, with the derivatives of this library."""

from .report import Replacement as Replacement
from .report import SafeReport as SafeReport
from .wrap import safe as safe
