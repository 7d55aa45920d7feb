"""Writes reference.json: the vectors of the tiny encoders by transformers, in 64-bit floats, independent of the engine.

    KEDGE_TINY_FOLDER=FOLDER cargo test -p kedge-engine --test encoders -- --ignored
    python reference.py FOLDER > reference.json     (needs torch and transformers 5)

FOLDER/NAME/ is a model in Hugging Face's form, FOLDER/NAME/texts.json what is asked. Vectors are pooled here as
sentence-transformers does, by FOLDER/NAME/1_Pooling/config.json, and have length one. For each text its tokens are kept,
and its vector.
"""
import json, pathlib, sys
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

result = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    pooling, = [mode for mode, on in json.loads((folder / "1_Pooling/config.json").read_text()).items() if on]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager", add_pooling_layer=False)
    found = []
    for text in json.loads((folder / "texts.json").read_text()):
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        with torch.no_grad():
            rows = model(torch.tensor([ids])).last_hidden_state[0]
        vector = {"pooling_mode_cls_token": rows[0], "pooling_mode_mean_tokens": rows.mean(0),
                  "pooling_mode_max_tokens": rows.max(0).values, "pooling_mode_lasttoken": rows[-1]}[pooling]
        vector = vector / vector.norm()
        found.append({"ids": ids, "vector": [float(f"{value:.8g}") for value in vector.tolist()]})
    result[folder.name] = found
json.dump(result, sys.stdout, separators=(",", ":"))
