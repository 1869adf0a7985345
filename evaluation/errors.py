"""The exceptions that mean: what was handed in is wrong, and this line says what to do about it."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one line for the user: what is wrong, what was got, what was expected, and the cure.
    """


class GroundTruthError(InputError):
    """Reference data that cannot be used.

    The message may name reference files and values: it is for the organiser, never for a participant.
    """


class SubmissionError(InputError):
    """A submission that cannot be judged. The message tells a participant nothing about the reference."""


class WorkerError(InputError):
    """A scan whose process died or had too little memory. The message names the scan as its caller does."""
