"""Check the record in our own checkpoint: another version, or anybody, may have written it."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tinytl.errors import UserError
from tinytl.methods import METHODS
from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.weights.own_checkpoints import OwnRecord

Record = TypeVar("Record")


def check_record(plain: Any, source: str) -> OwnRecord:
    """Return the record as an object. Raises UserError naming a field that is missing, unknown or wrong."""
    plain = _mapping(plain, "", source)
    spec = _mapping(plain.get("spec"), "spec.", source)
    if spec.get("lite_residual") is not None:
        lite = _mapping(spec["lite_residual"], "spec.lite_residual.", source)
        spec["lite_residual"] = make_checked(LiteResidualConfig, lite, "spec.lite_residual.", source)
    plain["spec"] = make_checked(NetworkSpec, spec, "spec.", source)
    record = make_checked(OwnRecord, plain, "", source)
    if record.method not in METHODS:
        raise _refusal(source, f"method={record.method} is not known here")
    check_statistics({name: getattr(record, name) for name in ("mean", "std")}, source)
    return record


def check_statistics(plain: Any, source: str) -> dict[str, list[float]]:
    """Return the mean and standard deviation of images, where given: three numbers each.

    Raises UserError for values that cannot be right.
    """
    given = {key: value for key, value in _mapping(plain, "", source).items() if value is not None}
    for name, values in given.items():
        fits = name in ("mean", "std") and _has_type(values, list[float]) and len(values) == 3
        if not fits or (name == "std" and min(values) <= 0):
            raise _refusal(source, f"{name}={values!r:.60} cannot be right")
    return given


def _mapping(value: Any, where: str, source: str) -> dict[str, Any]:
    """A copy of a mapping. Raises UserError where it is none; `where` is the dotted path that leads to it."""
    if not isinstance(value, Mapping):
        raise _refusal(source, f"it has no {where.rstrip('.') or 'fields'}")
    return {str(key): item for key, item in value.items()}


def make_checked(record: type[Record], plain: dict[str, Any], where: str, source: str) -> Record:
    """Make an object of the dataclass `record` from a mapping with its fields and no others."""
    hints = get_type_hints(record)
    for name in plain:
        if name not in hints:
            raise _refusal(source, f"{where}{name} is not known here")
    for field in fields(record):  # type: ignore[arg-type]
        if field.name not in plain and field.default is MISSING:
            raise _refusal(source, f"{where}{field.name} is missing")
    for name, value in plain.items():
        if not _has_type(value, hints[name]):
            raise _refusal(source, f"{where}{name}={value!r:.60} cannot be right")
    return record(**plain)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type: a class, a union, a list, or some literals."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if kind is Literal:
        return value in arguments
    if kind is dict:
        return isinstance(value, dict) and all(
            _has_type(key, arguments[0]) and _has_type(item, arguments[1]) for key, item in value.items()
        )
    if kind is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)


def _refusal(source: str, reason: str) -> UserError:
    return UserError(f"checkpoint={source}: its record is damaged or of another version of tinytl: {reason}")
