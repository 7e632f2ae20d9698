"""The portability matrix as a page of its own."""

from __future__ import annotations

from collections import Counter

from farthing.anatomy import Matrix
from farthing.forge.report.inside import WORDS, portability
from farthing.page.frame import plain_page
from farthing.page.typeset import count, element, section


def render_matrix(matrix: Matrix) -> str:
    """The matrix as HTML text that needs and loads nothing else."""
    verdict = (
        f"{count(len(matrix.models), 'model')} in {count(len(matrix.engines), 'engine')}: {tally(matrix)}."
    )
    where = section("where", "Machine", element("p", matrix.machine))
    return plain_page("Portability", "Farthing", verdict, portability(matrix), where)


def tally(matrix: Matrix) -> str:
    """How many cells have which verdict, as in ``3 equal, 1 refused``."""
    counts = Counter(WORDS[cell.verdict][0] for cell in matrix.cells)
    return ", ".join(f"{amount} {word}" for word, amount in counts.items())
