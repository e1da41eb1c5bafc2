"""The error that a user can mend."""

import sys

from recloom.data_shards.secrets import redacted


class UserError(ValueError):
    """Bad input, told in one sentence: field, value, rule, remedy. The commands print it and exit with 2."""


def print_error(sentence: object) -> None:
    """To standard error as one write with its newline: ranks share the stream, unbuffered."""
    sys.stderr.write(redacted(f"{sentence}\n"))
    sys.stderr.flush()
