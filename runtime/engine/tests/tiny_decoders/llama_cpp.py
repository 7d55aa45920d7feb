"""Writes llama_cpp.json: the log probabilities that llama.cpp has for the tiny decoders, from GGUF files that are made here.

    KEDGE_TINY_FOLDER=FOLDER cargo test -p kedge-engine --test gguf -- --ignored
    python llama_cpp.py FOLDER > llama_cpp.json     (needs gguf, numpy, safetensors and xllamacpp)

FOLDER/NAME/ is a model in Hugging Face's form, FOLDER/NAME/prompts.json lists of token ids. The names of tensors and keys
are those of the package `gguf`, what is done to them is what llama.cpp's converter does (`conversion/*.py`): heads of
queries and keys of `llama` are permuted, Gemma's norms have one added, experts are stacked. The files are kept, as
FOLDER/NAME/model.gguf. A file's digest stands beside its figures: the engine's test makes the same file by itself. For each
prompt the log probabilities of all words after its last token are kept, in 32-bit floats with keys and values in 32 bits.
"""
import hashlib, json, math, pathlib, sys
import gguf, numpy
from safetensors.numpy import load_file

A = gguf.MODEL_ARCH
ARCHITECTURES = {"Llama": A.LLAMA, "Mistral": A.LLAMA, "Mixtral": A.LLAMA, "Qwen2": A.QWEN2, "Qwen3": A.QWEN3,
                 "Qwen3Moe": A.QWEN3MOE, "Phi3": A.PHI3, "Gemma2": A.GEMMA2, "Gemma3": A.GEMMA3}
# One byte each, and one word of two so that there is a merge.
WORDS = [chr(code) for code in range(33, 33 + 79)] + ["AB"]


def permuted(matrix, heads):
    return matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def metadata(settings, architecture):
    """Keys with their values; the type of a value says the type in the file."""
    k, name = gguf.Keys, gguf.MODEL_ARCH_NAMES[architecture]
    told, theta = {}, settings.get("rope_theta")
    heads, hidden = settings["num_attention_heads"], settings["hidden_size"]
    width = settings.get("head_dim")

    def tell(key, value):
        told[key.format(arch=name)] = value

    tell(k.LLM.CONTEXT_LENGTH, settings["max_position_embeddings"])
    tell(k.LLM.EMBEDDING_LENGTH, hidden)
    tell(k.LLM.BLOCK_COUNT, settings["num_hidden_layers"])
    tell(k.LLM.FEED_FORWARD_LENGTH, settings["intermediate_size"])
    tell(k.Attention.HEAD_COUNT, heads)
    tell(k.Attention.HEAD_COUNT_KV, settings["num_key_value_heads"])
    tell(k.Attention.LAYERNORM_RMS_EPS, float(settings["rms_norm_eps"]))
    if width is not None:
        tell(k.Attention.KEY_LENGTH, width)
        tell(k.Attention.VALUE_LENGTH, width)
    # The converter passes Gemma 2's theta over; llama.cpp's own is 10,000.
    if architecture != A.GEMMA2:
        tell(k.Rope.FREQ_BASE, float(theta))
    if architecture == A.LLAMA:
        tell(k.LLM.VOCAB_SIZE, settings["vocab_size"])
        tell(k.Rope.DIMENSION_COUNT, width or hidden // heads)
    for field, key in [("num_local_experts", k.LLM.EXPERT_COUNT), ("num_experts", k.LLM.EXPERT_COUNT),
                       ("num_experts_per_tok", k.LLM.EXPERT_USED_COUNT),
                       ("moe_intermediate_size", k.LLM.EXPERT_FEED_FORWARD_LENGTH)]:
        if field in settings:
            tell(key, settings[field])
    scaling = settings.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        tell(k.Rope.SCALING_TYPE, kind)
        tell(k.Rope.SCALING_FACTOR, float(scaling["factor"]))
    if kind == "yarn":
        tell(k.Rope.SCALING_ORIG_CTX_LEN, scaling["original_max_position_embeddings"])
    if architecture == A.PHI3:
        share = settings.get("partial_rotary_factor", 1.0)
        tell(k.Rope.DIMENSION_COUNT, int(share * hidden) // heads)
        original = settings.get("original_max_position_embeddings", settings["max_position_embeddings"])
        tell(k.Rope.SCALING_ORIG_CTX_LEN, original)
        # None is written as zero, to tell Phi-4 from others.
        tell(k.Attention.SLIDING_WINDOW, settings.get("sliding_window") or 0)
        if kind == "longrope":
            longer = settings["max_position_embeddings"] / original
            tell(k.Rope.SCALING_ATTN_FACTOR,
                 math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0)
    if architecture in (A.GEMMA2, A.GEMMA3):
        tell(k.Attention.SLIDING_WINDOW, settings["sliding_window"])
        for field, key in [("attn_logit_softcapping", k.LLM.ATTN_LOGIT_SOFTCAPPING),
                           ("final_logit_softcapping", k.LLM.FINAL_LOGIT_SOFTCAPPING)]:
            if field in settings:
                tell(key, float(settings[field]))
        if settings.get("rope_local_base_freq"):
            tell(k.Rope.FREQ_BASE_SWA, float(settings["rope_local_base_freq"]))
    told |= {k.Tokenizer.MODEL: "gpt2", k.Tokenizer.PRE: "default", k.Tokenizer.LIST: WORDS, k.Tokenizer.MERGES: ["A B"],
             k.Tokenizer.TOKEN_TYPE: [1] * len(WORDS), k.Tokenizer.EOS_ID: 1}
    return told


def tensors(folder, settings, architecture):
    """Names as they are in GGUF, and what llama.cpp expects under them."""
    names = gguf.get_tensor_name_map(architecture, settings["num_hidden_layers"])
    heads, keys = settings["num_attention_heads"], settings["num_key_value_heads"]
    found, experts = {}, {}
    for name, values in load_file(folder / "model.safetensors").items():
        if architecture == A.LLAMA and name.endswith("q_proj.weight"):
            values = permuted(values, heads)
        if architecture == A.LLAMA and name.endswith("k_proj.weight"):
            values = permuted(values, keys)
        if architecture in (A.GEMMA2, A.GEMMA3) and name.endswith("norm.weight"):
            values = values + numpy.float32(1)
        if ".experts." in name:
            before, after = name.split(".experts.")
            number, part = after.split(".", 1)
            # Mixtral's are renamed before they are looked up.
            whole = before.removeprefix("model.").replace("block_sparse_moe", "feed_forward") \
                if "block_sparse_moe" in before else before
            experts.setdefault(f"{whole}.experts.{part}", {})[int(number)] = values
            continue
        found[names.get_name(name, (".weight", ".bias"))] = values
    for name, parts in experts.items():
        found[names.get_name(name, (".weight",))] = numpy.stack([parts[number] for number in sorted(parts)])
    scaling = settings.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "llama3":
        width = settings.get("head_dim") or settings["hidden_size"] // heads
        factors = []
        for pair in range(0, width, 2):
            turns = scaling["original_max_position_embeddings"] * settings["rope_theta"] ** (-pair / width) / (2 * math.pi)
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
        found["rope_freqs.weight"] = numpy.array(factors, numpy.float32)
    if kind == "longrope":
        for which in ("long", "short"):
            found[f"rope_factors_{which}.weight"] = numpy.array(scaling[f"{which}_factor"], numpy.float32)
    return found


def write(folder, settings):
    architecture = ARCHITECTURES[settings["architectures"][0].removesuffix("ForCausalLM")]
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    for key, value in sorted(metadata(settings, architecture).items()):
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}[type(value)]
        add(key, value)
    for name, values in sorted(tensors(folder, settings, architecture).items()):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ask(path, prompts):
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx = 256
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.warmup = False
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(options)
    found = []
    for prompt in prompts:
        answer = server.handle_completions({"prompt": prompt, "n_predict": 1, "n_probs": len(WORDS), "temperature": 0,
                                            "cache_prompt": False, "ignore_eos": False})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        [first] = answer["choices"][0]["logprobs"]["content"]
        by_id = {one["id"]: one["logprob"] for one in first["top_logprobs"]}
        assert sorted(by_id) == list(range(len(WORDS))), sorted(by_id)
        found.append([float(f"{by_id[word]:.7g}") for word in range(len(WORDS))])
    return found


if __name__ == "__main__":
    result = {}
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        path = write(folder, json.loads((folder / "config.json").read_text()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        result[folder.name] = {"sha256": digest, "logprobs": ask(path, json.loads((folder / "prompts.json").read_text()))}
    json.dump(result, sys.stdout, separators=(",", ":"))
