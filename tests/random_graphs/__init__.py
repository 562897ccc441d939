"""Random valid ONNX models: every operator of the program's table, opsets 7 to 25, in combinations that exports have.

`generate(seed)` gives a model and its inputs. `faults.py` says what the program does wrong with it, against `masked_oracle.py`.
"""

from .generate import Generated, generate

__all__ = ["Generated", "generate"]
