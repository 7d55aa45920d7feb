"""Peers of the inference benchmark that come as Python packages, behind its protocol.

`peers.py xllamacpp|mistralrs MODEL.gguf THREADS` and `peers.py onnxruntime FOLDER THREADS` write "ready", then answer
each line with the seconds it took: "prompt N" is N tokens read and one made, "answer N" is a prompt of eight read and N
tokens made, greedily; "embed N" is N texts of 32 tokens to vectors, by a graph written here from the folder's weights.
The clock is the one here, from the call to its return, and what was read and made is counted. No two prompts are alike,
and no peer keeps any. A letter is a token in the benchmark's models.
"""

import json
import os
import random
import string
import sys
import time

numbers = random.Random(7)


def letters(count):
    return "".join(numbers.choice(string.ascii_lowercase) for _ in range(count))


def xllamacpp(path, threads):
    import xllamacpp as x

    options = x.CommonParams()
    options.model.path = path
    options.n_ctx = 4096
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = x.Server(options)

    def run(what, count):
        made = count if what == "answer" else 1
        prompt = [300 + numbers.randrange(29_000) for _ in range(8 if what == "answer" else count)]
        request = {"prompt": prompt, "n_predict": made, "max_tokens": made, "cache_prompt": False,
                   "ignore_eos": True, "temperature": 0}
        begin = time.perf_counter()
        answer = server.handle_completions(request)
        took = time.perf_counter() - begin
        answer = json.loads(answer) if isinstance(answer, str) else answer
        timings = answer["timings"]
        assert timings["predicted_n"] == made and timings["prompt_n"] == len(prompt), timings
        return took

    return run


def mistralrs(path, threads):
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    from mistralrs import CompletionRequest, Runner, Which

    folder, name = os.path.split(path)
    which = Which.GGUF(quantized_model_id=folder, quantized_filename=name)
    runner = Runner(which=which, max_seqs=1, prefix_cache_n=0)

    def run(what, count):
        made = count if what == "answer" else 1
        prompt = letters(8 if what == "answer" else count)
        begin = time.perf_counter()
        answer = runner.send_completion_request(
            CompletionRequest(model="default", prompt=prompt, max_tokens=made, temperature=0.0))
        took = time.perf_counter() - begin
        usage = answer.usage
        assert usage.prompt_tokens == len(prompt), f"{usage.prompt_tokens} tokens were read, not {len(prompt)}"
        assert usage.completion_tokens == made, f"{usage.completion_tokens} tokens were made, not {made}"
        return took

    return run


def bert(folder):
    """The ONNX graph of a BERT encoder with mean pooling, and its inputs' names."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    settings = json.load(open(os.path.join(folder, "config.json")))
    weights = load_file(os.path.join(folder, "model.safetensors"))
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    head, epsilon = width // heads, settings["layer_norm_eps"]
    nodes, constants = [], {}

    def constant(name, value):
        constants[name] = numpy_helper.from_array(numpy.ascontiguousarray(value), name)
        return name

    def node(kind, inputs, **attributes):
        out = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def linear(x, name):
        matrix = constant(name + ".w", weights[name + ".weight"].T)
        return node("Add", [node("MatMul", [x, matrix]), constant(name + ".b", weights[name + ".bias"])])

    def norm(x, name):
        inputs = [x, constant(name + ".g", weights[name + ".weight"]), constant(name + ".s", weights[name + ".bias"])]
        return node("LayerNormalization", inputs, axis=-1, epsilon=epsilon)

    words = node("Gather", [constant("words", weights["embeddings.word_embeddings.weight"]), "ids"])
    types = constant("type", weights["embeddings.token_type_embeddings.weight"][0])
    places = constant("places", weights["embeddings.position_embeddings.weight"][:32])
    x = norm(node("Add", [node("Add", [words, types]), places]), "embeddings.LayerNorm")
    split = constant("split", numpy.array([0, 0, heads, head], numpy.int64))
    merge = constant("merge", numpy.array([0, 0, width], numpy.int64))
    scale = constant("scale", numpy.array(head ** 0.5, numpy.float32))
    half, one = constant("half", numpy.array(0.5, numpy.float32)), constant("one", numpy.array(1, numpy.float32))
    root = constant("root", numpy.array(2 ** 0.5, numpy.float32))
    for layer in range(settings["num_hidden_layers"]):
        part = f"encoder.layer.{layer}."

        def side(name, order):
            return node("Transpose", [node("Reshape", [linear(x, part + "attention.self." + name), split])], perm=order)

        query, key, value = side("query", [0, 2, 1, 3]), side("key", [0, 2, 3, 1]), side("value", [0, 2, 1, 3])
        chances = node("Softmax", [node("Div", [node("MatMul", [query, key]), scale])], axis=-1)
        mixed = node("Transpose", [node("MatMul", [chances, value])], perm=[0, 2, 1, 3])
        attended = linear(node("Reshape", [mixed, merge]), part + "attention.output.dense")
        x = norm(node("Add", [attended, x]), part + "attention.output.LayerNorm")
        inner = linear(x, part + "intermediate.dense")
        gelu = node("Mul", [node("Mul", [inner, node("Add", [node("Erf", [node("Div", [inner, root])]), one])]), half])
        x = norm(node("Add", [linear(gelu, part + "output.dense"), x]), part + "output.LayerNorm")
    mean = node("ReduceMean", [x, constant("axis", numpy.array([1], numpy.int64))], keepdims=0)
    out = node("LpNormalization", [mean], axis=-1, p=2)
    graph = helper.make_graph(
        nodes, "bert", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 32])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["batch", width])], list(constants.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def onnxruntime(folder, threads):
    import numpy
    import onnxruntime as ort
    from onnxruntime.transformers import optimizer

    settings = json.load(open(os.path.join(folder, "config.json")))
    model = optimizer.optimize_model(
        bert(folder), model_type="bert", num_heads=settings["num_attention_heads"],
        hidden_size=settings["hidden_size"], opt_level=0)
    fused = model.get_fused_operator_statistics()
    assert fused.get("Attention", 0) == settings["num_hidden_layers"], f"attention was not fused: {fused}"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model.model.SerializeToString(), options, ["CPUExecutionProvider"])

    def run(what, count):
        # [CLS] … [SEP], as in the sentences of the other side.
        ids = numpy.array([[101] + [2000 + numbers.randrange(20_000) for _ in range(30)] + [102] for _ in range(count)])
        begin = time.perf_counter()
        vectors = session.run(None, {"ids": ids})[0]
        took = time.perf_counter() - begin
        assert vectors.shape == (count, settings["hidden_size"]) and numpy.isfinite(vectors).all()
        return took

    return run


def main():
    kind, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # Libraries print to standard output; the protocol has it to itself.
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = {"xllamacpp": xllamacpp, "mistralrs": mistralrs, "onnxruntime": onnxruntime}[kind](path, threads)
    print("ready", file=protocol, flush=True)
    for line in sys.stdin:
        what, count = line.split()
        print(f"{run(what, int(count)):.6f}", file=protocol, flush=True)


main()
