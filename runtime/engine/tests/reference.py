"""Writes minilm-expected.json: all-MiniLM-L6-v2 in 64-bit numpy, independent of the engine.

    python reference.py MODEL_DIRECTORY texts.json > minilm-expected.json     (needs numpy and tokenizers)

One entry for each text: number of tokens, the first 16 numbers of the normalised vector, and the whole of it in steps of
1/32767, as little-endian 16-bit integers in base64.
"""
import base64, json, math, struct, sys
import numpy as np
from tokenizers import Tokenizer

directory, texts = sys.argv[1], json.load(open(sys.argv[2]))
config = json.load(open(f"{directory}/config.json"))
limit = json.load(open(f"{directory}/sentence_bert_config.json"))["max_seq_length"]
raw = open(f"{directory}/model.safetensors", "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8:8 + size])


def w(name):
    entry = header[name]
    start, end = entry["data_offsets"]
    return np.frombuffer(raw[8 + size + start:8 + size + end], "<f4").reshape(entry["shape"]).astype(np.float64)


def norm(x, name):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + config["layer_norm_eps"]) * w(name + ".weight") + w(name + ".bias")


def dense(x, name):
    return x @ w(name + ".weight").T + w(name + ".bias")


erf = np.vectorize(math.erf)
heads = config["num_attention_heads"]
tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(limit)


def embed(text):
    ids = tokenizer.encode(text).ids
    e = "embeddings."
    x = w(e + "word_embeddings.weight")[ids] + w(e + "position_embeddings.weight")[:len(ids)] + w(e + "token_type_embeddings.weight")[0]
    x = norm(x, e + "LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}."
        split = lambda y: y.reshape(len(ids), heads, -1).transpose(1, 0, 2)
        q, k, v = (split(dense(x, p + "attention.self." + part)) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(dense(mixed, p + "attention.output.dense") + x, p + "attention.output.LayerNorm")
        wide = dense(x, p + "intermediate.dense")
        wide = 0.5 * wide * (1 + erf(wide / math.sqrt(2)))
        x = norm(dense(wide, p + "output.dense") + x, p + "output.LayerNorm")
    vector = x.mean(0)
    return len(ids), vector / np.linalg.norm(vector)


rows = []
for text in texts:
    tokens, vector = embed(text)
    steps = np.rint(vector * 32767).astype("<i2").tobytes()
    first = [round(float(value), 8) for value in vector[:16]]
    rows.append({"tokens": tokens, "first": first, "steps": base64.b64encode(steps).decode()})
print("[" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "]")
