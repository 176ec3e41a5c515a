"""How well forecasts route, against what anyone would try first: `eccos bench routing [--json]`.

Each way of routing learns from 70 % of a table of real outcomes and routes the rest.

- M compares forecasts: the least realised cost at 100, 99, 97 and 95 % of the realised quality of the best single model
  of the past, as a share of that model's cost, the mean of the four; its price of quality is set in hindsight.
- "operating" is what a user gets: price set on past outcomes for each of the four floors, realised shares of the best
  single model's quality and cost, and how often the quality fell short.
- Of the models chosen there: forecast minus realised quality, and forecast over realised cost minus 1; signed, and the
  mean of absolute values over seeds and floors.
- Log-loss of quality over all cells; seconds of `Router.fit`, cross-fitting included; growth of resident memory while
  fitting (first seed); milliseconds of one decision from text (first seed).

Differences are paired over seeds, with the standard error of their mean. Best single and every other "best" is the best
of the past; only the best baseline is chosen in hindsight, in its favour.

Environment: `ECCOS_DATA_DIR`, the folder of the tables; one that is not there is skipped. To run less, lists with
commas: `ECCOS_BENCH_SEEDS` (default 0,1,2,3,4), `ECCOS_BENCH_TABLES` (zeroeval, paretobandit, routellm_evals, sample;
scale, which measures time and memory on a synthetic table; guarantee, which counts how often certificates on zeroeval
and paretobandit keep their word), `ECCOS_BENCH_ENCODERS` (lexical, static, minilm), `ECCOS_BENCH_WAYS` (names as in the
tables), `ECCOS_BENCH_FITS` (seeds of the fits that are certified, default 0 to 19).
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.routing_parts.guarantee import certificates, promises
from benchmarks.routing_parts.measures import Figures, difference, measure, summary
from benchmarks.routing_parts.scale import scale
from benchmarks.routing_parts.ways import Way, ways
from eccos_integrations import OutcomeTable, load_sample
from eccos_integrations.encoders import Encoder, make_encoder
from eccos_integrations.errors import ConfigError, EccosError, MissingExtraError
from eccos_integrations.history import best_single

TABLES = ("zeroeval", "paretobandit", "routellm_evals", "sample", "scale", "guarantee")
CERTIFIED = ("zeroeval", "paretobandit")
ENCODERS = ("lexical", "static", "minilm")
SEEDS = ("0", "1", "2", "3", "4")
FITS = tuple(str(seed) for seed in range(20))
OURS = ("auto", "hybrid")
# What must be beaten without being told the task, the best of them over all encoders.
NOT_TOLD = ("k-NN 16", "k-NN 64", "logistic", "logistic + mean cost")
TOLD = "task mean (told)"

WIDTH = 110  # of the widest table; a narrower terminal wraps

log = Console(stderr=True, highlight=False)


def main(*, as_json: bool = False) -> None:
    """Measure and print."""
    found = results()
    if as_json:
        print(json.dumps(finite(found)))
        return
    console = Console(width=max(WIDTH, Console().width))
    for table in tables(found):
        console.print(table)


def results() -> dict[str, Any]:
    """Everything, as plain JSON but for NaN."""
    found: dict[str, Any] = {"seeds": [int(seed) for seed in asked("SEEDS", SEEDS)], "skipped": {}, "tables": {}}
    wanted = asked("TABLES", TABLES)
    encoders = available(asked("ENCODERS", ENCODERS), found["skipped"])
    for name in wanted:
        if name not in ("scale", "guarantee") and (table := present(name, found["skipped"])):
            found["tables"][name] = on_table(name, table, encoders, found["seeds"])
    if "scale" in wanted:
        log.print("scale: fitting and serving in processes of their own")
        found["scale"] = scale()
    if "guarantee" in wanted:
        fits = [int(seed) for seed in asked("FITS", FITS)]
        found["guarantee"] = []
        for name in CERTIFIED:
            if table := present(name, found["skipped"]):
                log.print(f"guarantee: certifying {len(fits)} fits of {name}")
                found["guarantee"] += certificates(name, table, fits)
    found["bars"] = list(bars(found))
    return found


def asked(what: str, default: Sequence[str]) -> list[str]:
    """The items of an environment variable, or the default.

    Raises:
        ConfigError: The variable is set and lists nothing.
    """
    given = os.environ.get(f"ECCOS_BENCH_{what}")
    if given is None:
        return list(default)
    items = [item.strip() for item in given.split(",") if item.strip()]
    if not items:
        raise ConfigError(f"ECCOS_BENCH_{what}: lists nothing; give some of {', '.join(default)}, or leave it unset")
    return items


def available(names: Sequence[str], skipped: dict[str, str]) -> dict[str, Encoder]:
    """The encoders that work on this machine; why the others do not goes into `skipped`."""
    encoders = {}
    for name in names:
        try:
            encoder = make_encoder(name)
            encoder.unfitted().fit(["one", "two"]).encode(["one"])
            encoders[name] = encoder
        except EccosError as error:
            skipped[f"encoder {name}"] = str(error)
            log.print(f"encoder {name}: skipped, {error}", markup=False)
    if not encoders:
        raise ConfigError(f"ECCOS_BENCH_ENCODERS: none of {list(names)} works here; 'lexical' always does")
    return encoders


def present(name: str, skipped: dict[str, str]) -> OutcomeTable | None:
    """A table; one that is not there goes into `skipped`."""
    table = outcomes(name)
    if table is None:
        skipped[name] = "not in ECCOS_DATA_DIR"
        log.print(f"{name}: skipped, not in ECCOS_DATA_DIR")
    return table


def outcomes(name: str) -> OutcomeTable | None:
    """A table of real outcomes with costs, without the rows known to stand in models' training data; None if absent."""
    if name == "sample":
        return load_sample()
    import pyarrow.parquet as pq

    path = Path(os.environ.get("ECCOS_DATA_DIR", "")) / f"{name}.parquet"
    if not path.is_file():
        return None
    split = pq.read_table(path, columns=["query_id", "split"])
    contaminated = {
        query_id
        for query_id, part in zip(split["query_id"].to_pylist(), split["split"].to_pylist(), strict=True)
        if part == "contaminated"
    }
    table = OutcomeTable.read(path)
    clean = np.array([query_id not in contaminated for query_id in table.query_ids])
    return table.take(np.flatnonzero(clean & np.isfinite(table.cost_usd).all(axis=1)))


def on_table(name: str, table: OutcomeTable, encoders: dict[str, Encoder], seeds: Sequence[int]) -> Figures:
    """Every way on one table."""
    splits = [table.split(0.7, seed) for seed in seeds]
    every = list(ways(table, encoders))
    names = list(dict.fromkeys(way.name for way in every))
    only = asked("WAYS", names)
    if unknown := [wanted for wanted in only if wanted not in names]:
        raise ConfigError(f"ECCOS_BENCH_WAYS: {unknown} unknown; give some of {names}")
    rows, skipped = [], {}
    for way in every:
        if way.name not in only:
            continue
        try:
            rows.append(over_seeds(way, splits, seeds))
        except MissingExtraError as error:
            skipped[f"{way.name}, {way.encoder}"] = str(error)
            log.print(f"{name}: {way.name} skipped, {error}", markup=False)
            continue
        log.print(f"{name}: {way.name} {way.encoder} M {rows[-1]['M']:.3f}, fit {rows[-1]['fit_s']:.1f} s")
    ours = [row for row in rows if row["way"] in OURS]
    return {
        "queries": len(table),
        "models": len(table.models),
        "best": [best_single(train) for train, _ in splits],
        "ways": rows,
        "differences": [difference(row, other) for row in ours for other in rows if other["baseline"]],
        "skipped": skipped,
    }


def over_seeds(way: Way, splits: Sequence[tuple[OutcomeTable, OutcomeTable]], seeds: Sequence[int]) -> Figures:
    """One way, all splits; timings on the first."""
    return summary(
        way, [measure(way, *split, seed, timings=seed == seeds[0]) for split, seed in zip(splits, seeds, strict=True)]
    )


def bars(found: dict[str, Any]) -> Iterator[Figures]:
    """What `auto` over the default encoder has to reach, and what it reached."""
    for name, table in found["tables"].items():
        auto = next((row for row in table["ways"] if (row["way"], row["encoder"]) == ("auto", ENCODERS[0])), None)
        if auto is None:
            continue
        rivals = [row for row in table["ways"] if row["way"] in NOT_TOLD]
        if rivals:
            best = min(rivals, key=lambda row: row["M"])
            gap = difference(auto, best)
            words = f"{best['way']} {best['encoder']}"
            error = gap["error"] or 0.0
            yield bar(name, f"M against {words}: no worse by a standard error", gap["difference"], error)
            if name in ("zeroeval", "paretobandit"):
                yield bar(name, f"M against {words}, relative", gap["relative"], -0.10)
        told = next((row for row in table["ways"] if row["way"] == TOLD), None)
        if told and name in ("zeroeval", "paretobandit"):
            yield bar(name, "M minus the told task mean's", difference(auto, told)["difference"], -1e-9)
        if name == "zeroeval":
            yield bar(name, "M", auto["M"], 0.40)
        yield bar(name, "bias of the routed cost sums, mean absolute", auto["cost_bias_abs"], 0.05)
    for row in found.get("scale", {}).get("fit", []):
        if "skipped" not in row:
            size = f"{row['queries']} x {row['models']}"
            yield bar(
                "scale", f"{row['predictor']}: s to fit {size}", row["fit_s"], 300 if row["predictor"] == "auto" else 60
            )
            yield bar("scale", f"{row['predictor']}: MB to fit {size}", row["peak_mb"], 1500)
    for row in found.get("scale", {}).get("serve", []):
        for what, figure, most in (
            ("ms of one decision, p50", "p50_ms", 0.5),
            ("ms of one decision, p99", "p99_ms", 3.0),
            ("s of 1,000 forecasts", "forecast_1000_s", 0.2),
            ("torch imported", "torch", 0),
        ):
            yield bar("scale", f"{what}, {row['models']} models", row[figure], most)
    for promise in promises(found.get("guarantee", [])):
        yield bar(*promise)


def bar(table: str, what: str, reached: float | None, most: float) -> Figures:
    """One line of the summary."""
    return {"table": table, "bar": what, "reached": reached, "at_most": most,
            "holds": reached is None or bool(reached <= most)}  # fmt: skip


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """The results for people, 80 to 110 columns wide."""
    for name, table in found["tables"].items():
        heading = f"{name}: {table['queries']} queries x {table['models']} models, seeds {found['seeds']}"
        yield grid(heading + "\nprice in hindsight, then operating at a price from past outcomes", (
            ("M", "M", ".3f"), ("+-", "M_error", ".3f"), ("quality", "quality_share", ".1%"),
            ("cost", "cost_share", ".1%"), ("missed", "miss_rate", ".0%"),
        ), table["ways"])  # fmt: skip
        yield grid(f"{name}: forecasts of the chosen, and what they take", (
            ("quality", "calibration", "+.3f"), ("abs.", "calibration_abs", ".3f"),
            ("cost", "cost_bias", "+.1%"), ("abs.", "cost_bias_abs", ".1%"), ("log-loss", "log_loss", ".3f"),
            ("fit s", "fit_s", ".2f"), ("MB", "fit_mb", ".0f"), ("p50 ms", "p50_ms", ".2f"), ("p99", "p99_ms", ".2f"),
        ), table["ways"])  # fmt: skip
        if table["differences"]:
            yield grid(f"{name}: M of ours minus a baseline's, paired over seeds", (
                ("baseline", "other", ""), ("", "other_encoder", ""), ("M", "difference", "+.3f"),
                ("+-", "error", ".3f"), ("relative", "relative", "+.0%"), ("seeds better", "seeds_better", "d"),
            ), table["differences"])  # fmt: skip
    for part, rows in found.get("scale", {}).items():
        columns = [(key.replace("_", " "), key, "") for key in rows[0]]
        yield grid(f"scale: {part}", columns, [row | {"way": "", "encoder": ""} for row in rows])
    if found.get("guarantee"):
        splits = found["guarantee"][0]["splits"]
        yield grid(f"guarantee: shares of {splits} splits, and the certified cost as a share of the best single's", (
            ("table", "table", ""), ("floor", "floor", ".2f"), ("bound", "bound", ""),
            ("certified", "certified", ".1%"), ("+-", "certified_error", ".1%"),
            ("violated", "violated", ".1%"), ("+-", "violated_error", ".1%"),
            ("missed", "missed", ".1%"), ("+-", "missed_error", ".1%"),
            ("cost", "cost_share", ".3f"), ("+-", "cost_share_error", ".3f"),
        ), found["guarantee"])  # fmt: skip
    if found["bars"]:
        yield grid("What must hold", (
            ("table", "table", ""), ("bar", "bar", ""), ("reached", "reached", ".3g"), ("at most", "at_most", ".3g"),
            ("holds", "holds", ""),
        ), found["bars"])  # fmt: skip


def grid(title: str, columns: Sequence[tuple[str, str, str]], rows: Sequence[Figures]) -> Table:
    """A table of some figures of the rows, each by its format; the way and its encoder stand first."""
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    named = [("routed by", "way", ""), ("encoder", "encoder", "")] if "way" in rows[0] else []
    shown = [*(column for column in named if any(row[column[1]] for row in rows)), *columns]
    for heading, _, form in shown:
        table.add_column(heading, justify="right" if form else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row.get(key), form) for _, key, form in shown))
    return table


def text(value: Any, form: str) -> str:
    """A figure for people; nothing where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value is None:
        return ""
    return format(value, form or (".3g" if isinstance(value, float) else ""))


def finite(value: Any) -> Any:
    """The same with None for what is no number: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main(as_json="--json" in sys.argv)
