"""Writes reference.json: the logits of the tiny decoders by transformers, in 64-bit floats, independent of the engine.

    KEDGE_TINY_FOLDER=FOLDER cargo test -p kedge-engine --test decoders -- --ignored
    python reference.py FOLDER > reference.json     (needs torch and transformers 5)

FOLDER/NAME/ is a model in Hugging Face's form, FOLDER/NAME/prompts.json lists of token ids; for each the logits after its
last token are kept.
"""
import json, pathlib, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM

KINDS = {"Llama": "llama", "Mistral": "mistral", "Mixtral": "mixtral", "Qwen2": "qwen2", "Qwen3": "qwen3",
         "Qwen3Moe": "qwen3_moe", "Phi3": "phi3", "Gemma2": "gemma2", "Gemma3": "gemma3_text"}
result = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    settings = json.loads((folder / "config.json").read_text())
    # What files always say: of which kind they are, and no token beyond the words.
    kind = KINDS[settings["architectures"][0].removesuffix("ForCausalLM")]
    config = AutoConfig.for_model(kind, **{"pad_token_id": 0, "bos_token_id": 2, **settings})
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64, attn_implementation="eager",
                                                 experts_implementation="eager")
    found = []
    for prompt in json.loads((folder / "prompts.json").read_text()):
        with torch.no_grad():
            logits = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        found.append([float(f"{value:.7g}") for value in logits.tolist()])
    result[folder.name] = found
json.dump(result, sys.stdout, separators=(",", ":"))
