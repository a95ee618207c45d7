"""What a dry run prints: the lines of a run, the paper's count, and the time that it would take."""

from tinytl.experiment.describe import describe
from tinytl.experiment.plan import Plan
from tinytl.experiment.terminal.console import for_programs, line
from tinytl.experiment.terminal.opening import show_opening
from tinytl.methods import freeze, parameter_table
from tinytl.networks.construct import build_on_meta
from tinytl.records.durations import duration


def show_plan(plan: Plan, always_json: bool) -> None:
    """Print a plan for a person, and as JSON for programs."""
    experiment, step = plan.experiment, plan.experiment.step
    network = build_on_meta(step.shapes.spec)
    freeze(network, step.method, step.blocks)
    show_opening(experiment, parameter_table(network), plan.data)
    values = describe(experiment)
    line("paper", f"{values['paper_mb']:,.1f} MB by the paper's count")
    line("time", _time(plan))
    times = {"steps": plan.steps, "step_seconds": plan.step_seconds, "predicted_seconds": plan.seconds}
    for_programs({**values, **times}, always_json)


def _time(plan: Plan) -> str:
    if plan.step_seconds is None:
        steps = "" if plan.steps is None else f"{plan.steps:,} steps; "
        return f"{steps}no step was timed"
    step = f"{duration(plan.step_seconds)} to compute a step"
    if plan.seconds is None:
        return f"{step}; how many there are depends on the data"
    loading = f"{duration(plan.load_seconds or 0)} to load its images"
    return f"about {duration(plan.seconds)} of training ({plan.steps:,} steps, {step}, {loading})"
