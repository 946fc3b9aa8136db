"""Pictures of matrices and their spectra; each returns matplotlib Axes and shows nothing.

Every function draws into ``ax``, or into a new figure, and returns the Axes to change at will::

    ax = jaxsvd.plot.spectrum({"before": W0, "after": W1}, kind="energy")
    ax.figure.savefig("energy.png")

Data are arrays that hold numbers: a picture of a traced one is refused. matplotlib is imported when
the first picture is drawn; ``pip install "jaxsvd[demo]"`` installs it. No setting of matplotlib
changes for the pictures of others; `style` lends this one to them.
"""

from .geometry import ellipse as ellipse
from .geometry import subspaces as subspaces
from .images import low_rank_images as low_rank_images
from .images import singular_vectors as singular_vectors
from .maps import gap_map as gap_map
from .maps import report as report
from .spectra import spectrum as spectrum
from .spectra import spectrum_history as spectrum_history
from .style import PALETTE as PALETTE
from .style import style as style

__all__ = [
    "PALETTE",
    "ellipse",
    "gap_map",
    "low_rank_images",
    "report",
    "singular_vectors",
    "spectrum",
    "spectrum_history",
    "style",
    "subspaces",
]
