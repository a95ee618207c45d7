"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message is one line that names the thing."""
