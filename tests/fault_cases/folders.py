"""Runs and sweeps that meet in one folder, and folders that hold what is no run."""

from .registry import LONG, SMALL, Place, case, expect, one_error

FOREIGN = [b"", b"{}", b"[]", b'""', b"null", b"\xff\xfe\0", b'{"status": 3, "config": {}}']
FOREIGN += [
    b'{"status": "finished", "config": {}}',
    b'{"status": "finished", "config": {"data": {"name": "x"}}}',
]
JOBS = ["-m", *SMALL, "epochs=3", "method=last,bias,norm_last,tinytl", "name=${method.name}", "sweep=s"]


@case("13", "two runs of one name at once", linux=False)
def same_name(place: Place) -> str:
    """The second one is refused, the first one goes on."""
    first = place.start(*SMALL, "epochs=80", "name=x")
    first.says("epoch 1/")
    code, said = place.run(*LONG, "name=x", "lr=1", "overwrite=true", log="second")
    line = one_error(code, said, "in use")
    expect(not first.has_ended, "the first one had ended before")
    expect(first.wait() == 0 and "Traceback" not in first.said, first.said[-2000:])
    record = place.record()
    expect(record["status"] == "finished" and len(record["curves"]["epoch"]) == 80, "the first is not whole")
    return line


@case("13", "two sweeps of the same jobs at once in one folder", linux=False)
def same_sweep(place: Place) -> str:
    """They share the work, and each counts all jobs."""
    sweeps = [place.start(*JOBS, log=log) for log in ("first", "second")]
    codes = [sweep.wait() for sweep in sweeps]
    said = [sweep.said for sweep in sweeps]
    both = f"{codes}: {said[0][-1500:]} {said[1][-1500:]}"
    expect(codes == [0, 0] and "Traceback" not in "".join(said), both)
    begun = sum(text.count(": begins") for text in said)
    expect(begun == 4, f"{begun} jobs began")
    expect(all("4 of 4 done, 0 failed" in text for text in said), both)
    shares = [text.count(": begins") for text in said]
    return f"exit codes 0 and 0; {shares[0]} + {shares[1]} jobs ran; both: 4 of 4 done, 0 failed"


@case("11", "a dry run of a sweep while it runs", linux=False)
def dry_run_beside(place: Place) -> str:
    """It leaves the progress of the sweep alone."""
    sweep = place.start(*JOBS, "epochs=20")
    sweep.says("1 of 4 done")
    before = {path.name: path.read_bytes() for path in place.outputs.glob(".s.*")}
    code, said = place.run(*JOBS, "epochs=20", "dry_run=true", log="dry")
    after = {path.name: path.read_bytes() for path in place.outputs.glob(".s.*")}
    expect(code == 0, said[-2000:])
    expect(not sweep.has_ended, "the sweep had ended before")
    expect(
        all(after[name].startswith(content) for name, content in before.items()), "the progress was changed"
    )
    expect(before.keys() == after.keys(), "it left a file of its own")
    expect(sweep.wait() == 0 and "4 of 4 done" in sweep.said, sweep.said[-2000:])
    return "the sweep counted on to 4 of 4"


@case("11", "damaged and foreign results.json in the output folder", linux=False)
def foreign_results(place: Place) -> str:
    """They are named, and stop neither sweeps nor dry runs nor reports."""
    for number, content in enumerate(FOREIGN):
        (place.outputs / f"other{number}").mkdir(parents=True)
        (place.outputs / f"other{number}" / "results.json").write_bytes(content)
    (place.outputs / "folder" / "results.json").mkdir(parents=True)
    (place.outputs / "last").mkdir()
    (place.outputs / "last" / "results.json").write_bytes(b"[]")  # in the way of a job itself
    for extra in (["dry_run=true"], []):
        code, said = place.run(*JOBS, *extra, log=f"log{extra}")
        expect(code == 0 and "is not the record of a run" in said, f"{code}: {said[-2000:]}")
    expect(place.record("last")["status"] == "finished", "its job did not run")
    report = place.start("outputs=outputs", "output_dir=report", script="report.py", log="report")
    expect(report.wait() == 0 and "Traceback" not in report.said, report.said[-2000:])
    return f"{len(FOREIGN) + 1} kinds; sweep, dry run and report end with 0"
