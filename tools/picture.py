"""Draw an answer with its signals: `python tools/picture.py samples/scene-3.png "describe everything" docs/signals.png --ratio 0.2`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib import pyplot as plt
from PIL import Image

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.types import Budget, Request
from introspect_probes.probe_set import load_probe_set
from introspect_probes.signals import AnswerSignal

WORDS_A_LINE = 14
COLORS = mpl.colormaps["cividis_r"]  # readable by colour-blind people


def answered(image: Path, question: str, budget: Budget) -> tuple[list[str], AnswerSignal]:
    """The answer's pieces of text and its signals."""
    loaded = load_model()
    probes = load_probe_set().check(loaded)
    session, texts = None, []
    with Image.open(image) as picture:
        for step in Engine(loaded).generate([Request.ask("picture", question, picture.convert("RGB"), budget=budget)]):
            session = session or probes.session(step.prompt)
            session.step(step)
            texts.append(step.text)
    if session is None:
        raise RuntimeError("the model gave no step")
    return texts, session.finish()


def draw(image: Path, question: str, answers: list[tuple[str, list[str], AnswerSignal]]) -> Any:
    """A figure: the picture, and for each (caption, pieces of text, signals) an answer's words coloured by risk."""
    lines = [-(-len([t for t in texts if t.strip()]) // WORDS_A_LINE) for _, texts, _ in answers]
    figure = plt.figure(figsize=(13, 1.2 + 0.6 * sum(lines) + 0.9 * len(answers)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.2])
    ax = left.subplots()
    with Image.open(image) as picture:
        ax.imshow(picture, interpolation="nearest")
    ax.axis("off")
    axes = right.subplots(len(answers), 1, squeeze=False, height_ratios=[n + 1.3 for n in lines])[:, 0]
    for axis, (caption, texts, signal), count in zip(axes, answers, lines, strict=True):
        _answer(axis, f"“{question}”  {caption}", texts, signal, count)
    bar = right.colorbar(mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), COLORS), ax=list(axes), fraction=0.02, pad=0.01)
    bar.set_label("risk that the claim is false")
    strategy = answers[0][2].strategy
    states = ", ".join(f"{s[:4]} = {s}" for s in (strategy.probabilities if strategy is not None else ()))
    right.supxlabel(f"below each claim its risk and what it leaned on: {states}", fontsize=8, x=0.01, ha="left")
    return figure


def _answer(ax: Any, title: str, texts: list[str], signal: AnswerSignal, lines: int) -> None:
    ax.axis("off")
    ax.set_xlim(0, WORDS_A_LINE)
    ax.set_ylim(-1.3 * lines - 0.7, 0.4)
    ax.set_title(title, fontsize=12, loc="left", weight="bold")
    start, place = 0, 0
    for text in texts:
        span = next((s for s in signal.spans if start <= s.start < start + len(text)), None)
        start += len(text)
        if not text.strip():
            continue
        x, y = place % WORDS_A_LINE + 0.45, -1.3 * (place // WORDS_A_LINE) - 0.3
        place += 1
        risk = None if span is None else span.hallucination_risk
        box = None if risk is None else {"facecolor": COLORS(risk), "edgecolor": "none", "boxstyle": "round,pad=0.25"}
        ink = "white" if risk is not None and risk > 0.55 else "black"
        ax.text(x, y, text.strip(), fontsize=12, ha="center", bbox=box, color=ink)
        if risk is not None and span is not None and span.strategy is not None:
            ax.text(x, y - 0.68, f"{risk:.2f}\n{span.strategy.label[:4]}", fontsize=8, ha="center", color="#444")
    confidence = "absent" if signal.confidence is None else f"{signal.confidence:.2f}"
    any_false = "absent" if signal.hallucination_risk is None else f"{signal.hallucination_risk:.2f}"
    ax.text(0, -1.3 * lines - 0.4, f"confidence that all of it is right: {confidence}     P(some claim is false): {any_false}", fontsize=12)


def main(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    out: Annotated[Path, typer.Argument(help="Where to write the PNG.")],
    ratio: Annotated[list[float] | None, typer.Option(help="Share of the prompt's cache to keep, by snapkv; repeatable.")] = None,
) -> None:
    """Ask the embedded model with the whole cache, then under each budget, and draw what it says with its signals."""
    mpl.use("Agg")
    budgets = {"with the whole cache": Budget()}
    budgets |= {f"with {share:.0%} of the KV cache, chosen by SnapKV": Budget("snapkv", ratio=share) for share in ratio or []}
    answers = [(caption, *answered(image, question, budget)) for caption, budget in budgets.items()]
    draw(image, question, answers).savefig(out, dpi=110)


if __name__ == "__main__":
    typer.run(main)
