"""`python -m onnxmerge`."""

from onnxmerge.cli.app import main

main()
