"""Measurements of minutes each, made once: what was measured is kept in a file, and read again.

So a study that was stopped goes on with the same command. A file is of what it depends on: its name
ends in a digest of that, and another flag is another file.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import files, job
from common.reporting.results import git_commit
from common.training import parallel


@dataclass(frozen=True)
class Kept:
    """A folder of measurements; `about` is what all of them depend on, as plain values.

    fresh: measure anew what is there already.
    """

    folder: Path
    about: Mapping
    fresh: bool = False

    @cached_property
    def commit(self) -> str | None:
        """The commit that measures now; asked of git once."""
        return git_commit()

    def find(self, name: str, about: Mapping) -> dict | None:
        """What was measured for these `about`, None where it was not, or is wanted afresh.

        Raises:
            UserError: the file that is there is damaged.
        """
        # One process decides for all of a job, which measure together.
        path, _ = self._place(name, about)
        return parallel.broadcast(lambda: None if self.fresh else self._read(path))

    def _place(self, name: str, about: Mapping) -> tuple[Path, dict]:
        identity = json.loads(json.dumps({**self.about, **about}, sort_keys=True))
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")
        return self.folder / f"{words}-{digest}.json", identity

    def get(self, name: str, about: Mapping, measure: Callable[[], dict]) -> dict:
        """What `measure()` returned for these `about`, measured where it is not there yet.

        Plain values, of which numbers may be infinite or NaN.

        Raises:
            UserError: the file that is there is damaged.
        """
        if (kept := self.find(name, about)) is not None:
            return kept
        (path, identity), measured = self._place(name, about), measure()
        if job.is_first():
            files.make_folder(self.folder)
            with files.locked(self.folder, "keeps a measurement"):
                content = {"about": identity, "measured": measured, "git_commit": self.commit}
                files.save(path, json.dumps(content, indent=1) + "\n")
        parallel.wait()
        return json.loads(json.dumps(measured))  # as it is read

    def _read(self, path: Path) -> dict | None:
        try:
            content = json.loads(files.load(path))
        except FileNotFoundError:
            return None
        commit = content["git_commit"]
        if commit != self.commit:
            job.say(f"{path.name}: kept, measured by {(commit or 'no commit')[:7]}")
        return content["measured"]
