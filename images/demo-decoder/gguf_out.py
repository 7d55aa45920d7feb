#!/usr/bin/env python3
"""Writes model/demo-decoder-Q8_0.gguf from the Hugging Face folder model/."""

import json
import pathlib

import gguf
import numpy as np

from eval import safetensors

HERE = pathlib.Path(__file__).parent
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def interleave(w, heads):
    """Hugging Face rotates the first half of a head against the second, GGUF's llama its neighbours: the rows of each
    head go from a0 a1 .. b0 b1 .. to a0 b0 a1 b1 .."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def main():
    folder = HERE / "model"
    c, tc = (json.loads((folder / n).read_text()) for n in ("config.json", "tokenizer_config.json"))
    tok = json.loads((folder / "tokenizer.json").read_text())
    out = gguf.GGUFWriter(folder / "demo-decoder-Q8_0.gguf", "llama")
    out.add_name("demo-decoder")
    out.add_license("apache-2.0")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(c["hidden_size"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_block_count(c["num_hidden_layers"])
    out.add_head_count(c["num_attention_heads"])
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_rope_dimension_count(c["head_dim"])
    out.add_rope_freq_base(c["rope_theta"])
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_vocab_size(c["vocab_size"])
    vocab = sorted(tok["model"]["vocab"].items(), key=lambda x: x[1])
    special = {t["id"] for t in tok["added_tokens"]}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([t for t, _ in vocab])
    out.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for _, i in vocab])
    out.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tok["model"]["merges"]])
    out.add_bos_token_id(c["bos_token_id"])
    out.add_eos_token_id(c["eos_token_id"])
    out.add_eot_token_id(c["eos_token_id"])
    out.add_add_bos_token(True)
    out.add_add_eos_token(False)
    out.add_add_space_prefix(False)
    out.add_chat_template(tc["chat_template"])
    for name, w in safetensors(folder / "model.safetensors").items():
        if name == "model.embed_tokens.weight":
            name = "token_embd"
        elif name == "model.norm.weight":
            name = "output_norm"
        else:
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if part.endswith(("q_proj", "k_proj")):
                w = interleave(w, c["num_attention_heads" if part.endswith("q_proj") else "num_key_value_heads"])
            name = f"blk.{layer}.{NAMES[part]}"
        if w.ndim == 1:
            out.add_tensor(name + ".weight", np.ascontiguousarray(w, np.float32))
        else:
            q = gguf.quants.quantize(np.ascontiguousarray(w, np.float32), gguf.GGMLQuantizationType.Q8_0)
            out.add_tensor(name + ".weight", q, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
