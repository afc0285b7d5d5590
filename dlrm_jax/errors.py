"""The one exception that a person sees as a message instead of a traceback."""


class UserError(ValueError):
    """Input that cannot be used as given.

    The message says what was expected, what came (name, value, file and line)
    and what to do. Programs print it to stderr and exit with code 2.
    """
