// Each target, and bytes of its longest input: whole files of weights are longer than what others say. Whoever includes this
// says what is made of it.
targets! {
    safetensors: 4 << 10,
    gguf: 48 << 10,
    config: 4 << 10,
    tokenizer: 4 << 10,
    gguf_tokenizer: 4 << 10,
    template: 4 << 10,
}
