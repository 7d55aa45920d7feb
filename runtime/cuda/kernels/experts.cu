// Mixtures of experts: who goes where. The products themselves are those of linear.cu, over lists made here. A pair is
// a row and one of the experts that it uses: pair `row · used + slot`.

#include "common.cuh"

// The best experts of each row and their weights: a softmax over all, and the largest few; of equals the first. A warp
// for each row; a lane keeps a bit for each of its experts that is taken.
static_assert(EXPERTS_MAX <= 32 * 32, "as many as a warp's lanes have bits");
KERNEL(32, route)(const float *router, u32 *choice, float *weights, const u32 *count, u32 experts, u32 used,
                  u32 normalize) {
    u32 row = blockIdx.x, lane = threadIdx.x;
    if (row >= *count) return;
    router += (u64)row * experts;
    float top = NEVER, total = 0.0f;
    for (u32 e = lane; e < experts; e += 32) top = fmaxf(top, router[e]);
    top = warp_max(top);
    for (u32 e = lane; e < experts; e += 32) total += expf(router[e] - top);
    total = warp_sum(total);
    u32 taken = 0;
    float sum = 0.0f;
    for (u32 slot = 0; slot < used; slot++) {
        float best = NEVER;
        u32 who = 0xffffffffu;
        for (u32 e = lane; e < experts; e += 32) {
            if (!(taken >> e / 32 & 1) && (who == 0xffffffffu || router[e] > best)) {
                best = router[e];
                who = e;
            }
        }
        for (int step = 16; step > 0; step >>= 1) {
            float other = __shfl_xor_sync(EVERYONE, best, step);
            u32 other_who = __shfl_xor_sync(EVERYONE, who, step);
            if (other_who != 0xffffffffu && (who == 0xffffffffu || other > best || (other == best && other_who < who))) {
                best = other;
                who = other_who;
            }
        }
        // With logits that are not numbers lanes may disagree; the first one's word counts.
        who = __shfl_sync(EVERYONE, who, 0);
        best = __shfl_sync(EVERYONE, best, 0);
        if (who % 32 == lane) taken |= 1u << who / 32;
        float weight = expf(best - top) / total;
        sum += weight;
        if (lane == 0) {
            choice[(u64)row * used + slot] = who;
            weights[(u64)row * used + slot] = weight;
        }
    }
    if (normalize && lane == 0) {
        for (u32 slot = 0; slot < used; slot++) weights[(u64)row * used + slot] /= sum;
    }
}

// For each expert the pairs that chose it, in order, and how many they are. A warp for each expert.
KERNEL(32, lists)(const u32 *choice, u32 *list, u32 *counts, const u32 *count, u32 used, u32 list_step) {
    u32 expert = blockIdx.x, lane = threadIdx.x, pairs = *count * used, found = 0;
    list += (u64)expert * list_step;
    for (u32 start = 0; start < pairs; start += 32) {
        u32 pair = start + lane;
        bool mine = pair < pairs && choice[pair] == expert;
        u32 all = __ballot_sync(EVERYONE, mine);
        if (mine) list[found + __popc(all & ((1u << lane) - 1))] = pair;
        found += __popc(all);
    }
    if (lane == 0) counts[expert] = found;
}

// The experts' answers for each row, weighed and added. Rows along x of the grid, columns along y.
KERNEL(256, mix)(const float *answers, const float *weights, float *out, const u32 *count, u32 width, u32 used) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count || i >= width) return;
    float sum = 0.0f;
    for (u32 slot = 0; slot < used; slot++) {
        u64 pair = (u64)row * used + slot;
        sum = __fmaf_rn(weights[pair], answers[pair * width + i], sum);
    }
    out[(u64)row * width + i] = sum;
}
