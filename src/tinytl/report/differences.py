"""Find the settings in which runs differ, so that only runs with equal settings are averaged over seeds."""

from typing import Any

import pandas

from tinytl.records.results import OF_NO_CONSEQUENCE

# Settings that may differ within a row: the seed, those without consequence, those that other keys decide.
NO_OTHER_ROW = (
    *OF_NO_CONSEQUENCE,
    *("seed", "data.lr", "data.lr_batch1", "data.lr_full", "data.epochs", "data.image_px"),
    "trainer.limit_test_batches",
)


def settings(runs: pandas.DataFrame) -> pandas.DataFrame:
    """A column per setting that may matter, by its dotted key, and a row of texts per run."""
    configs = pandas.json_normalize([record["config"] for record in runs.record]).set_index(runs.index)
    configs = configs.drop(columns=list(NO_OTHER_ROW), errors="ignore").filter(regex=r"^(?!wandb\.)")
    return configs.map(_text)


def _text(value: Any) -> str:
    # NaN stands for a key that an older run does not have.
    return "null" if value is None or value != value else str(value)


def differences(runs: pandas.DataFrame, keys: list[str]) -> pandas.Series:
    """For each run, the settings in which the runs with the same `keys` differ, as on the command line.

    The text is empty where they differ in none.
    """
    if runs.empty:
        return pandas.Series(index=runs.index, dtype=str)
    values = settings(runs)
    row = runs.groupby(keys, dropna=False).ngroup()
    differ = values.groupby(row).transform("nunique").gt(1)
    return pandas.Series(
        [
            " ".join(f"{key}={value}" for key, value in run.items() if differ.at[index, key])
            for index, run in values.iterrows()
        ],
        index=runs.index,
    )
