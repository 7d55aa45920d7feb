// Positions, pages of keys and values, and attention.
//
// A page holds PAGE tokens of every layer and key head as 16-bit floats. Of a head the keys come first, eight
// dimensions of all tokens at a time, so that a warp with a token a lane reads them side by side; then the values,
// token by token. Pages of a sequence are handed to the warps of a fixed number of streams by their index in it, each
// stream sums up what it sees, and the streams' sums are added in order: so the bits of an answer follow from its
// sequence alone, however long it was when it was computed and whatever else was.

#include "common.cuh"

// Streams of a query: warps of a block by blocks.
#define WARPS 4
#define SPLITS 8
// Query heads that one warp handles together; they share a key head.
#define GROUP 8
// Numbers of a head that a lane sums up: heads are at most 32 times as wide.
#define EACH 8

// Cosine and sine of each row's position times each pair's frequency, times the magnitude. Angles are reduced in 64
// bits; what is left is in [-π/4, π/4], where short polynomials (those of Cephes) are as good as 32 bits are.
KERNEL(256, angles)(const u32 *places, const double *frequencies, float2 *out, const u32 *count, u32 pairs,
                    float magnitude) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count || i >= pairs) return;
    double angle = (double)places[row] * frequencies[i];
    double turns = rint(angle * 0.63661977236758134308);
    float x = (float)(angle - turns * 1.5707963267948966192);
    u32 quarter = (u32)(long long)turns & 3;
    float z = x * x;
    float sine = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    float cosine = 1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    float c = quarter & 1 ? sine : cosine, s = quarter & 1 ? cosine : sine;
    if (quarter == 1 || quarter == 2) c = -c;
    if (quarter >= 2) s = -s;
    out[(u64)row * pairs + i] = make_float2(c * magnitude, s * magnitude);
}

// Where a head of a page begins, in 16-bit floats: its keys, then its values.
__device__ __forceinline__ u64 head_at(u32 page, u32 layers, u32 layer, u32 heads, u32 head, u32 padded, u32 width) {
    return (((u64)page * layers + layer) * heads + head) * (u64)(PAGE * (padded + width));
}

// A warp for each head of a row: norms it, turns it, and puts it where it belongs. Norms: 0 none, 1 root mean square,
// 2 layer norm; `more` is added to gamma. Pairs: 0 not turned, 1 halves, 2 neighbours.
KERNEL(256, place)(const float *qkv, const float *q_gamma, const float *q_beta, const float *k_gamma,
                   const float *k_beta, const float2 *angles, float *queries, u16 *store, const u32 *places,
                   const u32 *sequences, const u32 *firsts, const u32 *pages, const u32 *count, u32 query_heads,
                   u32 key_heads, u32 width, u32 layers, u32 layer, u32 norm, u32 pairing, u32 pairs, float epsilon,
                   float q_more, float k_more) {
    extern __shared__ float shared[];
    u32 row = blockIdx.x;
    if (row >= *count) return;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, heads = query_heads + 2 * key_heads;
    float *head = shared + warp * width;
    u32 place = places[row], token = place % PAGE, page = pages[firsts[sequences[row]] + place / PAGE];
    u32 padded = (width + 7) / 8 * 8;
    for (u32 index = warp; index < heads; index += blockDim.x >> 5) {
        const float *from = qkv + ((u64)row * heads + index) * width;
        bool is_query = index < query_heads, is_value = index >= query_heads + key_heads;
        float mean = 0.0f, by = 1.0f;
        if (norm && !is_value) {
            float total = 0.0f;
            for (u32 i = lane; i < width; i += 32) total += norm == 2 ? from[i] : from[i] * from[i];
            total = warp_sum(total) / (float)width;
            if (norm == 2) {
                mean = total;
                total = 0.0f;
                for (u32 i = lane; i < width; i += 32) total += (from[i] - mean) * (from[i] - mean);
                total = warp_sum(total) / (float)width;
            }
            by = 1.0f / sqrtf(total + epsilon);
        }
        const float *gamma = is_query ? q_gamma : k_gamma, *beta = is_query ? q_beta : k_beta;
        float more = is_query ? q_more : k_more;
        __syncwarp();
        for (u32 i = lane; i < width; i += 32) {
            float value = from[i];
            if (norm && !is_value) value = (value - mean) * by * (gamma[i] + more) + (norm == 2 ? beta[i] : 0.0f);
            head[i] = value;
        }
        __syncwarp();
        if (pairing && !is_value) {
            for (u32 i = lane; i < pairs; i += 32) {
                u32 a = pairing == 1 ? i : 2 * i, b = pairing == 1 ? i + pairs : 2 * i + 1;
                float2 angle = angles[(u64)row * pairs + i];
                float x = head[a], y = head[b];
                head[a] = x * angle.x - y * angle.y;
                head[b] = y * angle.x + x * angle.y;
            }
            __syncwarp();
        }
        if (is_query) {
            for (u32 i = lane; i < width; i += 32) queries[((u64)row * query_heads + index) * width + i] = head[i];
            continue;
        }
        u32 key_head = (index - query_heads) % key_heads;
        u16 *to = store + head_at(page, layers, layer, key_heads, key_head, padded, width);
        if (is_value) {
            to += PAGE * padded + token * width;
            for (u32 i = lane; i < width; i += 32) to[i] = to_half(head[i]);
        } else {
            for (u32 i = lane; i < padded; i += 32) {
                to[(i / 8 * PAGE + token) * 8 + i % 8] = i < width ? to_half(head[i]) : 0;
            }
        }
    }
}

// What one stream has seen of a head: the largest score, the sum of the powers of e of the distances to it, and the
// values weighed by those, a lane's numbers two by two.
template <int HEADS>
struct Seen {
    float top[HEADS], total[HEADS], sums[HEADS][EACH];

    __device__ __forceinline__ Seen() {
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            top[h] = NEVER;
            total[h] = 0.0f;
#pragma unroll
            for (int i = 0; i < EACH; i++) sums[h][i] = 0.0f;
        }
    }

    // Takes in the scores of up to 32 tokens, one a lane (minus infinity where there is none), not all of which may be
    // missing. Returns the weight of this lane's token.
    __device__ __forceinline__ float weigh(int h, float score) {
        float best = fmaxf(top[h], warp_max(score));
        float shrink = expf(top[h] - best), power = expf(score - best);
        top[h] = best;
        total[h] = __fadd_rn(__fmul_rn(total[h], shrink), warp_sum(power));
#pragma unroll
        for (int i = 0; i < EACH; i++) sums[h][i] = __fmul_rn(sums[h][i], shrink);
        return power;
    }

    // Adds a token's values, of which this lane has numbers `2 · lane + 64 · i / 2 + i % 2`.
    __device__ __forceinline__ void mix(int h, float weight, const float (&values)[EACH]) {
#pragma unroll
        for (int i = 0; i < EACH; i++) sums[h][i] = __fmaf_rn(weight, values[i], sums[h][i]);
    }
};

// A score that is not finite becomes infinity, which makes everything that it is compared with not finite: minus infinity
// would say that there is no score.
__device__ __forceinline__ float loud(float score) { return fabsf(score) <= 3.4028235e38f ? score : -NEVER; }

__device__ __forceinline__ float bend(float score, float bound) {
    return bound > 0.0f ? bound * tanhf(score / bound) : score;
}

// The first page of a stream that is not before `oldest`.
__device__ __forceinline__ u32 first_page(u32 oldest, u32 stream) {
    const u32 STREAMS = WARPS * SPLITS;
    return oldest + (stream + STREAMS - oldest % STREAMS) % STREAMS;
}

// One part of a query's attention, for the heads that share a key head: those pages of its sequence whose streams are
// this block's. Writes for each head the largest score, the total and the sums, or only that there is no score. Grid:
// rows, key heads by groups of query heads, splits.
KERNEL(128, paged)(const float *queries, const u16 *store, const u32 *places, const u32 *sequences, const u32 *firsts,
                   const u32 *pages, float *partial, const u32 *count, u32 first_row, u32 query_heads, u32 key_heads,
                   u32 width, u32 layers, u32 layer, u32 window, float scale, float bound) {
    extern __shared__ float shared[];
    u32 row = first_row + blockIdx.x;
    if (row >= *count) return;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 each = query_heads / key_heads, groups = (each + GROUP - 1) / GROUP;
    u32 key_head = blockIdx.y / groups, head = key_head * each + blockIdx.y % groups * GROUP;
    u32 heads = min(each - blockIdx.y % groups * GROUP, GROUP);
    u32 padded = (width + 7) / 8 * 8;
    u32 place = places[row], oldest = window && place + 1 > window ? place + 1 - window : 0;
    // The first page of each of the block's streams; warps whose stream has none stand aside.
    u32 begins[WARPS], last = place / PAGE, earlier = 0;
    bool any = false;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        begins[w] = first_page(oldest / PAGE, blockIdx.z + w * SPLITS);
        any = any || begins[w] <= last;
        if (w < warp && begins[w] <= last) earlier++;
    }
    partial += (((u64)blockIdx.x * query_heads + head) * SPLITS + blockIdx.z) * (width + 2);
    u64 partial_step = (u64)SPLITS * (width + 2);
    if (!any) {
        if (threadIdx.x < heads) partial[threadIdx.x * partial_step] = NEVER;
        return;
    }
    float *query = shared;
    for (u32 i = threadIdx.x; i < heads * padded; i += blockDim.x) {
        u32 at = i % padded;
        query[i] = at < width ? queries[((u64)row * query_heads + head + i / padded) * width + at] : 0.0f;
    }
    __syncthreads();
    const u32 *own = pages + firsts[sequences[row]];
    Seen<GROUP> seen;
    u32 page = begins[0];
#pragma unroll
    for (u32 w = 1; w < WARPS; w++) page = w == warp ? begins[w] : page;
    bool active = page <= last;
    for (; page <= last; page += WARPS * SPLITS) {
        const u16 *keys = store + head_at(own[page], layers, layer, key_heads, key_head, padded, width);
        const u16 *values = keys + PAGE * padded;
        u32 from = oldest > page * PAGE ? oldest - page * PAGE : 0, to = min(place - page * PAGE + 1, PAGE);
        bool there = lane >= from && lane < to;
        float scores[GROUP];
#pragma unroll
        for (int h = 0; h < GROUP; h++) scores[h] = 0.0f;
        if (there) {
#pragma unroll 2
            for (u32 d = 0; d < padded; d += 8) {
                uint4 eight = *(const uint4 *)(keys + (u64)(d / 8 * PAGE + lane) * 8);
                float2 k0 = from_halves(eight.x), k1 = from_halves(eight.y);
                float2 k2 = from_halves(eight.z), k3 = from_halves(eight.w);
#pragma unroll
                for (int h = 0; h < GROUP; h++) {
                    if (h >= heads) break;
                    const float *q = query + h * padded + d;
                    float4 q0 = *(const float4 *)q, q1 = *(const float4 *)(q + 4);
                    float score = scores[h];
                    score = __fmaf_rn(q0.x, k0.x, score);
                    score = __fmaf_rn(q0.y, k0.y, score);
                    score = __fmaf_rn(q0.z, k1.x, score);
                    score = __fmaf_rn(q0.w, k1.y, score);
                    score = __fmaf_rn(q1.x, k2.x, score);
                    score = __fmaf_rn(q1.y, k2.y, score);
                    score = __fmaf_rn(q1.z, k3.x, score);
                    scores[h] = __fmaf_rn(q1.w, k3.y, score);
                }
            }
        }
        __syncwarp();
        // What a head's scores are is kept for the lanes to pass around.
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
            if (h >= heads) break;
            float score = there ? loud(bend(__fmul_rn(scores[h], scale), bound)) : NEVER;
            scores[h] = seen.weigh(h, score);
        }
#pragma unroll 1
        for (u32 token = from; token < to; token++) {
            float numbers[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i += 2) {
                u32 at = 2 * lane + 32 * i;
                float2 two = at < width ? from_halves(*(const u32 *)(values + token * width + at)) : make_float2(0.0f, 0.0f);
                numbers[i] = two.x;
                numbers[i + 1] = two.y;
            }
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                if (h >= heads) break;
                seen.mix(h, __shfl_sync(EVERYONE, scores[h], token), numbers);
            }
        }
    }
    // The warps' sums, in their order: each adds its own to what those before it left.
    float *tops = query + GROUP * padded, *totals = tops + GROUP, *sums = totals + GROUP;
    for (u32 turn = 0; turn < WARPS; turn++) {
        if (warp == turn && active) {
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                if (h >= heads) break;
                float top = earlier ? tops[h] : NEVER, total = earlier ? totals[h] : 0.0f;
                float best = fmaxf(top, seen.top[h]);
                float theirs = expf(top - best), ours = expf(seen.top[h] - best);
                __syncwarp();
                if (lane == 0) {
                    tops[h] = best;
                    totals[h] = __fmaf_rn(total, theirs, __fmul_rn(seen.total[h], ours));
                }
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    u32 at = 2 * lane + 32 * (i & ~1) + (i & 1);
                    if (at >= width) continue;
                    float sum = earlier ? sums[h * width + at] : 0.0f;
                    sums[h * width + at] = __fmaf_rn(sum, theirs, __fmul_rn(seen.sums[h][i], ours));
                }
            }
        }
        __syncthreads();
    }
    for (u32 i = threadIdx.x; i < heads * (width + 2); i += blockDim.x) {
        u32 h = i / (width + 2), at = i % (width + 2);
        partial[h * partial_step + at] = at == 0 ? tops[h] : at == 1 ? totals[h] : sums[h * width + at - 2];
    }
}

// Adds up the parts of a head of a row, in order. Grid: rows, heads.
KERNEL(256, paged_merge)(const float *partial, float *out, const u32 *count, u32 first_row, u32 query_heads,
                         u32 width) {
    u32 row = first_row + blockIdx.x, head = blockIdx.y;
    if (row >= *count) return;
    partial += ((u64)blockIdx.x * query_heads + head) * SPLITS * (width + 2);
    float best = NEVER, total = 0.0f, by[SPLITS];
#pragma unroll
    for (u32 split = 0; split < SPLITS; split++) {
        by[split] = partial[split * (width + 2)];
        best = fmaxf(best, by[split]);
    }
    // Parts that saw nothing have no sums; scores that are no numbers are not among those.
    bool seen[SPLITS];
#pragma unroll
    for (u32 split = 0; split < SPLITS; split++) {
        seen[split] = by[split] != NEVER;
        by[split] = expf(by[split] - best);
        if (seen[split]) total = __fmaf_rn(partial[split * (width + 2) + 1], by[split], total);
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
#pragma unroll
        for (u32 split = 0; split < SPLITS; split++) {
            if (seen[split]) sum = __fmaf_rn(partial[split * (width + 2) + 2 + i], by[split], sum);
        }
        out[((u64)row * query_heads + head) * width + i] = sum / total;
    }
}

// Attention in both directions among the rows of a sequence, all in 32 bits. Grid: rows, query heads.
KERNEL(128, attend)(const float *qkv, float *out, const u32 *sequences, const u32 *firsts, const u32 *count,
                    u32 query_heads, u32 key_heads, u32 width, float scale) {
    extern __shared__ float shared[];
    u32 row = blockIdx.x, head = blockIdx.y;
    if (row >= *count) return;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, heads = query_heads + 2 * key_heads;
    u32 key_head = query_heads + head / (query_heads / key_heads), value_head = key_head + key_heads;
    u32 first = firsts[sequences[row]], end = firsts[sequences[row] + 1];
    float *query = shared;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) query[i] = qkv[((u64)row * heads + head) * width + i];
    __syncthreads();
    Seen<1> seen;
    for (u32 start = first + warp * 32; start < end; start += WARPS * 32) {
        bool there = start + lane < end;
        float score = NEVER;
        if (there) {
            const float *key = qkv + ((u64)(start + lane) * heads + key_head) * width;
            float sum = 0.0f;
            if (width % 4 == 0) {
                for (u32 d = 0; d < width; d += 4) {
                    float4 q = *(const float4 *)(query + d), k = *(const float4 *)(key + d);
                    sum = __fmaf_rn(q.x, k.x, sum);
                    sum = __fmaf_rn(q.y, k.y, sum);
                    sum = __fmaf_rn(q.z, k.z, sum);
                    sum = __fmaf_rn(q.w, k.w, sum);
                }
            } else {
                for (u32 d = 0; d < width; d++) sum = __fmaf_rn(query[d], key[d], sum);
            }
            score = loud(__fmul_rn(sum, scale));
        }
        __syncwarp();
        float weight = seen.weigh(0, score);
        u32 tokens = min(end - start, 32);
        for (u32 token = 0; token < tokens; token++) {
            const float *value = qkv + ((u64)(start + token) * heads + value_head) * width;
            float numbers[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                u32 at = 2 * lane + 32 * (i & ~1) + (i & 1);
                numbers[i] = at < width ? value[at] : 0.0f;
            }
            seen.mix(0, __shfl_sync(EVERYONE, weight, token), numbers);
        }
    }
    float *tops = query + (width + 3) / 4 * 4, *totals = tops + WARPS, *sums = totals + WARPS;
    if (lane == 0) {
        tops[warp] = seen.top[0];
        totals[warp] = seen.total[0];
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        u32 at = 2 * lane + 32 * (i & ~1) + (i & 1);
        if (at < width) sums[warp * width + at] = seen.sums[0][i];
    }
    __syncthreads();
    float best = NEVER, total = 0.0f;
    for (u32 w = 0; w < WARPS; w++) best = fmaxf(best, tops[w]);
    for (u32 w = 0; w < WARPS; w++) total += totals[w] * expf(tops[w] - best);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 w = 0; w < WARPS; w++) sum += sums[w * width + i] * expf(tops[w] - best);
        out[((u64)row * query_heads + head) * width + i] = sum / total;
    }
}
