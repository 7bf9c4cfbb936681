"""What a command cannot do, in a sentence for the user."""


class Failure(Exception):
    """The message says what happened and what to do. The command exits with 1."""
