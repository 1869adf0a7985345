"""The one exception that means: the input is wrong, and this line says what to do about it."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one line for the user: what is wrong, what was got, what was expected, and the cure. Entry points
    print it as the last line on stderr and exit with a non-zero code; it never carries a traceback.
    """


def one_line(error: BaseException) -> str:
    """What to tell the user about an error, on one line."""
    message = " ".join(str(error).split())
    if isinstance(error, InputError):
        return message
    return f"Error: {type(error).__name__}: {message}" if message else f"Error: {type(error).__name__}"
