// Vectors by transformers.js: the graph's own, and those that its pipeline pools.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";

const request = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(join(request.library, "package.json"));
const { AutoModel, AutoTokenizer, env, pipeline } = require("@huggingface/transformers");

env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const name = basename(request.folder);
const options = { dtype: request.dtype };

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModel.from_pretrained(name, options);
const { sentence_embedding } = await model(tokenizer(request.texts, { padding: true }));

const extractor = await pipeline("feature-extraction", name, options);
const pooled = await extractor(request.texts, { pooling: request.pooling, normalize: true });
console.log(JSON.stringify({ embedding: sentence_embedding.tolist(), pooled: pooled.tolist() }));
