"""The release that is served, as its folder describes itself: no torch, no Ray."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stillroom.encoders.contract import Remote, Terms
from stillroom.encoders.safe_read import inside
from stillroom.errors import UserError
from stillroom.storage.artifacts import MANIFEST, verify

Target = Literal["teacher", "student"]

TARGETS: tuple[Target, ...] = ("teacher", "student")


ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # no slash: a path with an = is a path


@dataclass(frozen=True)
class Release:
    """A release's identity and contracts; small enough to travel to every replica."""

    name: str
    ref: str  # exact: what a replica on another machine opens
    root: str
    contracts: dict[Target, Terms]
    folders: dict[Target, str]  # inside the release's folder
    exports: dict[Target, dict[str, str]]  # of each encoder: format → folder, likewise
    created: int  # Unix seconds
    elsewhere: dict[Target, str]  # served by others: at which address
    corpora: tuple[str, ...] = ()  # carried for the playground

    @classmethod
    def open(cls, ref: str, root: str) -> "Release":
        """Read a release from a folder, or from `root` by reference (`release/quickstart`).

        With `NAME=` before it, the release is served under that name, not its own: that is how
        two of one recipe stand side by side.

        Raises UserError when it is missing, altered, not a release, or failed its gate.
        """
        alias, equals, rest = ref.partition("=")
        if equals and ALIAS.fullmatch(alias):
            return replace(cls.open(rest, root), name=alias)
        folder = _folder(ref, root)
        if (folder / MANIFEST).is_file():  # a copy from a remote root has been verified
            verify(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        path = folder / "release.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            name, gate, models = told["name"], told["gate"], told["models"]
            passed = gate["passed"] or gate.get("overridden", False)
            exact = told.get("ref")
            folders = {target: models[target] for target in TARGETS if target in models}
            exports = {name: export["folder"] for name, export in told.get("exports", {}).items()}
            corpora = tuple(f"playground/{corpus}" for corpus in told.get("playground", ()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                str(path), f"not a release ({error!r})", "Name the artifact of a release stage"
            ) from error
        for named in (*folders.values(), *exports.values(), *corpora):
            inside(folder, named, path)
        if not passed:
            failures = "; ".join(map(str, gate.get("failures", []))) or "no reason given"
            raise UserError(
                str(path),
                f"the release failed its gate: {failures}",
                "Train on, or release it again with the gate overridden",
            )
        every = {target: Terms.read(folder / sub) for target, sub in folders.items()}
        return cls(
            name=name,
            # A folder is opened by its path wherever it is; only the store knows the others.
            ref=ref if _is_folder(ref) or not exact else exact,
            root=root,
            contracts={t: terms for t, terms in every.items() if not isinstance(terms, Remote)},
            folders=folders,
            exports={
                target: {n: path for n, path in exports.items() if path.startswith(f"{sub}/")}
                for target, sub in folders.items()
            },
            created=int(path.stat().st_mtime),
            elsewhere={t: of.base_url for t, of in every.items() if isinstance(of, Remote)},
            corpora=tuple(told.get("playground", ())),
        )

    def encoder_folder(self, target: Target) -> Path:
        """Where `target` lies on this machine; a remote root's release is fetched if need be."""
        return _folder(self.ref, self.root) / self.folders[target]

    def export_folder(self, target: Target, format: str) -> Path:
        """The same of an export of `target`."""
        return _folder(self.ref, self.root) / self.exports[target][format]

    def corpus_folder(self, name: str) -> Path:
        """Where one of `corpora` lies on this machine, as `encoder_folder`."""
        return _folder(self.ref, self.root) / "playground" / name

    def model(self, target: Target) -> str:
        return f"{self.name}/{target}"

    def contract(self, model: str) -> Terms:
        """Of NAME/teacher or NAME/student."""
        return next(c for target, c in self.contracts.items() if self.model(target) == model)


def _is_folder(ref: str) -> bool:
    return (Path(ref) / "release.json").is_file()


def _folder(ref: str, root: str) -> Path:
    if _is_folder(ref):
        return Path(ref).resolve()
    from stillroom.storage.artifacts import Store

    return Store(root).find(ref).path
