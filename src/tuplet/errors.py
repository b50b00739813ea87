"""The one kind of error that its user can mend."""


class InputError(ValueError):
    """Something given to tuplet cannot be used: the message says what was got, what is wanted, what to do.

    The command line prints its message as one line and exits with 2; any other exception is a defect of ours
    and keeps its traceback.
    """

    one_rank_only = False
    """Whether one rank of a distributed run may meet this error alone, and so has to say it itself."""
