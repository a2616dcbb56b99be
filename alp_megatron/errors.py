"""The one exception for a user's mistake."""


class UserError(ValueError):
    """A mistake of the user's: one sentence naming the key, file or line, and the mend.

    The command line prints the sentence and exits with code 2; no traceback is shown.
    """
