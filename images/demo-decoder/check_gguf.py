#!/usr/bin/env python3
"""Asks llama.cpp (the package xllamacpp, which train.py and eval.py do not need) what model/demo-decoder-Q8_0.gguf says
to the chats of reference.json, and compares prompt tokens and greedy texts."""

import json
import pathlib
import urllib.request

import xllamacpp

from eval import Chat, documents, messages

HERE = pathlib.Path(__file__).parent


def main():
    params = xllamacpp.CommonParams()
    params.model.path = str(HERE / "model" / "demo-decoder-Q8_0.gguf")
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = 2
    server, chat = xllamacpp.Server(params), Chat(HERE / "model")

    def post(path, body):
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request).read())

    docs = documents("held-out")[:300]
    texts = [chat.text(m, True) if (m := messages(d)) else d for d in docs]
    same = sum(post("/tokenize", {"content": t, "add_special": False, "parse_special": True})["tokens"] == chat.ids(t) for t in texts)
    print(f"{same} of {len(texts)} held-out documents are cut into the same tokens")
    for want in json.loads((HERE / "reference.json").read_text())["chats"]:
        rendered = post("/apply-template", {"messages": want["messages"]})["prompt"]
        got = server.handle_chat_completions({"messages": want["messages"], "temperature": 0, "max_tokens": 40, "cache_prompt": False})
        got = json.loads(got) if isinstance(got, (str, bytes)) else got
        text = got["choices"][0]["message"]["content"]
        print(f"template {'the same' if rendered.removeprefix('<|bos|>') == want['prompt'].removeprefix('<|bos|>') else 'DIFFERS: ' + rendered!r}; "
              f"{got['usage']['prompt_tokens']} prompt tokens for {len(want['ids'])}; {'the same' if text == want['greedy_text'] else 'DIFFERS'}: {text!r}")


if __name__ == "__main__":
    main()
