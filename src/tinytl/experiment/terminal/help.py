"""`--help`: the groups with their options, and every knob with its default and its meaning, from conf/.

It is read from the files, so that nothing has to be imported or composed.
"""

import re
from collections.abc import Iterator
from pathlib import Path

CONF = Path(__file__).parents[4] / "conf"
# The files that hold the knobs of a group, with comments.
DOCUMENTED = (
    ("data", "folder"), ("model", "proxylessnas_w03"), ("method", "tinytl"), ("norm", "gn"),
    ("engine", "lean"), ("engine", "stock"), ("trainer", "default"), ("wandb", "offline"),
)  # fmt: skip
GROUPS = ("data", "model", "method", "norm", "engine", "trainer", "wandb", "debug", "sweeps")
KNOB = re.compile(r"(?P<indent> *)(?P<key>\w+): *(?P<value>[^#\n]*?)? *(?:# *(?P<meaning>.*))?")
COLUMN = 44  # where meanings begin


def wants_help(arguments: list[str]) -> bool:
    """Whether the command line asks for help."""
    return bool({"--help", "-h"} & set(arguments))


def help_text(program: str, config: str) -> str:
    """What `python src/PROGRAM.py --help` prints; `config` is the name of its file in conf/."""
    knobs = knobs_of(config)
    lines = [
        f"python src/{program}.py [GROUP=OPTION] [KEY=VALUE] ...",
        f"python src/{program}.py -m [+sweeps=NAME] [GROUP=A,B] [KEY=1,2] ...    a job for every combination",
        f"python src/{program}.py [...] --cfg job                             what that comes to, as YAML",
        "",
        "Groups and their options (conf/GROUP/OPTION.yaml):",
        *(line for group in GROUPS for line in _group(group)),
        "",
        "Knobs, as KEY=VALUE, with their defaults:",
        *(_aligned(f"  {key}={default}", meaning) for key, (default, meaning) in knobs.items()),
    ]
    return "\n".join(lines)


def knobs_of(config: str) -> dict[str, tuple[str, str]]:
    """Every knob under its dotted key: (default, meaning)."""
    files = [(CONF / f"{name}.yaml", "") for name in dict.fromkeys((config, "config"))]
    files += [(CONF / group / f"{option}.yaml", f"{group}.") for group, option in DOCUMENTED]
    found: dict[str, tuple[str, str]] = {}
    for path, above in files:
        for key, default, meaning in _knobs(path, above):
            before = found.get(key, (default, ""))
            found[key] = (before[0], before[1] or meaning)
    return found


def _group(group: str) -> Iterator[str]:
    """Its options, each with the first sentence of its file."""
    name = f"+{group}=" if group == "sweeps" else f"{group}="
    for path in sorted((CONF / group).glob("*.yaml")):
        yield _aligned(f"  {name}{path.stem}", _first_sentence(path.read_text(encoding="utf-8")))
    if group == "model":
        yield _aligned("  model=NAME", "any other CNN, by its name in timm")


def _first_sentence(text: str) -> str:
    comment = [
        line.removeprefix("#").strip()
        for line in text.splitlines()
        if line.startswith("#") and "@" not in line
    ]
    return re.split(r"(?<=[a-z0-9)\]])[.:] |\.$|   python", " ".join(comment))[0]


def _knobs(path: Path, above: str) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every knob of a file."""
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = KNOB.fullmatch(line)
        if found is None or found["key"] in ("defaults", "hydra"):
            section = "hydra." if found else section
            continue
        if not found["indent"]:
            section = ""
            if not found["value"] or found["value"].startswith("{"):
                section = f"{found['key']}."
                continue
        if section != "hydra.":
            yield f"{above}{section}{found['key']}", found["value"], found["meaning"] or ""


def _aligned(left: str, right: str) -> str:
    """Two columns; what is too long for the first has the second to itself, in the next line."""
    if not right:
        return left
    return f"{left:{COLUMN}}{right}" if len(left) < COLUMN else f"{left}\n{'':{COLUMN}}{right}"
