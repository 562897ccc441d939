"""How large a model is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Size and predicted cost of a model.

    Attributes
    ----------
    parameters : int
        Number of weights.
    macs : int
        Multiply-accumulate operations of one call on inputs of the sizes that the result names in `inputs`.
    file_bytes : int
        Bytes of the model file and its external data.
    """

    parameters: int
    macs: int
    file_bytes: int
