"""Train under a memory limit of the operating system, in which the lean engine works and stock PyTorch dies.

    python tests/memory_limit.py [MB above idle, 150 by default]

ProxylessNAS-Mobile, TinyTL, batch 8, 224 px, Adam. The limit is on the process's private writable memory
(RLIMIT_DATA, Linux), set to what the process has with its libraries loaded plus the given megabytes.
"""

import multiprocessing
import resource
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from tinytl.assembly import TrainingStep
from tinytl.engine import EnginePlan
from tinytl.memory.measure import load_libraries
from tinytl.memory.step import build, run


def main() -> int:
    limit_mb = float(sys.argv[1]) if len(sys.argv) > 1 else 150.0
    codes = {}
    for engine in ("lean", "stock"):
        process = multiprocessing.get_context("fork").Process(target=train, args=(limit_mb, engine))
        process.start()
        process.join()
        codes[engine] = process.exitcode
        print(f"{engine}: exit code {process.exitcode}", flush=True)
    return 0 if codes["lean"] == 0 and codes["stock"] != 0 else 1


def train(limit_mb: float, engine: str) -> None:
    plan = EnginePlan(micro_batch=1, slice_kb=400.0) if engine == "lean" else EnginePlan()
    load_libraries(plan)
    allowed = private_bytes() + int(limit_mb * 1e6)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    step = TrainingStep.of("proxylessnas_mobile", "gn", "tinytl", 8, 224, 102)
    step = replace(step, engine=engine, plan=plan)  # type: ignore[arg-type]
    network, optimizer = build(step)
    for _ in range(3):
        run(step, network, optimizer)
    print(f"{engine}: three steps within {limit_mb:.0f} MB above idle")


def private_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmData")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
