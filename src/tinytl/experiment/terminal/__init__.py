"""What stands between a person and a program: arguments, errors in one line."""
