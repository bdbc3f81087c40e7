"""Measurements of minutes each, made once, so that a study that was stopped goes on with them."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common import files, job
from common.training import parallel


@dataclass(frozen=True)
class Kept:
    """A folder of measurements; `about` is what all of them depend on, as plain values.

    fresh: measure anew what is there already.
    """

    folder: Path
    about: Mapping
    fresh: bool = False

    def _path(self, name: str, about: Mapping) -> Path:
        # Another flag is another file.
        identity = json.dumps({**self.about, **about}, sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")
        return self.folder / f"{words}-{digest}.json"

    def find(self, name: str, about: Mapping) -> dict | None:
        """What was measured for these `about`, None where it was not, or is wanted afresh."""
        path = self._path(name, about)

        def read() -> dict | None:  # in one process, for all of a job, which measure together
            there = path.exists() and not self.fresh
            return json.loads(files.load(path))["measured"] if there else None

        return parallel.broadcast(read)

    def get(self, name: str, about: Mapping, measure: Callable[[], dict]) -> dict:
        """What `measure()` returned for these `about`, measured where it is not there yet.

        Plain values, of which numbers may be infinite or NaN.
        """
        if (kept := self.find(name, about)) is not None:
            job.say(f"{self._path(name, about)}: kept; --fresh measures anew")
            return kept
        text = json.dumps({"about": {**self.about, **about}, "measured": measure()}, indent=1)
        if job.is_first():
            files.make_folder(self.folder)
            with files.locked(self.folder, "keeps a measurement"):
                files.save(self._path(name, about), text)
        parallel.wait()
        return json.loads(text)["measured"]  # as it is read
