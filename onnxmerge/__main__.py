"""`python -m onnxmerge`."""

from onnxmerge.cli import main

main()
