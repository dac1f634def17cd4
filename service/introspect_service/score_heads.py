"""`introspect score-heads`: find a model's visual heads, and draw them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from introspect_service.commands import fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from introspect.heads.cases import HeadCase
    from introspect_probes.worlds.cases import Case

WORLD_KINDS = ("digit_at", "color_at", "color_of", "digit_of", "where", "add_row", "describe")
"""Questions whose claims each have one cell for evidence."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("score-heads")(score_heads)


def score_heads(
    *,
    out: Annotated[Path, typer.Option(help="Where to write the scores (JSON); the picture goes beside it.")],
    model: Annotated[str, typer.Option(help="A folder or hub id.")] = "embedded",
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    world: Annotated[str | None, typer.Option(help="Cases from a world, such as digits.", show_default="digits, for embedded")] = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="A JSONL file of your own: image, text, boxes.", exists=True, dir_okay=False),
    ] = None,
    n: Annotated[int, typer.Option(help="How many pictures of a world, or of rendered text.", min=2)] = 400,
    seed: Annotated[int, typer.Option(help="Which pictures.", min=0)] = 0,
    pool: Annotated[str, typer.Option(help="Whose handwriting, in the world of digits.")] = "probe",
    font: Annotated[
        list[Path] | None,
        typer.Option(help="A font file for rendered text, instead of those found; may be repeated.", exists=True, dir_okay=False),
    ] = None,
    script: Annotated[
        list[str] | None,
        typer.Option(help="A script of rendered text, such as greek; may be repeated.", show_default="all that can be written"),
    ] = None,
    picture: Annotated[bool, typer.Option(help="Draw the map of layers and heads.")] = True,
) -> None:
    """Find the heads that look at the evidence; without a world or cases the model must read rendered text."""
    from introspect.engine import Engine
    from introspect.heads.cases import read_head_cases
    from introspect.heads.rendered import rendered_cases
    from introspect.heads.scoring import score_heads as run
    from introspect.heads.scripts import typefaces
    from introspect.loading import EMBEDDED, load_model
    from introspect.provenance import provenance

    if world is not None and cases is not None:
        fail("give --world or --cases, not both")
    if (font or script) and (world is not None or cases is not None):
        fail("--font and --script are for rendered text; leave --world and --cases out")
    if world is None and cases is None and model == EMBEDDED and not (font or script):
        world = "digits"
    chosen: Iterable[HeadCase]
    source: dict[str, object]
    loaded = load_model(model, device=device)
    if cases is not None:
        chosen, source = read_head_cases(cases), {"source": cases.name}
    elif world is not None:
        chosen, source = world_cases(world, n, seed, pool), {"source": f"world {world}", "seed": seed, "pool": pool}
    else:
        faces = typefaces(loaded.tokenizer, font or (), script or ())
        chosen = rendered_cases(n, seed, faces)
        drawn = sorted({"Pillow's own" if face.font is None else Path(face.font).stem for face in faces})
        source = {"source": "rendered text", "seed": seed, "scripts": sorted({face.script for face in faces}), "fonts": drawn}
    found = run(Engine(loaded), chosen)
    found.facts["cases"] = {"count": found.facts["cases"], **source}
    found.facts["provenance"] = provenance()
    found.save(out)
    typer.echo(f"{found.facts['tokens']} tokens scored; halves agree with rank correlation {found.facts['stability']['spearman']}")
    for layer, head, score in top_heads(found.scores.tolist(), 5):
        typer.echo(f"  layer {layer} head {head}: {score:.1%} of the score")
    typer.echo(f"written to {out}")
    if picture:
        _draw(found.scores.tolist(), out.with_suffix(".png"), str(found.facts["model"]))


def top_heads(scores: list[list[float]], count: int) -> list[tuple[int, int, float]]:
    """Layer, head and score of the highest ones."""
    every = [(layer, head, score) for layer, row in enumerate(scores) for head, score in enumerate(row)]
    return sorted(every, key=lambda entry: -entry[2])[:count]


def world_cases(world: str, n: int, seed: int, pool: str) -> Iterator[HeadCase]:
    """A world's cases as pictures with boxes: each claim of the true answer has the cell that shows it.

    Raises:
        CaseError: there is no such world or pool.
    """
    from introspect_probes.errors import CaseError
    from introspect_probes.worlds.digits import POOLS
    from introspect_probes.worlds.world import get_world

    known = next((p for p in POOLS if p == pool), None)
    if known is None:
        raise CaseError(f"--pool must be one of {', '.join(POOLS)}, got {pool!r}")
    return (head_case(case) for case in get_world(world).cases(n, seed=seed, pool=known, kinds=WORLD_KINDS))


def head_case(case: Case) -> HeadCase:
    """One case of a world with its evidence; a claim that several cells decide together has none."""
    from introspect.heads.cases import Evidence, HeadCase
    from introspect_probes.worlds.claims import judge
    from introspect_probes.worlds.scene import CELL_PIXELS

    scene, answer = case.scene, case.answers[0]
    if scene is None:
        raise ValueError(f"case {case.id} has no scene")
    evidence = []
    for claim in judge(case, answer).claims if case.source == "image" else ():
        if len(claim.evidence) == 1:
            row, column = divmod(claim.evidence[0], scene.columns)
            box = (column * CELL_PIXELS, row * CELL_PIXELS, (column + 1) * CELL_PIXELS, (row + 1) * CELL_PIXELS)
            evidence.append(Evidence(claim.start, claim.end, (box,)))
    return HeadCase(case.id, scene.image(), case.question, answer, tuple(evidence), case.context)


def _draw(scores: list[list[float]], path: Path, model: str) -> None:
    try:
        from introspect_probes.engine_figures import draw_heads
    except ImportError as problem:
        typer.echo(f"introspect: no picture of the heads is drawn: {problem}; install the extra `probes`", err=True)
        return
    draw_heads(scores, path, model)
    typer.echo(f"drawn to {path}")
