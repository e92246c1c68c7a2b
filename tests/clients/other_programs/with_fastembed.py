"""Vectors by fastembed of a custom model in a folder."""

import json
import sys

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

request = json.load(sys.stdin)
TextEmbedding.add_custom_model(
    model="exported",
    dim=request["dims"],
    model_file=request["file"],
    output_name="sentence_embedding",
    pooling=PoolingType.DISABLED,
    normalization=False,
    sources=ModelSource(hf="none/none"),
)
model = TextEmbedding("exported", specific_model_path=request["folder"])
print(json.dumps([vector.tolist() for vector in model.embed(request["texts"], batch_size=3)]))
