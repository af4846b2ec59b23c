"""What can go wrong. Every message names the layer, key or file, what was expected and found, and what to do next."""

__all__ = [
    "FileError",
    "FormatError",
    "InfeasibleError",
    "InvalidInputError",
    "OtherModelError",
    "PruneCoreError",
    "PruneCoreWarning",
    "ResumeError",
    "UnknownLayerError",
]


class PruneCoreError(Exception):
    """Any failure of this package, apart from exceptions of functions that were handed to it."""


class InvalidInputError(PruneCoreError, ValueError):
    """A value outside its range, a list of the wrong length, a number that is not finite, ..."""


class UnknownLayerError(PruneCoreError, LookupError):
    """A layer that the table or the model does not have; the message names the most similar one."""


class InfeasibleError(PruneCoreError):
    """No set of layers meets the limits, or none was found in the time given."""


class OtherModelError(PruneCoreError):
    """Scores or a plan that were made for another model, or for another choice of layers."""


class ResumeError(PruneCoreError):
    """Earlier results that do not belong to the run that would go on from them."""


class FormatError(PruneCoreError, ValueError):
    """A file that is damaged, of another format, or of a version that is not known."""


class FileError(PruneCoreError, OSError):
    """A file that cannot be read or written."""


class PruneCoreWarning(UserWarning):
    """Something that may not be what was meant, though it works."""
