"""Everything a user can act on. Our own bugs stay ordinary exceptions with a traceback."""


class OnnxMergeError(Exception):
    """One clear line: what is wrong, where, what was found and needed, what to do. Exit code 2."""


class ModelError(OnnxMergeError):
    """The model file cannot be read, is not valid, or holds something that cannot be compressed."""


class OptionError(OnnxMergeError):
    """An option's value is out of range, or options contradict each other."""


class InputError(OnnxMergeError):
    """Calibration data, labels or synthetic inputs do not fit the model's inputs."""


class ProviderError(OnnxMergeError):
    """The execution provider asked for does not work here, or a session fell back to another one."""


class VerificationError(OnnxMergeError):
    """The candidate differs more from the reference than was allowed. Exit code 1, nothing written."""
