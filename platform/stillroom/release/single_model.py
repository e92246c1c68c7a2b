"""A model that is served as it stands, without a release around it: no torch, no Ray."""

from dataclasses import dataclass
from pathlib import Path

from stillroom.encoders.contract import Pooling
from stillroom.encoders.model_names import locate_model, model_fingerprint, resolve_artifact_name
from stillroom.errors import UserError
from stillroom.release.reader import Release, Target
from stillroom.storage.artifacts import Store


@dataclass(frozen=True, kw_only=True)
class SingleModel(Release):
    """Served like a release; its only encoder has the same name as the whole.

    Its `ref` names the model on every machine: a hub id, `package:…`, `random:…`, the absolute path
    of a folder, or the exact name of an artifact under the root.

    Attributes:
        fingerprint: of the files that the application was deployed with.
        pooling: of a plain model.
    """

    fingerprint: str
    pooling: Pooling | None = None

    def encoder_name(self, target: Target) -> str:
        """The model's own name."""
        return self.name

    @property
    def folder(self) -> Path:
        """The model's folder on this machine; raises as `source` does."""
        return locate_model(self.source())

    def source(self) -> str:
        """The model on this machine, as `load_encoder` takes it.

        Raises:
            UserError: when it has other files than where the application was deployed.
        """
        source = resolve_artifact_name(self.ref, Store(self.root))
        if model_fingerprint(source) != self.fingerprint:
            raise UserError(
                self.ref,
                "has other files here than where the application was deployed",
                "Deploy again, with the same files on every machine",
            )
        return source
