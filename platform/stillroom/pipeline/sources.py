"""Fingerprints of a recipe's external inputs: files, folders and models."""

from pathlib import Path

from stillroom.config.corpus import DocstringSource, DocumentSource
from stillroom.config.recipe import Recipe
from stillroom.data.readers.docstrings import environment_fingerprint
from stillroom.data.readers.locations import (
    DATA_EXTENSIONS,
    DOCUMENT_EXTENSIONS,
    content_hash,
    fingerprint,
)
from stillroom.data.readers.machine_texts import machine_fingerprint
from stillroom.encoders.model_names import model_fingerprint, resolve_artifact_name
from stillroom.errors import UserError
from stillroom.storage.artifacts import Store


def corpus_sources(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of the corpus's inputs, by name.

    Raises:
        UserError: when a file or model is missing.
    """
    # Their order matters: a text in several sources belongs to the first. The JSON of a key has no
    # order, so the list is a separate source.
    sources = {"the list of sources": ", ".join(recipe.corpus.sources)}
    for name, source in recipe.corpus.sources.items():
        if isinstance(source, DocstringSource):
            try:
                sources[f"sources.{name}"] = environment_fingerprint(source.packages)
            except UserError as error:
                where = f"corpus.sources.{name}.{error.where}"
                raise UserError(where, error.problem, error.fix) from None
        is_documents = isinstance(source, DocumentSource)
        extensions = DOCUMENT_EXTENSIONS if is_documents else DATA_EXTENSIONS
        for location in source.locations():
            sources[location] = fingerprint(location, extensions)
        if isinstance(source, DocumentSource):
            sources[f"sources.{name}.tokenizer"] = model_fingerprint(source.tokenizer)
    for name, folder in recipe.corpus.evaluation.items():
        sources[f"evaluation.{name}"] = content_hash(Path(folder))
    return sources


def general_sources(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of what general texts are gathered from; none where the recipe has none.

    Raises:
        UserError: when a file is missing.
    """
    texts = recipe.corpus.texts
    if texts is None:
        return {}
    extensions = (*DOCUMENT_EXTENSIONS, *DATA_EXTENSIONS)
    return {
        "texts": machine_fingerprint(texts.sources),
        **{f"texts.{file}": fingerprint(file, extensions) for file in texts.files},
    }


def guard_sources(recipe: Recipe) -> dict[str, str]:
    """The fingerprint of the guards that the recipe names.

    Made ones have none: they are measured on alone, and an update of the machine's packages must
    not make a corpus anew, and a teacher with it. The corpus says what it has.

    Raises:
        UserError: when the folder is missing.
    """
    guards = recipe.evaluation.guards
    return {} if guards is None else {"guards": content_hash(Path(guards))}


def teacher_sources(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of the teacher's base or members. An API has none: its section determines
    everything.

    Raises:
        UserError: when a model is missing.
    """
    if recipe.teacher.base is not None:
        return {"base": model_fingerprint(recipe.teacher.base)}
    store = Store(recipe.root)
    return {
        f"members.{number}": model_fingerprint(resolve_artifact_name(member.base, store))
        for number, member in enumerate(recipe.teacher.members or ())
    }
