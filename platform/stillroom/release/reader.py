"""Reads a release, which describes itself in release.json: no torch, no Ray."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stillroom.encoders.contract import ApiContract, BaseContract
from stillroom.encoders.safe_read import path_inside
from stillroom.errors import UserError
from stillroom.storage.manifest import MANIFEST, verify

# An encoder of a release, or the only encoder of a `SingleModel`.
Target = Literal["teacher", "student", "model"]
TARGETS: tuple[Target, ...] = ("teacher", "student")  # of a release
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # no slash: a path with an = is a path


@dataclass(frozen=True)
class Release:
    """A release's identity and contracts; small enough to be sent to every replica.

    Attributes:
        ref: exact reference, which a replica on another machine opens.
        contracts: of the encoders that can be served.
        folders: of each encoder, inside the release's folder.
        exports: of each encoder: format → folder, inside the release's folder. An encoder that is
            an export itself has its own folder there.
        created: Unix seconds.
        api_urls: of encoders that are models behind an API, and are not served here.
        corpora: names of the corpora for the playground.
    """

    name: str
    ref: str
    root: str
    contracts: dict[Target, BaseContract]
    folders: dict[Target, str]
    exports: dict[Target, dict[str, str]]
    created: int
    api_urls: dict[Target, str]
    corpora: tuple[str, ...] = ()

    @classmethod
    def open(cls, ref: str, root: str) -> "Release":
        """Read a release from a folder, or from `root` by reference (`release/quickstart`).

        With the prefix `NAME=`, the release is served under that name, so that two releases of one
        recipe can be served together.

        Raises:
            UserError: when it is missing, altered, not a release, or failed its gate.
        """
        alias, ref = split_alias(ref)
        if alias is not None:
            return replace(cls.open(ref, root), name=alias)
        folder = _find_folder(ref, root)
        if (folder / MANIFEST).is_file():  # a copy from a remote root has been verified
            verify(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        path = folder / "release.json"
        content = _ReleaseFile.read(path)
        content.check(folder, path)
        contracts = {t: BaseContract.read(folder / sub) for t, sub in content.folders.items()}
        return cls(
            name=content.name,
            # A folder is opened by its path, wherever it is; only the store knows references.
            ref=ref if _is_folder(ref) or not content.ref else content.ref,
            root=root,
            contracts={t: c for t, c in contracts.items() if not isinstance(c, ApiContract)},
            folders=content.folders,
            exports={target: content.exports_of(target) for target in content.folders},
            created=int(path.stat().st_mtime),
            api_urls={t: c.base_url for t, c in contracts.items() if isinstance(c, ApiContract)},
            corpora=content.corpora,
        )

    @property
    def folder(self) -> Path:
        """The release's folder on this machine; downloads a remote root's release if needed."""
        return _find_folder(self.ref, self.root)

    def encoder_folder(self, target: Target) -> Path:
        """The encoder's folder on this machine; see `folder`."""
        return self.folder / self.folders[target]

    def own_format(self, target: Target) -> str | None:
        """The format of an encoder that is an export itself; None where it has weights."""
        folder = self.folders[target]
        return next((f for f, path in self.exports[target].items() if path == folder), None)

    def export_folder(self, target: Target, format: str) -> Path:
        """The folder of the encoder's export on this machine; see `folder`."""
        return self.folder / self.exports[target][format]

    def corpus_folder(self, name: str) -> Path:
        """The folder of one of `corpora` on this machine; see `folder`."""
        return self.folder / "playground" / name

    def encoder_name(self, target: Target) -> str:
        """NAME/teacher or NAME/student, as clients and the router name the encoder."""
        return f"{self.name}/{target}"

    def contract(self, encoder_name: str) -> BaseContract:
        """The contract of NAME/teacher or NAME/student."""
        return next(c for t, c in self.contracts.items() if self.encoder_name(t) == encoder_name)


@dataclass(frozen=True)
class _ReleaseFile:
    """The content of release.json.

    Attributes:
        exports: format → folder.
        formats: of encoders that are exports themselves.
        failures: of the gate; None: it passed, or was overridden.
    """

    name: str
    ref: str | None
    folders: dict[Target, str]
    exports: dict[str, str]
    formats: dict[Target, str]
    corpora: tuple[str, ...]
    failures: list[Any] | None

    @classmethod
    def read(cls, path: Path) -> "_ReleaseFile":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            gate, models = content["gate"], content["models"]
            passed = gate["passed"] or gate.get("overridden", False)
            exports = content.get("exports", {})
            return cls(
                name=content["name"],
                ref=content.get("ref"),
                folders={target: models[target] for target in TARGETS if target in models},
                exports={format: export["folder"] for format, export in exports.items()},
                formats=dict(content.get("formats", {})),
                corpora=tuple(content.get("playground", ())),
                failures=None if passed else list(gate.get("failures", [])),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                str(path), f"not a release ({error!r})", "Name the artifact of a release stage"
            ) from error

    def exports_of(self, target: Target) -> dict[str, str]:
        """Format → folder, of the exports that an encoder has or is."""
        folder = self.folders[target]
        exports = {f: path for f, path in self.exports.items() if path.startswith(f"{folder}/")}
        if target in self.formats:
            exports[self.formats[target]] = folder
        return exports

    def check(self, folder: Path, path: Path) -> None:
        """Raise UserError for a path outside the release's folder, or a failed gate."""
        corpora = [f"playground/{corpus}" for corpus in self.corpora]
        for inner in (*self.folders.values(), *self.exports.values(), *corpora):
            path_inside(folder, inner, path)
        if self.failures is not None:
            failures = "; ".join(map(str, self.failures)) or "no reason given"
            raise UserError(
                str(path),
                f"the release failed its gate: {failures}",
                "Train longer, or release it again with the gate overridden",
            )


def split_alias(ref: str) -> tuple[str | None, str]:
    """(NAME, the rest) of `NAME=…`; (None, all) of a reference without a name."""
    alias, equals, rest = ref.partition("=")
    return (alias, rest) if equals and ALIAS.fullmatch(alias) else (None, ref)


def is_release(ref: str) -> bool:
    """Whether a reference without a name means a release, which may be missing, or else a model."""
    return _is_folder(ref) or (ref.startswith("release/") and not Path(ref).exists())


def _is_folder(ref: str) -> bool:
    return (Path(ref) / "release.json").is_file()


def _find_folder(ref: str, root: str) -> Path:
    if _is_folder(ref):
        return Path(ref).resolve()
    from stillroom.storage.artifacts import Store

    return Store(root).find(ref).path
