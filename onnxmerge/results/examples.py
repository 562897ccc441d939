"""Single inputs worth a look."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ExampleInput:
    """One of the inputs on which outputs were compared.

    Attributes
    ----------
    which : str
        "worst" or "median": the input with the largest or the median relative L2 error of the worst output.
    name : str
        Name of its file, or "no. 17": its index, from 0, among all inputs that were given or made.
    relative_l2 : float
        Its |y - y'| / |y| in the worst output.
    picture : str
        The input as a small PNG image in base64, pixels scaled to its least and largest value; empty where the model takes no
        images. Left out in JSON.
    """

    which: str
    name: str
    relative_l2: float
    picture: str = field(default="", repr=False)
