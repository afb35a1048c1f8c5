"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """A bad input: the message is one line that names the value and the fix.

    Commands print it without a traceback and exit with code 2. Library code raises it for
    anything that depends on what the user gave: paths, files, settings, prompts.
    """
