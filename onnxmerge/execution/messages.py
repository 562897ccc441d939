"""ONNX Runtime's messages as one line that a user can read."""

from __future__ import annotations

import re

LONGEST_MESSAGE = 400  # characters

# What ONNX Runtime puts around the reason: error codes, source files, signatures.
_NOISE = (
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ",
    r"Non-zero status code returned while running ",
    r"Status Message: ",
    r"/onnxruntime_src/\S+:\d+ (?:.*? was false\.)?",
    r"\S+\.(?:cc|h):\d+ \S*",
    r"onnxruntime::[\w:]+\([^)]*\)(?: const)?",
    r"This is an invalid model\. ",
    r"Please fix either the inputs/outputs or the model\.",
    r"Name:'' ",
)


def runtime_message(error: BaseException) -> str:
    """An exception's text without source files, signatures and line breaks; its type where nothing is left."""
    text = " ".join(str(error).split())
    for noise in _NOISE:
        text = re.sub(noise, "", text)
    text = " ".join(text.split()).strip(" .")
    return (text[:LONGEST_MESSAGE] + "...") if len(text) > LONGEST_MESSAGE else text or type(error).__name__
