"""An encoder for tests that vary a few fields: `create_encoder` with all options as keywords."""

import dataclasses

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions, Resize


def make_encoder(folder, *, space="s", pooling="mean", **fields):
    """`create_encoder`; fields of ContractOptions and of Resize may stand among its own."""

    def take(options):
        names = {field.name for field in dataclasses.fields(options)} & fields.keys()
        return options(**{name: fields.pop(name) for name in names})

    resize = take(Resize)
    options = dataclasses.replace(take(ContractOptions), pooling=pooling)
    return create_encoder(str(folder), space=space, options=options, resize=resize, **fields)
