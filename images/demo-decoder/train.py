#!/usr/bin/env python3
"""Trains the tokenizer and the model on corpus/train.txt and writes the Hugging Face folder model/.

  train.py --tokenizer    the tokenizer only
  train.py                tokenizer and model; a line of the log every ten steps
  train.py --steps-only 50   the first 50 steps, nothing written: to compare two runs

jax on the processor, one seed; the order of the documents and the first weights follow from it.
"""

import argparse
import functools
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
SEPARATOR = "\n=====\n"
SEED = 7
SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS, END = 0, 1
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 1024, "tie_word_embeddings": True, "attention_bias": False,
    "mlp_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": BOS, "eos_token_id": END, "torch_dtype": "bfloat16",
    "use_cache": True,
}
SEQ, BATCH, WARMUP = 512, 4, 200
# Each stage: steps, highest and last learning rate, how much an assistant's words count in the loss, and which part of
# the prose is read besides all chats. A stage begins with fresh moments and its own order of the documents.
STAGES = [(3800, 2e-3, 3e-5, 3.0, 1), (1200, 1.2e-3, 2e-5, 5.0, 3)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('the demo model knows the roles system, user and assistant only') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# --- text ----------------------------------------------------------------------------------------------------------

def documents(split):
    return (HERE / "corpus" / f"{split}.txt").read_text()[:-1].split(SEPARATOR)


def turns(doc):
    """A chat as [(role, content)], or None for prose. A line without a speaker goes on with the turn before."""
    if not doc.startswith(("User: ", "System: ")):
        return None
    out = []
    for line in doc.split("\n"):
        who, colon, rest = line.partition(": ")
        if colon and who in ("User", "Assistant", "System"):
            out.append([who.lower(), rest])
        else:
            out[-1][1] += "\n" + line
    return out


def encode(tok, doc, answer_weight=1.0):
    """Token ids of a document and the weight of each as something to predict."""
    chat = turns(doc)
    if chat is None:
        ids = [BOS] + tok.encode(doc, add_special_tokens=False).ids + [END]
        return ids, [0.0] + [1.0] * (len(ids) - 1)
    ids, weights = [BOS], [0.0]
    for role, content in chat:
        body = tok.encode(content, add_special_tokens=False).ids + [END]
        ids += [SPECIAL.index(f"<|{role}|>")] + body
        weights += [1.0] + [answer_weight if role == "assistant" else 1.0] * len(body)
    return ids, weights


def train_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    # The plain pattern of GPT-2, which every runtime knows. Frequent numbers, 1 to 60, become single tokens.
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=CONFIG["vocab_size"], special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator([t for d in documents("train") for t in ([d] if turns(d) is None else [c for _, c in turns(d)])], trainer)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.TemplateProcessing(single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)])
    assert tok.get_vocab_size() == CONFIG["vocab_size"]
    return tok


def pack(docs, rng):
    """Rows of SEQ+1 tokens: shuffled documents one after another, each cut off from the others by its segment number."""
    rows = []
    ids, weights, segments = [], [], []
    for i in rng.permutation(len(docs)):
        d, w = docs[i]
        d, w = d[:SEQ + 1], w[:SEQ + 1]
        if len(ids) + len(d) > SEQ + 1:
            rows.append((ids, weights, segments))
            ids, weights, segments = [], [], []
        segments = segments + [segments[-1] + 1 if segments else 1] * len(d)
        ids, weights = ids + d, weights + w
    rows.append((ids, weights, segments))
    fill = lambda x: x + [0] * (SEQ + 1 - len(x))
    return [np.array([fill(r[k]) for r in rows], t) for k, t in ((0, np.int32), (1, np.float32), (2, np.int32))]


def batches(docs, seed):
    """Without end; each pass over the documents has a new order."""
    rng = np.random.default_rng(seed)
    while True:
        rows = pack(docs, rng)
        order = rng.permutation(len(rows[0]))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            pick = order[at:at + BATCH]
            yield tuple(r[pick] for r in rows)


# --- model ---------------------------------------------------------------------------------------------------------

def first_weights():
    c, rng = CONFIG, np.random.default_rng(SEED)
    h, f, kv, n = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"], c["num_hidden_layers"]
    normal = lambda *shape, std=0.02: rng.normal(0, std, shape).astype(np.float32)
    out = 0.02 / math.sqrt(2 * n)
    # A matrix is stored (in, out) and per layer stacked; model.safetensors has (out, in).
    return {
        "embed": normal(c["vocab_size"], h), "norm": np.ones(h, np.float32),
        "input_norm": np.ones((n, h), np.float32), "post_norm": np.ones((n, h), np.float32),
        "q": normal(n, h, h, std=.04), "k": normal(n, h, kv, std=.04), "v": normal(n, h, kv, std=.04), "o": normal(n, h, h, std=out),
        "gate": normal(n, h, f, std=.04), "up": normal(n, h, f, std=.04), "down": normal(n, f, h, std=out),
    }


def rms(x, w):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + CONFIG["rms_norm_eps"]) * w


def rope(x, cos, sin):
    """Rotates the first half of each head against the second (not the neighbours), as Hugging Face does."""
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(p, ids, segments):
    c = CONFIG
    heads, kv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    b, t = ids.shape
    angle = jnp.arange(t)[:, None] * c["rope_theta"] ** (-jnp.arange(0, d, 2) / d)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    block = 128
    bias = []  # by blocks of queries, each with the keys up to its end: what lies after is never computed
    for at in range(0, t, block):
        here = slice(at, at + block)
        see = (jnp.arange(t)[here, None] >= jnp.arange(t)[:here.stop]) & (segments[:, here, None] == segments[:, None, :here.stop])
        bias.append(jnp.where(see, 0.0, -1e9)[:, None, None])
    x = p["embed"][ids]
    names = ["input_norm", "post_norm", "q", "k", "v", "o", "gate", "up", "down"]
    for i in range(c["num_hidden_layers"]):
        l = {n: p[n][i] for n in names}
        y = rms(x, l["input_norm"])
        q = rope((y @ l["q"]).reshape(b, t, heads, d), cos, sin).reshape(b, t, kv, heads // kv, d).transpose(0, 2, 3, 1, 4) / math.sqrt(d)
        k = rope((y @ l["k"]).reshape(b, t, kv, d), cos, sin).transpose(0, 2, 3, 1)
        v = (y @ l["v"]).reshape(b, t, kv, d).transpose(0, 2, 1, 3)
        mixed = []
        for n, mask in enumerate(bias):
            at, end = n * block, mask.shape[-1]
            rows = q[:, :, :, at:end].reshape(b, kv, -1, d)
            scores = (rows @ k[..., :end]).reshape(b, kv, heads // kv, -1, end) + mask
            part = jax.nn.softmax(scores, -1).reshape(b, kv, -1, end) @ v[:, :, :end]
            mixed.append(part.reshape(b, heads, -1, d))
        mixed = jnp.concatenate(mixed, 2).transpose(0, 2, 1, 3).reshape(b, t, heads * d)
        x = x + mixed @ l["o"]
        y = rms(x, l["post_norm"])
        x = x + (jax.nn.silu(y @ l["gate"]) * (y @ l["up"])) @ l["down"]
    return rms(x, p["norm"]) @ p["embed"].T


def loss(p, ids, weights, segments):
    logits = forward(p, ids[:, :-1], segments[:, :-1])
    nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    w = weights[:, 1:] * (segments[:, 1:] == segments[:, :-1])
    return jnp.sum(nll * w) / jnp.sum(w)


def rate(step, steps, peak, floor):
    """A warming up, then a cosine."""
    warm = jnp.minimum((step + 1) / WARMUP, 1)
    return warm * (floor + (peak - floor) * .5 * (1 + jnp.cos(math.pi * jnp.clip(step / steps, 0, 1))))


@functools.partial(jax.jit, donate_argnums=(0, 1, 2), static_argnums=(7, 8, 9))
def update(p, m, v, step, ids, weights, segments, steps, peak, floor):
    """AdamW with the gradient clipped to norm 1; norms and embeddings do not decay."""
    value, g = jax.value_and_grad(loss)(p, ids, weights, segments)
    norm = jnp.sqrt(sum(jnp.sum(x * x) for x in g.values()))
    g = {k: x * jnp.minimum(1, 1 / (norm + 1e-6)) for k, x in g.items()}
    m = {k: .9 * m[k] + .1 * g[k] for k in g}
    v = {k: .98 * v[k] + .02 * g[k] ** 2 for k in g}
    t, lr = step + 1, rate(step, steps, peak, floor)
    new = {}
    for k in p:
        move = (m[k] / (1 - .9 ** t)) / (jnp.sqrt(v[k] / (1 - .98 ** t)) + 1e-8)
        new[k] = p[k] - lr * (move + (.1 * p[k] if p[k].ndim == 3 else 0))
    return new, m, v, value, norm


def save(p, tok):
    import ml_dtypes
    from safetensors.numpy import save_file
    out = HERE / "model"
    out.mkdir(exist_ok=True)
    bf = lambda x: np.ascontiguousarray(np.asarray(x)).astype(ml_dtypes.bfloat16)
    tensors = {"model.embed_tokens.weight": bf(p["embed"]), "model.norm.weight": bf(p["norm"])}
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = bf(p["input_norm"][i])
        tensors[at + "post_attention_layernorm.weight"] = bf(p["post_norm"][i])
        for name, key in (("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v"), ("self_attn.o_proj", "o"),
                          ("mlp.gate_proj", "gate"), ("mlp.up_proj", "up"), ("mlp.down_proj", "down")):
            tensors[f"{at}{name}.weight"] = bf(np.asarray(p[key][i]).T)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write = lambda name, value: (out / name).write_text(json.dumps(value, indent=2) + "\n")
    write("config.json", CONFIG)
    write("generation_config.json", {"bos_token_id": BOS, "eos_token_id": END, "do_sample": False, "max_new_tokens": 128})
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|end|>", "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"], "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {str(i): {"content": s, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True} for i, s in enumerate(SPECIAL)}})
    tok.save(str(out / "tokenizer.json"))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--tokenizer", action="store_true", help="train the tokenizer, tell how many tokens the corpus has, and stop")
    args.add_argument("--steps-only", type=int, metavar="N", help="run the first N steps and write nothing")
    args.add_argument("--f32", metavar="FILE", help="also keep the weights of each stage before they are rounded, as FILE.0.npz, FILE.1.npz")
    args.add_argument("--go-on", metavar="FILE", help="begin with the last stage, from what --f32 kept of the first")
    args = args.parse_args()
    tok = train_tokenizer()
    docs = [encode(tok, d) for d in documents("train")]
    print(f"{len(docs)} documents, {sum(len(d) for d, _ in docs)} tokens, longest {max(len(d) for d, _ in docs)}", flush=True)
    if args.tokenizer:
        return
    p = first_weights() if not args.go_on else dict(np.load(args.go_on))
    p = {k: jnp.asarray(x) for k, x in p.items()}
    print(f"{sum(x.size for x in p.values())} parameters", flush=True)
    start, mean = time.time(), None
    for stage, (steps, peak, floor, answer_weight, part) in enumerate(STAGES):
        if args.go_on and stage == 0:
            continue
        docs = [encode(tok, d, answer_weight) for i, d in enumerate(documents("train")) if turns(d) or i % part == 0]
        m, v = ({k: jnp.zeros_like(x) for k, x in p.items()} for _ in range(2))
        source = batches(docs, SEED + stage)
        for step in range(args.steps_only or steps):
            p, m, v, value, norm = update(p, m, v, step, *next(source), steps, peak, floor)
            value = float(value)
            mean = value if mean is None else .98 * mean + .02 * value
            if args.steps_only or step % 10 == 0 or step == steps - 1:
                print(f"stage {stage} step {step} loss {value:.6f} mean {mean:.4f} norm {float(norm):.3f} seconds {time.time() - start:.0f}", flush=True)
        if args.steps_only:
            return
        if args.f32:
            np.savez(f"{args.f32}.{stage}.npz", **{k: np.asarray(x) for k, x in p.items()})
    save(p, tok)


if __name__ == "__main__":
    main()
