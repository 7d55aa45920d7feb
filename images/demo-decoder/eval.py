#!/usr/bin/env python3
"""Reads model/ with numpy alone and runs it: a forward pass of its own, apart from train.py's, in 64 bit floats.

  eval.py                     perplexity on corpus/held-out.txt, compared with perplexity.json (--dtype float32 is quicker)
  eval.py --gguf FILE         the same with the weights of a GGUF file of this model, read by the package gguf
  eval.py --generate PROMPT   the greedy answer to one user message; --raw goes on with the text as it is
  eval.py --answers           greedy answers to the questions of a held-out sample, compared with the corpus
  eval.py --logits            writes reference.json
"""

import argparse
import json
import pathlib
import random
import re
import struct
import sys

import jinja2
import numpy as np
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
SEPARATOR = "\n=====\n"


def safetensors(path):
    """The tensors of a file whose values are all bf16: the upper halves of 32 bit floats."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            assert t["dtype"] == "BF16", f"{path}: {name} is {t['dtype']}, not BF16"
            a, b = t["data_offsets"]
            half = np.frombuffer(data[8 + size + a:8 + size + b], "<u2").astype(np.uint32)
            out[name] = (half << 16).view(np.float32).reshape(t["shape"])
    return out


class Llama:
    def __init__(self, folder, dtype, f32=None, gguf=None):
        self.c = json.loads((folder / "config.json").read_text())
        weights = unrounded(f32, self.c) if f32 else of_gguf(gguf, self.c) if gguf else safetensors(folder / "model.safetensors")
        self.w = {k: v.astype(dtype) for k, v in weights.items()}
        self.dtype, d = dtype, self.c["head_dim"]
        angle = np.arange(self.c["max_position_embeddings"])[:, None] * self.c["rope_theta"] ** (-np.arange(0, d, 2) / d)
        self.cos, self.sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[name]

    def heads(self, x, name, n, at, turn):
        """A projection, cut into heads: (heads, time, head). With `turn` its halves are rotated by the position."""
        x = (x @ self.w[name].T).reshape(len(x), n, -1).transpose(1, 0, 2)
        if turn:
            a, b = np.split(x, 2, -1)
            cos, sin = self.cos[at:at + x.shape[1]], self.sin[at:at + x.shape[1]]
            x = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        return x

    def __call__(self, ids, cache=None):
        """Logits at each position of `ids`, which go on after what is in `cache` (a dict that is filled)."""
        c, cache = self.c, {} if cache is None else cache
        at, t = cache.get("length", 0), len(ids)
        assert at + t <= c["max_position_embeddings"], "the text is longer than the context window"
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        later = np.arange(at + t) > np.arange(at, at + t)[:, None]
        x = self.w["model.embed_tokens.weight"][ids]
        for i in range(c["num_hidden_layers"]):
            l = f"model.layers.{i}."
            y = self.norm(x, l + "input_layernorm.weight")
            q = self.heads(y, l + "self_attn.q_proj.weight", c["num_attention_heads"], at, True)
            k = self.heads(y, l + "self_attn.k_proj.weight", c["num_key_value_heads"], at, True)
            v = self.heads(y, l + "self_attn.v_proj.weight", c["num_key_value_heads"], at, False)
            if i in cache:
                k, v = np.concatenate([cache[i][0], k], 1), np.concatenate([cache[i][1], v], 1)
            cache[i] = k, v
            scores = q @ np.repeat(k, group, 0).transpose(0, 2, 1) / np.sqrt(c["head_dim"]).astype(self.dtype)
            scores = np.where(later, -np.inf, scores)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True)) @ np.repeat(v, group, 0)
            x = x + mixed.transpose(1, 0, 2).reshape(t, -1) @ self.w[l + "self_attn.o_proj.weight"].T
            y = self.norm(x, l + "post_attention_layernorm.weight")
            gate = y @ self.w[l + "mlp.gate_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ self.w[l + "mlp.up_proj.weight"].T)) @ self.w[l + "mlp.down_proj.weight"].T
        cache["length"] = at + t
        return self.norm(x, "model.norm.weight") @ self.w["model.embed_tokens.weight"].T

    def greedy(self, ids, most):
        cache, out = {}, []
        logits = self(ids, cache)[-1]
        while len(out) < most and cache["length"] < self.c["max_position_embeddings"]:
            out.append(int(logits.argmax()))
            if out[-1] == self.c["eos_token_id"]:
                break
            logits = self(out[-1:], cache)[-1]
        return out


def unrounded(path, c):
    """The weights that train.py --f32 kept, under their names in model.safetensors."""
    p = np.load(path)
    names = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
             "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    out = {f"model.layers.{i}.{n}.weight": p[k][i].T for k, n in names.items() for i in range(c["num_hidden_layers"])}
    return out | {"model.embed_tokens.weight": p["embed"], "model.norm.weight": p["norm"]}


def of_gguf(path, c):
    """The weights of a GGUF file under their names in model.safetensors: what gguf_out.py does, backwards."""
    import gguf
    from gguf_out import NAMES
    parts, out = {v: k for k, v in NAMES.items()}, {}
    for t in gguf.GGUFReader(path).tensors:
        w = gguf.quants.dequantize(t.data, t.tensor_type)
        layer, _, part = t.name.removeprefix("blk.").removesuffix(".weight").partition(".")
        if part in ("attn_q", "attn_k"):
            w = w.reshape(c["num_attention_heads" if part == "attn_q" else "num_key_value_heads"], -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        out[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}.get(layer) or f"model.layers.{layer}.{parts[part]}.weight"] = w
    return out


class Chat:
    def __init__(self, folder):
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.config = json.loads((folder / "tokenizer_config.json").read_text())
        env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        self.template = env.from_string(self.config["chat_template"])

    def text(self, messages, answer):
        return self.template.render(messages=messages, add_generation_prompt=answer, bos_token=self.config["bos_token"], eos_token=self.config["eos_token"])

    def ids(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids


def messages(doc):
    """A chat document as messages, or None for prose (the form is told in README.md)."""
    if not doc.startswith(("User: ", "System: ")):
        return None
    out = []
    for line in doc.split("\n"):
        who, _, rest = line.partition(": ")
        if who in ("User", "Assistant", "System"):
            out.append({"role": who.lower(), "content": rest})
        else:
            out[-1]["content"] += "\n" + line
    return out


def documents(split):
    return (HERE / "corpus" / f"{split}.txt").read_text()[:-1].split(SEPARATOR)


def perplexity(model, chat):
    """Over every token but the first of each document; then by part. A word of an answer is one after <|assistant|>, up
    to and with <|end|>. Returns the first and the number of tokens."""
    speakers = [chat.tok.token_to_id(f"<|{x}|>") for x in ("system", "user", "assistant")]
    sums = {}
    for doc in documents("held-out"):
        said = messages(doc)
        ids = chat.ids(chat.text(said, False) if said else "<|bos|>" + doc + "<|end|>")
        logits = model(ids[:-1]).astype(np.float64)
        top = logits.max(-1, keepdims=True)
        logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        nll, speaker = -logp[np.arange(len(ids) - 1), ids[1:]], None
        for token, n in zip(ids[1:], nll):
            parts = ["all"]
            if token in speakers:
                speaker = token
            else:
                parts += ["all but the marks of speakers", "prose" if not said else "answers" if speaker == speakers[2] else "questions and passages"]
            for p in parts:
                a = sums.setdefault(p, [0, 0.0])
                a[0], a[1] = a[0] + 1, a[1] + n
    for p, (n, total) in sums.items():
        print(f"perplexity {np.exp(total / n):.4f} on {n} tokens: {p}")
    n, total = sums["all"]
    return np.exp(total / n), n


def answers(model, chat, most):
    """Greedy answers to held-out questions beside those of the corpus. `right` has the numbers of the corpus's answer and
    most of its words, without the place; the corpus has several ways to say the same, so this counts a little too few."""
    docs = [m for m in map(messages, documents("held-out")) if m]
    random.Random(1).shuffle(docs)
    words = lambda s: set(re.findall(r"\d+|[a-z]{4,}", re.sub(r",? ?[Aa]t [A-Z]\w+ [A-Z]\w+,?", "", s).lower())) - {"because", "there", "that", "cause", "were", "been", "have"}
    number = lambda s: re.findall(r"\d+", s)
    rows = {}
    for said in docs[:most]:
        at = next(i for i, m in enumerate(said) if m["role"] == "assistant")
        question, want = said[at - 1]["content"], said[at]["content"]
        got = chat.tok.decode(model.greedy(chat.ids(chat.text(said[:at], True)), 80))
        kind = "sums" if len(number(question)) == 2 and len(question) < 140 and len(number(want)) in (2, 3) else \
            "words and talk" if len(question) < 110 and not number(question) else "texts, a number asked" if number(want) else "texts, no number asked"
        good = len(words(want) & words(got)) >= .75 * len(words(want))
        good = number(got)[-1:] == number(want)[-1:] if kind == "sums" else good and set(number(got)) >= set(number(want)[:1])
        row = rows.setdefault(kind, [0, 0, 0])
        row[:] = row[0] + 1, row[1] + (got == want), row[2] + good
        print(f"--- {question}\n    corpus: {want}\n    model:  {got}")
    for kind, (n, same, right) in sorted(rows.items()):
        print(f"{kind}: {n} questions, {right} right, {same} of them word for word as in the corpus")


PASSAGE = "It is Tuesday at the clinic at Alder Quay. There were 31 boxes of masks in the supply room. The nurse used 12 boxes of masks, so that 19 of the 31 were left.\n"
PROMPTS = [[{"role": "user", "content": "What is a pod?"}],
           [{"role": "system", "content": "You are the demo model of Kedge. Answer shortly."}, {"role": "user", "content": "Who are you?"}],
           [{"role": "user", "content": PASSAGE + "How many boxes are left?"}]]
TEXTS = ["On Monday the driver brought 12 boxes of milk", "Kubernetes is", "The network was cut because"]


def reference(model, chat):
    """Token ids and logits of fixed texts, and greedy answers: what another runtime must compute too."""
    out = {"about": "Written by eval.py --logits from model.safetensors in 64 bit floats. top: the ten highest logits as [id, logit].", "texts": [], "chats": []}
    for text in TEXTS:
        ids = chat.tok.encode(text).ids
        logits = model(ids)
        rows = [{"position": i, "top": [[int(k), round(float(logits[i][k]), 4)] for k in np.argsort(-logits[i])[:10]]} for i in sorted({0, len(ids) // 2, len(ids) - 1})]
        out["texts"].append({"text": text, "ids": ids, "logits": rows})
    for said in PROMPTS:
        text = chat.text(said, True)
        ids = chat.ids(text)
        got = model.greedy(ids, 40)
        top = model(ids)[-1]
        out["chats"].append({"messages": said, "prompt": text, "ids": ids, "top": [[int(k), round(float(top[k]), 4)] for k in np.argsort(-top)[:10]],
                             "greedy_ids": got, "greedy_text": chat.tok.decode(got)})
    lines = json.dumps(out, indent=1)
    (HERE / "reference.json").write_text(flat(lines) + "\n")


def flat(text):
    """Lists of numbers on one line."""
    return re.sub(r"\[[\d\s,.\-\[\]]+\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--generate", metavar="PROMPT")
    args.add_argument("--raw", action="store_true")
    args.add_argument("--most", type=int, default=80, help="tokens to generate, or questions to ask")
    args.add_argument("--answers", action="store_true")
    args.add_argument("--logits", action="store_true")
    args.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    args.add_argument("--f32", metavar="FILE", help="weights kept by train.py --f32 in place of model.safetensors")
    args.add_argument("--gguf", metavar="FILE", help="weights of a GGUF file in place of model.safetensors")
    args = args.parse_args()
    model, chat = Llama(HERE / "model", np.dtype(args.dtype), args.f32, args.gguf), Chat(HERE / "model")
    if args.generate is not None:
        ids = chat.tok.encode(args.generate).ids if args.raw else chat.ids(chat.text([{"role": "user", "content": args.generate}], True))
        print(chat.tok.decode(model.greedy(ids, args.most)))
    elif args.answers:
        answers(model, chat, args.most)
    elif args.logits:
        reference(model, chat)
    else:
        found, tokens = perplexity(model, chat)
        committed = json.loads((HERE / "perplexity.json").read_text())
        exact = committed["stored as"]["F32"]
        if args.f32 or args.gguf:
            print(f"{found / exact:.4f} times the committed {exact} of model.safetensors")
        elif tokens != committed["tokens"] or abs(found - exact) > 0.0002:
            sys.exit(f"perplexity.json says {exact} on {committed['tokens']} tokens")


if __name__ == "__main__":
    main()
