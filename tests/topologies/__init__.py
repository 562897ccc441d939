"""A table of small models, one a topology, with what is true of their channels: an oracle apart from the program.

`TOPOLOGIES` holds the rows by id, one module a family; `feeds_of` makes inputs; `scaled_duplicates` prepares a model
in which half of a producer's channels are positive multiples of the other half.
"""

from . import activations, chains, formats, groups, joins, pinned, shapes, transformers
from .duplicates import Duplicates, scaled_duplicates
from .table import TABLE as TOPOLOGIES
from .table import Topology, feeds_of

__all__ = ["TOPOLOGIES", "Duplicates", "Topology", "feeds_of", "scaled_duplicates"]

FAMILIES = (chains, activations, shapes, joins, groups, pinned, formats, transformers)
