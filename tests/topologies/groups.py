"""Depthwise and grouped convolutions, channel shuffle, transposed convolutions."""

from .net import Net
from .table import row


@row("depthwise", {"conv_a": 8}, False, multiplier=1)
@row("depthwise-multiplier-2", {"conv_a": 8}, False, multiplier=2)
def depthwise(net: Net, x: str, multiplier: int) -> None:
    """One kernel a channel: the channels of `conv_a` are the channels of `depthwise` (times the multiplier)."""
    y = net.relu(net.conv(x, "conv_a", 3, 8, 1))
    weight = net.const("depthwise_w", net.he((8 * multiplier, 1, 3, 3), 9))
    y = net.relu(net.conv(y, "depthwise", 8, 8 * multiplier, group=8, weight=weight))
    net.output(net.conv(y, "out", 8 * multiplier, 4, 1), 4, 8, 8)


@row("depthwise-on-input", {"conv_a": 8}, True)
def depthwise_on_input(net: Net, x: str) -> None:
    """The depthwise convolution reads the graph input and keeps its three channels."""
    y = net.conv(net.conv(x, "depthwise", 3, 3, group=3), "conv_a", 3, 8, 1)
    net.output(net.conv(net.relu(y), "out", 8, 4, 1), 4, 8, 8)


@row("inverted-residual", {"stem": 6, "expand": 12, "project": 6}, None, tied=(("stem", "project"),), bn=False)
@row("inverted-residual-bn", {"stem": 6, "expand": 12, "project": 6}, None, tied=(("stem", "project"),), bn=True)
def inverted_residual(net: Net, x: str, bn: bool) -> None:
    """MobileNetV2's block without Clip: the stream has no activation, the depthwise group is no merge."""

    def conv(y: str, name: str, c_in: int, c_out: int, kernel: int = 1, group: int = 1) -> str:
        y = net.conv(y, name, c_in, c_out, kernel, group=group, bias=not bn)
        return net.batch_norm(y, f"{name}_bn", c_out) if bn else y

    stream = conv(x, "stem", 3, 6, 3)
    y = net.relu(conv(stream, "expand", 6, 12))
    y = net.relu(conv(y, "depthwise", 12, 12, 3, group=12))
    net.output(net.conv(net.op("Add", stream, conv(y, "project", 12, 6)), "out", 6, 4, 1), 4, 8, 8)


@row("grouped-conv", {"conv_a": 8, "grouped": 16}, True)
def grouped(net: Net, x: str) -> None:
    """ResNeXt: four groups, so conv_a and grouped keep equally many channels of every quarter."""
    y = net.relu(net.conv(x, "conv_a", 3, 8, 1))
    y = net.relu(net.conv(y, "grouped", 8, 16, group=4))
    net.output(net.conv(y, "out", 16, 4, 1), 4, 8, 8)


@row("resnext-block", {"stem": 12, "conv_a": 8, "grouped": 8, "conv_c": 12}, True, tied=(("stem", "conv_c"),))
def resnext(net: Net, x: str) -> None:
    stream = net.relu(net.batch_norm(net.conv(x, "stem", 3, 12, bias=False), "stem_bn", 12))
    y = net.relu(net.batch_norm(net.conv(stream, "conv_a", 12, 8, 1, bias=False), "bn_a", 8))
    y = net.relu(net.batch_norm(net.conv(y, "grouped", 8, 8, group=2, bias=False), "bn_b", 8))
    y = net.batch_norm(net.conv(y, "conv_c", 8, 12, 1, bias=False), "bn_c", 12)
    net.output(net.conv(net.relu(net.op("Add", y, stream)), "out", 12, 4, 1), 4, 8, 8)


@row("grouped-conv-then-grouped", {"conv_a": 8, "grouped_a": 8, "grouped_b": 8}, True)
def grouped_twice(net: Net, x: str) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8, 1))
    y = net.relu(net.conv(y, "grouped_a", 8, 8, group=2))
    y = net.relu(net.conv(y, "grouped_b", 8, 8, group=4))
    net.output(net.conv(y, "out", 8, 4, 1), 4, 8, 8)


@row("grouped-conv-output", {"conv_a": 8}, True)
def grouped_output(net: Net, x: str) -> None:
    """The grouped convolution writes the graph output: only its input may shrink, equally in both groups."""
    y = net.relu(net.conv(x, "conv_a", 3, 8, 1))
    net.output(net.conv(y, "out", 8, 4, group=2), 4, 8, 8)


@row("channel-shuffle", {"conv_a": 16, "grouped_a": 16, "grouped_b": 16}, True, groups=2, channels=16)
@row("channel-shuffle-uneven", {"conv_a": 12, "grouped_b": 12}, None, groups=3, channels=12, at_most={"grouped_a": 12})
def channel_shuffle(net: Net, x: str, groups: int, channels: int) -> None:
    """ShuffleNet: groups before and after; the shape constants hold channel counts.

    With two groups, grouped_a keeps equally many of each quarter (its group, and the group that reads it). With three groups
    of four, no set of rows of the (3, 4) grid leaves the next groups equal: only single channels can go, with a new order.
    """
    y = net.relu(net.conv(x, "conv_a", 3, channels, 1))
    y = net.relu(net.conv(y, "grouped_a", channels, channels, 1, group=groups))
    y = net.op("Reshape", y, net.const("apart", [-1, groups, channels // groups, 8, 8]))
    y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = net.op("Reshape", y, net.const("together", [-1, channels, 8, 8]))
    y = net.relu(net.conv(y, "grouped_b", channels, channels, group=groups))
    net.output(net.conv(y, "out", channels, 4, 1), 4, 8, 8)


@row("shuffle-v2-unit", {"stem": 12, "conv_a": 6, "conv_c": 6}, None)
def shuffle_v2(net: Net, x: str) -> None:
    """ShuffleNetV2: half of the channels pass, half are convolved (1 x 1, depthwise, 1 x 1), then the halves interleave."""
    y = net.relu(net.conv(x, "stem", 3, 12))
    passed, y = net.op("Split", y, net.const("halves", [6, 6]), outs=2, axis=1)
    y = net.relu(net.conv(y, "conv_a", 6, 6, 1))
    y = net.conv(y, "depthwise", 6, 6, group=6)
    y = net.op("Concat", passed, net.relu(net.conv(y, "conv_c", 6, 6, 1)), axis=1)
    y = net.op("Reshape", y, net.const("apart", [-1, 2, 6, 8, 8]))
    y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = net.op("Reshape", y, net.const("together", [-1, 12, 8, 8]))
    net.output(net.conv(y, "out", 12, 4, 1), 4, 8, 8)


@row("conv-transpose", {"conv_a": 8, "up": 6}, True, group=1)
@row("conv-transpose-grouped", {"conv_a": 8, "up": 6}, True, group=2)
def conv_transpose(net: Net, x: str, group: int) -> None:
    y = net.relu(net.conv(x, "conv_a", 3, 8))
    y = net.relu(net.conv_transpose(y, "up", 8, 6, group=group))
    net.output(net.conv(y, "out", 6, 4), 4, 16, 16)


@row("unet", {"down_1": 6, "down_2": 8, "up": 6, "merge": 6}, True)
def unet(net: Net, x: str) -> None:
    skip = net.relu(net.conv(x, "down_1", 3, 6))
    y = net.op("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv_transpose(net.relu(net.conv(y, "down_2", 6, 8)), "up", 8, 6)
    y = net.relu(net.conv(net.op("Concat", y, skip, axis=1), "merge", 12, 6))
    net.output(net.conv(y, "out", 6, 4, 1), 4, 8, 8)
