"""Which layers are too wide for statistics of their inputs, known before any is taken: their groups are pruned by weights."""

from collections.abc import Iterable

from onnxmerge.graph.layers import Layer

WIDEST = 1 << 15
"""Most channels of a consumer: an elimination of twice as many takes eight times as long, 8,192 take a minute."""

MEMORY_SHARE = 0.75
"""Of the memory of the machine, what statistics may take; the model and its tensors need the rest."""

HELD_BYTES, WORKING_BYTES = 4, 20
"""For each pair of channels: a float32 covariance that is held, and two float64 matrices and copies of parts of them at work."""


def too_wide(layers: Iterable[Layer], memory_bytes: int) -> dict[str, str]:
    """By key of each consumer that is left out, the reason in words. The narrowest come first.

    Parameters
    ----------
    layers : iterable of Layer
        All consumers.
    memory_bytes : int
        Memory of the machine.
    """
    allowed, held = MEMORY_SHARE * memory_bytes, 0
    known: set[tuple[str, bytes]] = set()
    reasons: dict[str, str] = {}
    for layer in sorted(layers, key=lambda each: len(each.channel_positions)):
        count, same = len(layer.channel_positions), (layer.source, layer.channel_positions.tobytes())
        if same in known:
            continue
        needed = held + (HELD_BYTES + WORKING_BYTES) * count**2
        if count > WIDEST:
            reasons[layer.key] = (
                f"pruned by its weights: statistics of {count:,} channels are not taken, only of up to {WIDEST:,}"
            )
        elif needed > allowed:
            sizes = f"would take {needed / 1e9:.1f} GB, and {allowed / 1e9:.1f} GB of this machine are for them"
            reasons[layer.key] = f"pruned by its weights: statistics of its {count:,} channels {sizes}"
        else:
            known.add(same)
            held += HELD_BYTES * count**2
    return reasons
