// llama.cpp, built for this machine, behind the protocol of the inference benchmark: `native MODEL THREADS` writes
// "ready", then answers each line "prompt N" or "answer N" with the seconds it took. A prompt is N tokens that differ
// from call to call, and one is made after it; an answer is N tokens made one by one, greedily, after a prompt of eight.
// The clock runs from before the prompt until the last token is chosen, which no step follows.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static unsigned seed = 7;

static std::vector<llama_token> tokens(int count) {
    std::vector<llama_token> all(count);
    for (auto & token : all) {
        seed = seed * 1664525u + 1013904223u;
        token = 300 + (seed >> 8) % 29000;
    }
    return all;
}

static void must(bool holds, const char * what) {
    if (!holds) {
        std::fprintf(stderr, "%s failed\n", what);
        std::exit(1);
    }
}

int main(int count, char ** arguments) {
    must(count == 3, "reading MODEL THREADS");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    must(model != nullptr, "loading the model");
    auto options = llama_context_default_params();
    options.n_ctx = 4096;
    options.n_batch = 2048;
    options.n_threads = options.n_threads_batch = std::atoi(arguments[2]);
    llama_context * context = llama_init_from_model(model, options);
    must(context != nullptr, "making a context");
    const int words = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::printf("ready\n");
    std::fflush(stdout);
    char what[16];
    int wanted;
    while (std::scanf("%15s %d", what, &wanted) == 2) {
        llama_memory_clear(llama_get_memory(context), true);
        const bool answer = std::strcmp(what, "answer") == 0;
        auto prompt = tokens(answer ? 8 : wanted);
        const int to_make = answer ? wanted : 1;
        const double begin = now();
        must(llama_decode(context, llama_batch_get_one(prompt.data(), prompt.size())) == 0, "the prompt");
        for (int made = 1;; made++) {
            const float * logits = llama_get_logits_ith(context, -1);
            llama_token next = std::max_element(logits, logits + words) - logits;
            if (made == to_make) {
                break;
            }
            must(llama_decode(context, llama_batch_get_one(&next, 1)) == 0, "a token");
        }
        std::printf("%.6f\n", now() - begin);
        std::fflush(stdout);
    }
    llama_free(context);
    llama_model_free(model);
    return 0;
}
