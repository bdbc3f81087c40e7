"""Results of measurements of minutes each, kept so that a study that was stopped goes on."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common import files, job
from common.training import parallel


@dataclass(frozen=True)
class ResultCache:
    """A folder of results; `described` is what all of them depend on, as plain values.

    fresh: measure anew what is there already.
    """

    folder: Path
    described: Mapping
    fresh: bool = False

    def _path(self, name: str, described: Mapping) -> Path:
        digest = files.digest_of({**self.described, **described})[:8]  # another flag, another file
        words = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")
        return self.folder / f"{words}-{digest}.json"

    def find(self, name: str, described: Mapping) -> dict | None:
        """The result so named and described, None where it is not there, or wanted afresh."""
        path = self._path(name, described)

        def read() -> dict | None:  # in one process, for all of a job, which measure together
            there = path.exists() and not self.fresh
            return files.load_json(path)["measured"] if there else None

        return parallel.broadcast(read)

    def get(self, name: str, described: Mapping, measure: Callable[[], dict]) -> dict:
        """The result so named and described: read, or what `measure()` returns, and then kept.

        Plain values, of which numbers may be infinite or NaN.
        """
        path = self._path(name, described)
        if (found := self.find(name, described)) is not None:
            job.say(f"{path}: kept; --fresh measures anew")
            return found
        content = {"about": {**self.described, **described}, "measured": measure()}
        text = json.dumps(content, indent=1)
        if job.is_first():
            files.make_folder(self.folder)
            with files.locked(self.folder, "keeps a measurement"):
                files.save(path, text)
        parallel.wait()
        return json.loads(text)["measured"]  # as it is read
