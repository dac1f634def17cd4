"""Draw an answer with its signals: `python tools/picture.py samples/scene-3.png "describe everything" docs/signals.png`."""

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
from introspect_probes.signals import STRATEGIES, AnswerSignal

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


def draw(image: Path, question: str, texts: list[str], signal: AnswerSignal, caption: str) -> Any:
    """A figure: the picture, the words coloured by risk with what they rest on, the confidence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), width_ratios=[1, 3.2])
    with Image.open(image) as picture:
        left.imshow(picture, interpolation="nearest")
    left.set_title(caption, fontsize=10)
    left.axis("off")
    right.axis("off")
    right.set_xlim(0, WORDS_A_LINE)
    lines = 1.3 * -(-len([t for t in texts if t.strip()]) // WORDS_A_LINE)
    right.set_ylim(-lines - 1.7, 1.2)
    right.text(0, 0.7, f"“{question}”", fontsize=13, weight="bold")
    start, place = 0, 0
    for text in texts:
        span = next((s for s in signal.spans if start <= s.start < start + len(text)), None)
        start += len(text)
        if not text.strip():
            continue
        x, y = place % WORDS_A_LINE, -1.3 * (place // WORDS_A_LINE) - 0.3
        place += 1
        risk = None if span is None else span.hallucination_risk
        box = None if risk is None else {"facecolor": COLORS(risk), "edgecolor": "none", "boxstyle": "round,pad=0.25"}
        ink = "white" if risk is not None and risk > 0.55 else "black"
        right.text(x + 0.45, y, text.strip(), fontsize=12, ha="center", bbox=box, color=ink)
        if span is not None and span.strategy is not None:
            right.text(
                x + 0.45, y - 0.68, f"{span.hallucination_risk:.2f}\n{span.strategy.label[:4]}", fontsize=8, ha="center", color="#444"
            )
    confidence = "absent" if signal.confidence is None else f"{signal.confidence:.2f}"
    any_false = "absent" if signal.hallucination_risk is None else f"{signal.hallucination_risk:.2f}"
    right.text(0, -lines - 1.1, f"confidence that all of it is right: {confidence}     P(some claim is false): {any_false}", fontsize=12)
    right.text(
        0,
        -lines - 1.45,
        "below each claim its risk and what it leaned on: " + ", ".join(f"{s[:4]} = {s}" for s in STRATEGIES),
        fontsize=7,
    )
    bar = figure.colorbar(mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), COLORS), ax=right, fraction=0.02, pad=0.01)
    bar.set_label("risk that the claim is false")
    return figure


def main(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    out: Annotated[Path, typer.Argument(help="Where to write the PNG.")],
    ratio: Annotated[float | None, typer.Option(help="Share of the prompt's cache to keep, by snapkv.")] = None,
) -> None:
    """Ask the embedded model and draw what it says with its signals."""
    mpl.use("Agg")
    budget = Budget() if ratio is None else Budget("snapkv", ratio=ratio)
    texts, signal = answered(image, question, budget)
    caption = "whole cache" if ratio is None else f"{ratio:.0%} of the KV cache kept"
    draw(image, question, texts, signal, caption).savefig(out, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    typer.run(main)
