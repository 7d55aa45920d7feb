"""Writes pre_tokenizers.json: how texts are cut under each word that `tokenizer.ggml.pre` may be, by llama.cpp.

    python pre_tokenizers.py > pre_tokenizers.json
                    (made with xllamacpp 2026.10.11549, gguf 0.19.0, regex 2026.11.19, tiktoken 0.14.0, mistral_common 1.13.1)

llama.cpp is given models that are nothing but a tokenizer, and asked for the tokens of texts. The first has every part of
every text as a token, and every way to cut one in two as a merge: so the tokens of a text are the pieces that it was cut into
before pairs were merged. One text is a token that no merge makes: it is whole only where merges are passed over for a piece that
is a token. The second is the demo decoder's tokenizer; of it there are ids.

Two words stand for expressions that llama.cpp only comes near to: theirs are those that the models were made with, out of
`mistral_common` (tekken) and `tiktoken` (gpt-4o's o200k_base), by the package `regex`. Where llama.cpp has other pieces is
told under `otherwise`; of those texts there are no ids.

`begins` tells whether a text begins with the first token where the file does not say so.
"""
import hashlib, importlib.resources, json, pathlib, sys, tempfile, urllib.request
import gguf, numpy, regex, tiktoken_ext.openai_public, xllamacpp

WORDS = [
    "default", "gpt-2", "mellum", "a.x-4.0", "trillion", "smollm", "minerva-7b", "llama-bpe", "llama3", "llama-v3", "falcon3",
    "pixtral", "midm-2.0", "dbrx", "smaug-bpe", "qwen2", "deepseek-r1-qwen", "megrez", "tekken", "gpt-4o",
]
UNMERGED = "zqxj"
TEXTS = [
    # Digits in threes or singly, and others than ASCII's.
    "1234567", " 12 345 6789", "x86_64 v1.2.3", "3.14e10, -5", "\u00bd \u00b2\u00b3 4\u00bd", "\u0663\u0664\u0665\u0666 \u2167",
    "2024-11-29T20:22", "1,000,000",
    # Contractions, small and large.
    "I'll it's we'd", "DON'T WE'VE I'M", "you'Re They'LL", "'s 't 'x", "rock'n'roll '90s", "l'eau d'or", "it\u2019s",
    # Spaces and ends of lines.
    "a\n\nb", "a \n b\r\n\r\nc", "  x   y ", "\t\tz\n ", "end   ", "   \n   \n  end", "a\u00a0\u00a0b\u3000c", "\n", " ", "   ",
    "if x:\n\treturn  1\n", "\r\r\n\n x", " \n1", "1 \n",
    # Punctuation.
    "...!!!", "(foo)[bar]{}", "a--b == c", "$5+<6>^~|`7`", "\"quoted\", no?", "#include <x>", "http://a/b//c", "!\n\n?", "//\n/\n",
    " (a) /b/ ", "a\u00ab\u00bbb\u2026 \u2013c", "x\u20ac5 \u00a35 \u00b0C", "don't-stop!'", "=======",
    # Letters: with accents as one and as two characters, not Latin, without case, modifiers, titlecase; and what is none.
    "\u00c9COLE \u00c9cole", "e\u0301a cafe\u0301", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
    "\u043f\u0440\u0438\u0412\u0415\u0422", "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002", "\u6211\u60f31314\u5929", "\u0928\u092e\u0938\u094d\u0924\u0947 1",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\uc548\ub155 \ud55c\uad6d", "\u0395\u03bb\u03bb\u03b7\u03bd \u0391\u0392\u0393", "\u01c5a\u02b0b", "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f468\u200d\U0001f469 x\U0001f680", "\u2705\U0001f680\U0001f680!", "camelCase HTTPServer", "iPhone XMLHttp", "a\u0308O\u0308U",
    UNMERGED, " " + UNMERGED,
]
DEMO = pathlib.Path(__file__).parents[3] / "images/demo-decoder/model/tokenizer.json"


def letters():
    """The letter that stands for each byte (GPT-2's)."""
    shown = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


LETTERS = letters()


def spelt(text):
    return "".join(LETTERS[byte] for byte in text.encode())


def every_part():
    """The first vocabulary: tokens, their kinds, merges. The first token begins texts."""
    tokens, merges = dict.fromkeys(["<begin>", *LETTERS, spelt(UNMERGED)]), {}

    def join(left, right):
        merges[f"{left} {right}"] = tokens[left + right] = None

    for character in dict.fromkeys("".join(TEXTS)):
        word = spelt(character)
        for end in range(1, len(word)):
            join(word[:end], word[end])
    for text in TEXTS:
        characters = [spelt(character) for character in text]
        for start in range(0 if UNMERGED not in text else len(text), len(text)):
            for end in range(start + 2, len(text) + 1):
                for cut in range(start + 1, end):
                    join("".join(characters[start:cut]), "".join(characters[cut:end]))
    return list(tokens), [3] + [1] * (len(tokens) - 1), list(merges)


def demo():
    told = json.loads(DEMO.read_text())
    tokens = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)
    added = {token["content"] for token in told["added_tokens"]}
    kinds = [3 if token in added else 1 for token in tokens]
    return tokens, kinds, [" ".join(merge) for merge in told["model"]["merges"]]


def write(path, word, tokens, kinds, merges):
    k, width = gguf.Keys, 32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if word is not None:
        writer.add_tokenizer_pre(word)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(tokens), width), "output_norm": width, "blk.0.attn_norm": width, "blk.0.ffn_norm": width}
    shapes |= {f"blk.0.{part}": (width, width)
               for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"]}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(folder, word, vocabulary):
    """Tokens of every text, and whether there is one more that begins it; nothing of words that are refused."""
    path = folder / "m.gguf"
    write(path, word, *vocabulary)
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx = 64
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.warmup = False
    try:
        server = xllamacpp.Server(options)
    except Exception:
        return None, None

    def tokens(text, begin=False):
        asked = json.dumps({"content": text, "add_special": begin, "parse_special": False}).encode()
        request = urllib.request.Request(f"{server.listening_address}/tokenize", asked, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]

    return [tokens(text) for text in TEXTS], tokens("a", True)[0] == 0


def published(word):
    """The pieces of every text by the expression that the models of a word were made with."""
    if word == "tekken":
        file = importlib.resources.files("mistral_common") / "data/tekken_240718.json"
        expression = json.loads(file.read_text())["config"]["pattern"]
    else:
        # Its vocabulary is not asked for.
        tiktoken_ext.openai_public.load_tiktoken_bpe = lambda *_, **__: {}
        expression = tiktoken_ext.openai_public.o200k_base()["pat_str"]
    return [[match.group() for match in regex.finditer(expression, text)] for text in TEXTS]


if __name__ == "__main__":
    bytes_of = {letter: byte for byte, letter in enumerate(LETTERS)}
    whole, small = every_part(), demo()
    as_text = lambda id: bytes(bytes_of[letter] for letter in whole[0][id]).decode()
    kinds = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        assert ask(folder, "no-such-word", small) == (None, None)
        # Without a word llama.cpp warns, and takes the default.
        assert ask(folder, None, small) == ask(folder, "default", small)
        for word in WORDS:
            ids, begins = ask(folder, word, whole)
            pieces = [[as_text(id) for id in text] for text in ids]
            ids, _ = ask(folder, word, small)
            otherwise = []
            if word in ("tekken", "gpt-4o"):
                ours = published(word)
                # The text that is a token stays one where llama.cpp leaves it whole.
                ours = [theirs if UNMERGED in text else own for text, own, theirs in zip(TEXTS, ours, pieces)]
                otherwise = [text for text, own, theirs in zip(TEXTS, ours, pieces) if own != theirs]
                pieces, ids = ours, [None if text in otherwise else own for text, own in zip(TEXTS, ids)]
            found = {"words": [word], "begins": begins, "pieces": pieces, "ids": ids, "otherwise": otherwise}
            same = [kind for kind in kinds if all(kind[key] == found[key] for key in found if key != "words")]
            same[0]["words"].append(word) if same else kinds.append(found)
    digest = hashlib.sha256(DEMO.read_bytes()).hexdigest()
    lines = lambda of: "[\n" + ",\n".join("  " + json.dumps(one) for one in of) + "\n ]"
    cuts = [f'{{"words": {json.dumps(kind["words"])}, "begins": {json.dumps(kind["begins"])},\n'
            f' "otherwise": {json.dumps(kind["otherwise"])},\n "pieces": {lines(kind["pieces"])},\n "ids": {json.dumps(kind["ids"])}}}'
            for kind in kinds]
    print(f'{{"unmerged": {json.dumps(UNMERGED)}, "demo": "{digest}", "texts": {lines(TEXTS)},\n"cuts": [\n' + ",\n".join(cuts) + "\n]}")
