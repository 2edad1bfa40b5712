"""The one base of every error that is meant for the user's eyes."""


class EmopipeError(Exception):
    """A problem the user can act on: its text names the file or option and the way out."""


class EvaluationError(EmopipeError):
    """Data, options and models that do not go together."""
