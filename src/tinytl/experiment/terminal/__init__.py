"""The edge between user and program: arguments, help, errors in one line."""
