"""What synthetic inputs are called in reports, and which values were assumed for them."""

from collections.abc import Sequence

IMAGE_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
LONGEST_IMAGE = 16
"""Long side over short side above which a plane is a recording and no image: a line of text has 7, 22 electrodes times a
thousand steps have 45."""
MADE_OF = {
    "images": "overlapping shapes",
    "maps": "overlapping shapes",
    "signals": "steps and noise",
    "volumes": "overlapping shapes",
    "sounds": "noise of many loudnesses",
    "noise": "",
}
"""Kind of float inputs -> what is in them."""


def channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape looks like NHWC: the last axis has 1, 3 or 4 channels and axis 1 has not."""
    return len(shape) >= 3 and shape[-1] in IMAGE_CHANNELS and shape[1] not in IMAGE_CHANNELS


def kind_of(shape: Sequence[int]) -> str:
    """Images, maps of features, signals or volumes, by a shape with a batch, channels and 1 to 3 other axes."""
    extents, channels = (shape[1:-1], shape[-1]) if channels_last(shape) else (shape[2:], shape[1])
    if len(extents) != 2:
        return "signals" if len(extents) == 1 else "volumes"
    if max(extents) > LONGEST_IMAGE * min(extents):
        return "signals"
    return "images" if channels in IMAGE_CHANNELS else "maps"


def described(kind: str, values: str = "", cure: str = "`calibration` gives others") -> str:
    """What was made up, and how others are had: "synthetic images (overlapping shapes), range 0 to 1".

    Parameters
    ----------
    kind : str
        One of `MADE_OF`.
    values : str
        Which values they have; empty for a mean of 0 and a standard deviation of 1, which is an assumption.
    cure : str
        How a user gives others than the assumed ones.
    """
    made_of = f" ({MADE_OF[kind]})" if MADE_OF[kind] else ""
    return f"synthetic {kind}{made_of}, {values or f'mean 0 and standard deviation 1 assumed: {cure}'}"
