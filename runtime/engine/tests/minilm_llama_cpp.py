"""Writes minilm-llama_cpp.json: the vectors that llama.cpp has for all-MiniLM-L6-v2, from GGUF files that are made here.

    python minilm_llama_cpp.py MODEL_DIRECTORY minilm-texts.json FOLDER > minilm-llama_cpp.json
                                                            (needs gguf, numpy, safetensors and xllamacpp)

The names of tensors and keys are those of the package `gguf`, what is done to tokens is what llama.cpp's converter does
(`conversion/bert.py`). The files are kept, as FOLDER/minilm-TYPE.gguf; their digests stand in the answer: the engine's test
makes the same files by itself. Of the 32-bit file, for each text: number of tokens, and the whole vector in steps of
1/32767, as little-endian 16-bit integers in base64; for every tenth text only, to keep the answer small.
"""
import base64, hashlib, json, pathlib, struct, sys
import gguf, numpy
from safetensors.numpy import load_file

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Texts are cut at 256 tokens by the engine and at 512 by llama.cpp; those between are not asked for.
TOKENS_MAX = 256


def metadata(folder):
    k = gguf.Keys
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    words = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[word] for word in words] == list(range(config["vocab_size"]))
    mark = lambda word: word if word in SPECIAL else word[2:] if word.startswith("##") else "\u2581" + word
    kind = gguf.PoolingType.CLS if pooling["pooling_mode_cls_token"] else gguf.PoolingType.MEAN
    return {key.format(arch="bert"): value for key, value in {
        k.LLM.BLOCK_COUNT: config["num_hidden_layers"],
        k.LLM.CONTEXT_LENGTH: config["max_position_embeddings"],
        k.LLM.EMBEDDING_LENGTH: config["hidden_size"],
        k.LLM.FEED_FORWARD_LENGTH: config["intermediate_size"],
        k.Attention.HEAD_COUNT: config["num_attention_heads"],
        k.Attention.LAYERNORM_EPS: float(config["layer_norm_eps"]),
        k.Attention.CAUSAL: False,
        k.LLM.POOLING_TYPE: int(kind),
        k.Tokenizer.TOKEN_TYPE_COUNT: config["type_vocab_size"],
        k.Tokenizer.MODEL: "bert",
        k.Tokenizer.PRE: "default",
        k.Tokenizer.LIST: [mark(word) for word in words],
        k.Tokenizer.TOKEN_TYPE: [3 if word in SPECIAL else 1 for word in words],
        k.Tokenizer.UNK_ID: vocabulary["[UNK]"],
        k.Tokenizer.BOS_ID: vocabulary["[CLS]"],
        k.Tokenizer.SEP_ID: vocabulary["[SEP]"],
        k.Tokenizer.PAD_ID: vocabulary["[PAD]"],
    }.items()}, config["num_hidden_layers"]


def write(folder, path, kind):
    told, layers = metadata(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    writer = gguf.GGUFWriter(path, "bert")
    for key, value in sorted(told.items()):
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}[type(value)]
        add(key, value)
    found = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if not name.startswith("pooler.") and name != "embeddings.position_ids":
            found[names.get_name(name, (".weight", ".bias"))] = values
    for name, values in sorted(found.items()):
        keeps = values.ndim == 1 or name.startswith(("position_embd", "token_types"))
        stored = gguf.GGMLQuantizationType.F32 if keeps else kind
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ask(path, texts):
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx = options.n_batch = options.n_ubatch = 512
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.embedding = True
    options.warmup = False
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(options)
    found = []
    for index, text in enumerate(texts):
        answer = server.handle_embeddings({"input": text, "model": "m"})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if "data" not in answer:
            print(index, answer, file=sys.stderr)
            found.append(None)
            continue
        tokens, vector = answer["usage"]["prompt_tokens"], numpy.array(answer["data"][0]["embedding"])
        vector /= numpy.linalg.norm(vector)
        steps = numpy.round(vector * 32767).astype("<i2").tobytes() if index % 10 == 5 else b""
        found.append({"tokens": tokens, "steps": base64.b64encode(steps).decode()} if tokens <= TOKENS_MAX else None)
    return found


if __name__ == "__main__":
    folder, texts, out = map(pathlib.Path, sys.argv[1:])
    kinds = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
             "q8_0": gguf.GGMLQuantizationType.Q8_0}
    digests = {name: write(folder, out / f"minilm-{name}.gguf", kind) for name, kind in kinds.items()}
    answers = ask(out / "minilm-f32.gguf", json.loads(texts.read_text()))
    json.dump({"sha256": digests, "texts": answers}, sys.stdout, separators=(",", ":"))
