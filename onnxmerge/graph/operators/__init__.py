"""How each ONNX operator treats channels: one row of `table.py` for each operator, one small function for each kind of row.

A *propagation rule* says which channel ids come out of a node. An *edit rule* says what becomes of channel counts and positions
that a node holds (the shape of a Reshape, the bounds of a Slice) once channels are removed.
"""
