"""The error that a user can mend."""


class UserError(ValueError):
    """Bad input, told in one sentence: field, value, rule, remedy. The commands print it and exit with 2."""
