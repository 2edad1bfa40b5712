"""Errors that are shown to the user, and the base class of all of them."""


class EmopipeError(Exception):
    """A problem the user can solve: its text names the file or argument and the way out."""


class CheckpointError(EmopipeError):
    """A checkpoint that cannot be read, or is not an EmoNet."""


class EvaluationError(EmopipeError):
    """Data, options and models that do not fit together."""


class TrainingError(EmopipeError):
    """Training that cannot be done, or cannot be resumed, as asked for."""
