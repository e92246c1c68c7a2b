"""Vectors by sentence-transformers' ONNX backend, and the states of Optimum's own class."""

import json
import sys

from optimum.onnxruntime import ORTModelForFeatureExtraction
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

request = json.load(sys.stdin)
folder, file, texts = request["folder"], request["file"], request["texts"]
model = SentenceTransformer(
    folder, backend="onnx", model_kwargs={"file_name": file, "provider": "CPUExecutionProvider"}
)
tokenizer = AutoTokenizer.from_pretrained(folder)
states = ORTModelForFeatureExtraction.from_pretrained(folder, file_name=file, subfolder="onnx")(
    **tokenizer(texts, padding=True, truncation=True, return_tensors="np")
).last_hidden_state
answer = {
    "query": model.encode_query(texts).tolist(),
    "document": model.encode_document(texts).tolist(),
    "states": states.shape,
}
print(json.dumps(answer))
