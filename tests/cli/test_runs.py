"""Pruning keeps what is in use."""

from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.storage.artifacts import Store


def publish(store, stage, key, inputs=None):
    with store.draft(stage, "small", key) as draft:
        (draft.path / "file").write_text(key)
        draft.publish({"stage": stage, "inputs": inputs or {}})
    log = store.local_folder / ".logs" / f"{stage}-small-{key}" / "events"
    log.parent.mkdir(parents=True)
    log.touch()


def test_prune_keeps_the_newest_artifacts_and_all_that_a_release_was_made_from(tmp_path):
    store = Store(str(tmp_path))
    publish(store, "teacher", "released")
    publish(store, "release", "only", {"teacher": "released"})
    publish(store, "corpus", "shared")
    publish(store, "teacher", "replaced", {"corpus": "shared"})
    publish(store, "teacher", "newest", {"corpus": "shared"})
    done = CliRunner().invoke(app, ["runs", "prune", "--yes", "--root", str(tmp_path)])
    assert done.exit_code == 0 and "teacher/small-replaced" in done.output
    remaining = {artifact.ref for artifact in store.list_artifacts()}
    assert remaining == {
        "teacher/small-released", "teacher/small-newest", "release/small-only",
        "corpus/small-shared",
    }  # fmt: skip
    logs = {folder.name for folder in (tmp_path / ".logs").iterdir()}
    assert logs == {ref.replace("/", "-") for ref in remaining}
