"""Exceptions that the command line turns into one sentence."""


class UserError(ValueError):
    """A mistake of the user's: one sentence naming the key, file or line, and the mend.

    The command line prints the sentence and exits with code 2; no traceback is shown.
    """


class RunError(RuntimeError):
    """A run that had to end for a reason which is known and said in one sentence: exit code 1."""
