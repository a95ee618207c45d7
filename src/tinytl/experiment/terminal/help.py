"""The text of `--help`: groups with their options, and every knob with its default and its meaning.

It is read from the files of conf/ and sweeps/, so that nothing has to be imported or composed.
"""

import re
from collections.abc import Iterator
from pathlib import Path

CONF = Path(__file__).parents[4] / "conf"
# (group, option) of the files whose comments explain the knobs of the group.
DOCUMENTED = (
    ("data", "folder"), ("data", "table"), ("model", "proxylessnas_w03"), ("method", "tinytl"),
    ("norm", "gn"), ("engine", "lean"), ("engine", "stock"), ("trainer", "default"), ("wandb", "environment"),
)  # fmt: skip
GROUPS = ("data", "model", "method", "norm", "engine", "trainer", "wandb", "debug", "sweeps")
KNOB = re.compile(r"(?P<indent> *)(?P<key>\w+): *(?P<value>[^#\n]*?)? *(?:# *(?P<meaning>.*))?")
COLUMN = 44  # where meanings begin


def wants_help(arguments: list[str]) -> bool:
    """Whether the command line asks for help."""
    return bool({"--help", "-h"} & set(arguments))


def help_text(program: str, config: str) -> str:
    """Return what `python src/PROGRAM.py --help` prints; `config` is the name of its file in conf/."""
    knobs = knobs_of(config)
    lines = [
        f"python src/{program}.py [GROUP=OPTION] [KEY=VALUE] ...",
        f"python src/{program}.py -m [+sweeps=NAME] [GROUP=A,B] [KEY=1,2] ...    a job for every combination",
        f"python src/{program}.py [...] --cfg job                             print the whole configuration",
        "",
        "Groups and their options (conf/GROUP/OPTION.yaml):",
        *(line for group in GROUPS for line in _group(group)),
        "",
        "Knobs, as KEY=VALUE, with their defaults (of data.*: those of data=folder; data sets differ):",
        *(aligned(f"  {key}={default}", meaning) for key, (default, meaning) in knobs.items()),
    ]
    return "\n".join(lines)


def knobs_of(config: str) -> dict[str, tuple[str, str]]:
    """Return every knob by its dotted key: (default, meaning)."""
    files = [(CONF / f"{name}.yaml", "") for name in dict.fromkeys((config, "config"))]
    files += [(CONF / group / f"{option}.yaml", f"{group}.") for group, option in DOCUMENTED]
    knobs: dict[str, tuple[str, str]] = {}
    for path, above in files:
        for key, default, meaning in _knobs(path, above):
            before = knobs.get(key, (default, ""))
            knobs[key] = (before[0], before[1] or meaning)
    return knobs


def _group(group: str) -> Iterator[str]:
    """Yield a line for each option of a group: its name and the first sentence of its file."""
    name = f"+{group}=" if group == "sweeps" else f"{group}="
    for path in sorted((CONF / group).glob("*.yaml")):
        yield aligned(f"  {name}{path.stem}", _first_sentence(path.read_text(encoding="utf-8")))
    if group == "model":
        yield aligned("  model=NAME", "any other CNN, by its name in timm")


def _first_sentence(text: str) -> str:
    """The first sentence of the comment in a YAML file."""
    comment = [
        line.removeprefix("#").strip()
        for line in text.splitlines()
        if line.startswith("#") and "@" not in line
    ]
    return re.split(r"(?<=[a-z0-9)\]])[.:] |\.$|   python", " ".join(comment))[0]


def _knobs(path: Path, above: str) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default, meaning) of every knob of a file."""
    section: str | None = ""  # None: in a part of the file that holds no knobs
    for line in path.read_text(encoding="utf-8").splitlines():
        match = KNOB.fullmatch(line)
        if match is None:
            continue
        if not match["indent"]:
            opens = not match["value"] or match["value"].startswith("{")
            section = f"{match['key']}." if opens else ""
            if match["key"] in ("defaults", "hydra"):
                section = None
            if opens:
                continue
        if section is not None:
            yield f"{above}{section}{match['key']}", match["value"], match["meaning"] or ""


def aligned(left: str, right: str) -> str:
    """Align two columns; where `left` is too long for its column, `right` follows on the next line."""
    if not right:
        return left
    return f"{left:{COLUMN}}{right}" if len(left) < COLUMN else f"{left}\n{'':{COLUMN}}{right}"
