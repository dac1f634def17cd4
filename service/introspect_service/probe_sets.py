"""The probe sets that a running service may score with: those of one folder, loaded by name and made the active one."""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from introspect.types import Request, SamplingParams
from introspect_probes.errors import ProbeMismatchError, ProbesError
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.scoring import Scorer
from introspect_probes.training_free import TrainingFree
from introspect_service.backend import Backend
from introspect_service.drift_watch import DriftWatch
from introspect_service.errors import ApiError

logger = logging.getLogger(__name__)

INITIAL, OFF = "initial", "off"
"""What the service began with, and training-free scores alone: there without a folder."""

MOST_LOADED = 8
"""Sets that are held in memory beside those; the one loaded first is let go."""

MOST_LISTED = 256

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_MANIFEST = "manifest.json"
_TRIAL_PIXELS = 64


class ProbeSets:
    """Loads sets and says which one new answers are scored with. An answer keeps the set with which it was accepted.

    Args:
        backend: the model, and the set that the service begins with.
        folder: whose subfolders may be loaded, each under its name; none where absent.
        allow_mismatch: take sets that were fitted for another model of the same shape; every output says so.
    """

    def __init__(self, backend: Backend, folder: Path | None, *, allow_mismatch: bool = False) -> None:
        self._backend, self._folder, self._allow_mismatch = backend, folder, allow_mismatch
        self._fixed: dict[str, Scorer] = {INITIAL: backend.scorer, OFF: TrainingFree(backend.model, "probes are off")}
        self._loaded: OrderedDict[str, Scorer] = OrderedDict()
        self._loading = threading.Lock()
        self._active: tuple[str, Scorer, DriftWatch] = (INITIAL, backend.scorer, DriftWatch(backend.scorer))
        self.changes = 0

    @property
    def active(self) -> str:
        """The id of the active set."""
        return self._active[0]

    @property
    def scorer(self) -> Scorer:
        """What an answer that is accepted now is scored with."""
        return self._active[1]

    @property
    def drift(self) -> DriftWatch:
        """What watches the answers of the active set; each time that one is made active it begins anew."""
        return self._active[2]

    def ids(self) -> list[str]:
        """All that can be made active, the fixed ones first. Reads the folder."""
        return [*self._fixed, *sorted(self._found())]

    def held(self, name: str) -> Scorer | None:
        """The set of that id, where it is in memory."""
        if name == self.active:
            return self.scorer
        return self._fixed.get(name) or self._loaded.get(name)

    def load(self, name: str) -> Scorer:
        """Read a set of the folder, again where it was read before, and make sure that it scores this model.

        Blocks: run it beside the event loop. The active set stays what it is.

        Raises:
            ApiError: 404, there is none of that id; 409, it cannot be read or does not fit, and why.
        """
        if name in self._fixed:
            return self._fixed[name]
        with self._loading:
            if name not in self._found() or self._folder is None:
                message = "There is no probe set of that id here: GET /v1/probes lists those there are."
                raise ApiError(404, message, param="id", code="probe_set_not_found")
            loaded = self._checked(self._folder / name)
            self._loaded[name] = loaded
            self._loaded.move_to_end(name)
            if len(self._loaded) > MOST_LOADED:
                self._loaded.popitem(last=False)
        return loaded

    def activate(self, name: str) -> None:
        """Score new answers with this set, which is read first where it is not in memory. Blocks.

        Raises:
            ApiError: as `load`; the active set stays.
        """
        scorer = self.held(name) or self.load(name)
        with self._loading:
            self._active = (name, scorer, DriftWatch(scorer))
            self.changes += 1
        logger.info("new answers are scored with probe set %s (%s)", name, scorer.name or "training-free scores")

    def _found(self) -> Iterator[str]:
        """Names of subfolders that look like a probe set. A link that leads out of the folder is none."""
        if self._folder is None:
            return
        root, count = self._folder.resolve(), 0
        for each in root.iterdir():
            if re.match(NAME, each.name) and each.name not in self._fixed and each.resolve() == each and (each / _MANIFEST).is_file():
                count += 1
                yield each.name
            if count == MOST_LISTED:
                return

    def _checked(self, folder: Path) -> ProbeSet:
        try:
            found = load_probe_set(folder).check(self._backend.model, allow_mismatch=self._allow_mismatch)
        except ProbeMismatchError as problem:
            raise ApiError(409, _without_path(problem, folder), param="id", code="probe_set_mismatch") from None
        except ProbesError as problem:
            raise ApiError(409, _without_path(problem, folder), param="id", code="probe_set_unreadable") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as problem:
            message = f"{folder.name} cannot be read as a probe set ({type(problem).__name__}); make it again with `introspect train`."
            raise ApiError(409, message, param="id", code="probe_set_unreadable") from None
        self._try(found, folder.name)
        return found

    def _try(self, found: ProbeSet, name: str) -> None:
        """Score a short answer: a manifest may say that arrays fit which do not."""
        image = Image.new("RGB", (_TRIAL_PIXELS, _TRIAL_PIXELS))
        trial = Request.ask("probe-set-trial", "hello", image, sampling=SamplingParams(max_tokens=2))
        steps = list(self._backend.engine.generate([trial]))
        try:
            session = found.session(steps[0].prompt)
            for step in steps:
                session.step(step)
            session.finish()
        except Exception as problem:
            logger.exception("probe set %s fails", name)
            message = f"{name} fails to score an answer of this model ({type(problem).__name__}); make it again with `introspect train`."
            raise ApiError(409, message, param="id", code="probe_set_mismatch") from None


def _without_path(problem: ProbesError, folder: Path) -> str:
    return str(problem).replace(str(folder), folder.name)
