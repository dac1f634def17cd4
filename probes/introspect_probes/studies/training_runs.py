"""Training runs as models of a study: what their folders are called, and what their own records say of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from introspect_probes.embedded.plan import Plan


def model_of(name: str) -> str:
    """The model that a name means: that of a training run's folder, or what the name says."""
    inside = Path(name) / "model"
    return str(inside) if (inside / "config.json").is_file() else name


def training_facts(run: Path) -> dict[str, Any]:
    """Seed, size, training time and accuracy on held-out handwriting by question type, where the run left a record.

    What an older record says nothing of was then what it is by default now.
    """
    path = run / "model" / "training_record.json"
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    plan = asdict(Plan()) | record["plan"]
    accuracy = {kind: entry["accuracy"] for kind, entry in record["accuracy"]["test"].items() if kind in plan["mix"]["weights"]}
    return {
        "size": plan["size"],
        "seed": plan["seed"],
        "parameters": record["parameters"],
        "seconds": record["seconds"],
        "accuracy": accuracy,
    }
