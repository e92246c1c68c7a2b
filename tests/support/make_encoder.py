"""An encoder for tests that vary a few fields: `create_encoder` with all options as keywords."""

import dataclasses

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions, Resize


def make_encoder(folder, *, space="s", pooling="mean", **fields):
    """`create_encoder`; fields of ContractOptions and of Resize may be among its keywords."""

    def take_fields(options_class):
        names = {field.name for field in dataclasses.fields(options_class)} & fields.keys()
        return options_class(**{name: fields.pop(name) for name in names})

    resize = take_fields(Resize)
    options = dataclasses.replace(take_fields(ContractOptions), pooling=pooling)
    return create_encoder(str(folder), space=space, options=options, resize=resize, **fields)
