"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tinytl")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "unknown"
