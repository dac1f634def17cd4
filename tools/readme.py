"""Write the generated blocks of the READMEs: `python tools/readme.py [--check] [--run]`.

A block stands between `<!-- output NAME -->` and `<!-- end -->`. Figures come
from result files; with `--run`, what the snippets print comes from running
them against a service that this program starts.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from introspect.loading import embedded_folder
from introspect_kernels.bench import markdown
from introspect_probes import engine_report
from introspect_probes.drift_study import AFTER, BEFORE
from introspect_probes.guarantee_table import guarantee_table
from introspect_probes.report import answers_table, claims_table, conditions_table, domain_line, strategy_lines, summary
from introspect_probes.studies.arms import ARMS
from introspect_probes.studies.attack import MODELS, SETTINGS, attack_table
from introspect_probes.studies.curves_table import head_curves_table
from introspect_probes.studies.learning_table import learning_state_table, read_runs
from introspect_probes.studies.pooled_calibration import FILE
from introspect_probes.studies.shifts import SHIFTS
from introspect_probes.studies.tables import free_running_table, kernel_only_table, read_results

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "probes" / "results" / "embedded-4" / "report.json"
DRIFT = ROOT / "probes" / "results" / "drift" / "embedded-4.json"
GUARANTEE = ROOT / "probes" / "results" / "guarantee" / "embedded-4.json"
STUDIES = ROOT / "probes" / "results"
SCORING = ROOT / "probes" / "results" / "scoring" / "batch.json"
KERNELS = sorted((ROOT / "kernels" / "benchmarks" / "results").glob("kernels-cpu-*.json"))
SERVICE = sorted((ROOT / "service" / "benchmarks" / "results").glob("service-*.json"))
ENGINE = ROOT / "introspect" / "benchmarks" / "results"
PAGES = tuple(ROOT / part / "README.md" for part in ("", "introspect", "probes", "kernels", "service"))
SNIPPETS = ("curl", "openai", "stream")
TIGHT = "snapkv@20%"
_BLOCK = re.compile(r"(<!-- output (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_SNIPPET = re.compile(r"<!-- snippet (?P<name>[\w-]+) -->\n```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def _read(path: Path) -> dict[str, Any]:
    """One result file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def figures() -> dict[str, str]:
    """Every block that comes from a result file."""
    report = _read(REPORT)
    return {
        "conditions": conditions_table(report),
        "claims-full": claims_table(report, "full"),
        "claims-tight": claims_table(report, TIGHT),
        "answers": answers_table(report),
        "strategy": strategy_lines(report),
        "domain": domain_line(report),
        "report": summary(report).partition("\n\n")[2],
        "model": model_table(),
        "scoring": scoring_line(),
        "drift": drift_lines(),
        "guarantee": guarantee_table(json.loads(GUARANTEE.read_text(encoding="utf-8"))),
        "service": service_lines(),
        "kernel-only": kernel_only_table(read_results(STUDIES / "kernel-only", list(ARMS))),
        "free-running": free_running_table(read_results(STUDIES / "free-running", list(SHIFTS)), _read(STUDIES / "free-running" / FILE)),
        "learning-state": learning_state_table(read_runs(STUDIES / "learning-state")),
        "head-curves": head_curves_table(read_runs(STUDIES / "head-curves")),
        "attack": attack_table(read_results(STUDIES / "attack", [f"{model}-{setting}" for setting in SETTINGS for model in MODELS])),
        **engine_report.blocks(ENGINE),
    } | kernel_blocks()


def service_lines() -> str:
    """What signals cost an answer and how fast tokens come, from the newest row of the service's benchmark."""
    row: dict[str, Any] = json.loads(SERVICE[-1].read_text(encoding="utf-8"))
    facts, cases = row["provenance"], row["cases"]
    lines = [
        f"{facts['date'][:10]}, commit `{facts['commit'][:7]}`, {facts['machine']['cores']} cores.",
        "",
        "| measured | is | aim | met |",
        "|---|---|---|---|",
    ]
    for aim in row["aims"]:
        lines.append(f"| {aim['measure'].replace('_', ' ')} | {aim['measured']:g} | {aim['aim']:g} | {'yes' if aim['met'] else 'no'} |")
    lines += ["", "| streams | first token, ms (median, p99) | between tokens, ms (median, p99) |", "|---|---|---|"]
    for case in cases:
        if case["case"] == "latency":
            each = (case["first_token"], case["between_tokens"])
            lines.append(f"| {case['streams']} | " + " | ".join(f"{t['median_ms']:.1f}, {t['p99_ms']:.1f}" for t in each) + " |")
    return "\n".join([*lines, "", *service_loads(cases), "", *service_faults(cases)])


def service_loads(cases: list[dict[str, Any]]) -> list[str]:
    """Tokens a second, and events."""
    lines = ["| streams | tokens a second, signals and stream on | off |", "|---|---|---|"]
    for case in (case for case in cases if case["case"] == "throughput"):
        on, off = (statistics.median(case[f"tokens_per_second_{arm}"]) for arm in ("on", "off"))
        lines.append(f"| {case['streams']} | {on:.0f} | {off:.0f} |")
    events = next(case for case in cases if case["case"] == "events to the stream")
    return [*lines, "", f"Events of {events['tokens_an_event']} tokens to the stream: {events['per_second']:,.0f} a second."]


def service_faults(cases: list[dict[str, Any]]) -> list[str]:
    """What faults under load cost: a line for each time."""
    lines = ["| under load | answers | failed | events dropped | until all was well, s |", "|---|---|---|---|---|"]
    for case in cases:
        for each in case.get("rounds", [case] if "recovery_s" in case else []):
            name = case["case"].removesuffix(" under load")
            dropped = sum(each["events_dropped"].values()) if "events_dropped" in each else "-"
            lines.append(f"| {name} | {each['answers']} | {each['answers_failed']} | {dropped} | {each['recovery_s']:g} |")
    return lines


def kernel_blocks() -> dict[str, str]:
    """Every block that a row of the kernels' benchmark fills, from the newest row that does: static counts are not in all."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in KERNELS]
    return {name: block for row in rows for name, block in markdown.blocks(row).items()}


def model_table() -> str:
    """The embedded model's size, training and accuracy by question type."""
    record: dict[str, Any] = json.loads((embedded_folder() / "training_record.json").read_text(encoding="utf-8"))
    test = record["accuracy"]["test"]
    kinds = [k for k in test if k != "picture"]
    size = (
        f"A LLaVA (CLIP tower, projector, Llama with grouped-query attention) of {record['parameters'] / 1e6:.2f} M parameters in bf16, "
        f"144 image tokens, trained in {record['seconds'] / 60:.0f} minutes on {record['provenance']['machine']['cores']} cores. "
        f"On handwriting it never saw it answers {test['picture']['accuracy']:.1%} of picture questions exactly right, "
        "types weighted equally:"
    )
    lines = [
        size,
        "",
        "| " + " | ".join(kinds) + " |",
        "|" + "---|" * len(kinds),
        "| " + " | ".join(f"{test[k]['accuracy']:.1%}" for k in kinds) + " |",
    ]
    return "\n".join(lines)


def scoring_line() -> str:
    """What scoring a token costs."""
    row: dict[str, Any] = json.loads(SCORING.read_text(encoding="utf-8"))
    (case,) = row["cases"]
    clock = case["milliseconds_per_token"]
    spread = f"{clock['median']:.2f} ms (5th to 95th percentile {clock['p5']:.2f} to {clock['p95']:.2f})"
    return (
        f"A model of {case['layers']} layers with {case['heads']} heads has {case['head_features']:,} head features. Risk, strategy and "
        f"confidence of one token take {spread} in a batch of {case['batch']}, with {case['weights_per_probe']:,} weights in each probe, "
        f"on a machine of {row['provenance']['machine']['cores']} cores "
        "(`python -m introspect_probes.scoring_benchmark --out probes/results/scoring/batch.json`)."
    )


def drift_lines() -> str:
    """How soon drift is told on recorded traces, and how often it is told falsely."""
    row: dict[str, Any] = json.loads(DRIFT.read_text(encoding="utf-8"))
    (case,) = row["cases"]
    watched = case["repeats"] * (BEFORE + AFTER)
    false = round(case["false_alarms_per_answer"]["any"] * watched)
    lines = [
        f"Reference: {case['reference']:,} answers of the calibration part. {false:,} false alarms in {watched:,} draws of usual answers.",
        "",
        f"| change | told within {AFTER} answers | median delay, answers | first by |",
        "|---|---|---|---|",
    ]
    for name, change in case["changes"].items():
        delays = {n: d for n, d in change["median_delay"].items() if d is not None and n != "any"}
        soonest = min(delays, key=lambda n: delays[n]).replace("_", " ") if delays else "-"
        any_delay = change["median_delay"]["any"]
        lines.append(f"| {name} | {change['told']['any']:.0%} | {'-' if any_delay is None else f'{any_delay:g}'} | {soonest} |")
    return "\n".join(lines)


def snippets(page: str) -> dict[str, tuple[str, str]]:
    """Language and code of each snippet of a page."""
    return {m["name"]: (m["language"], m["code"]) for m in _SNIPPET.finditer(page)}


def run_snippet(language: str, code: str) -> str:
    """What a snippet prints, run from the repository's root.

    Raises:
        CalledProcessError: it failed.
    """
    command = ["bash", "-c", code.replace(".venv/bin/python", sys.executable)] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.rstrip()


@contextmanager
def service() -> Iterator[None]:
    """A service on its usual ports, as `make run` starts it.

    Raises:
        RuntimeError: it did not come up.
    """
    program = shutil.which("introspect", path=str(Path(sys.executable).parent)) or "introspect"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([program, "serve"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(process, log)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the service did not start: {log.read()}")


def filled(page: str, blocks: dict[str, str]) -> str:
    """The page with its blocks written anew; a block that is not among `blocks` stays as it is."""

    def write(match: re.Match[str]) -> str:
        body = f"{blocks[match['name']]}\n" if match["name"] in blocks else match["body"]
        return f"{match[1]}{body}{match[4]}"

    return _BLOCK.sub(write, page)


def main(
    *,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if a figure is stale.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Also run the snippets and write down what they print.")] = False,
) -> None:
    """Bring the READMEs up to their result files."""
    blocks = figures()
    if run:
        found = snippets(PAGES[0].read_text(encoding="utf-8"))
        with service():
            blocks |= {name: f"```text\n{run_snippet(*found[name])}\n```" for name in SNIPPETS}
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        fresh = filled(page, blocks)
        if check and fresh != page:
            typer.echo(f"{path.name} is stale: run python tools/readme.py", err=True)
            raise typer.Exit(1)
        if fresh != page:
            path.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
