"""The one exception that means: this cannot go on, and this line says what to do about it."""


class InputError(ValueError):
    """Input or an account that cannot be used.

    The message is one line for the user: what is wrong, what was got, what was expected, and the cure.
    """
