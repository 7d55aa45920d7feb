// Positions, pages of keys and values, and attention.
//
// A page holds PAGE tokens of every layer and key head as 16-bit floats. Of a head the keys come first, eight
// dimensions of all tokens at a time; then the values, all tokens of a dimension at a time: so the tensor cores' lanes
// read whole vectors of both. Numbers of pages are finite, also where no token is yet (the store begins as zeros), but for
// the keys of a token whose values are not: those are no numbers, and make everything none that sees the token.
//
// Pages of a sequence are handed to the warps of a fixed number of streams by their index in it, each stream sums up what
// it sees, and the streams' sums are added in order: so the bits of an answer follow from its sequence alone, however
// long it was when it was computed and whatever else was.

#include "common.cuh"

// Numbers of a head that a lane of `attend` sums up: pairs of neighbours, 64 apart.
#define EACH (HEAD_MAX / 32)
static_assert(HEAD_MAX % 64 == 0, "lanes have whole pairs");

// The number of a head that is this lane's number `i`.
__device__ __forceinline__ u32 number_of(u32 lane, int i) { return 2 * lane + 32 * (i & ~1) + (i & 1); }

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

__device__ __forceinline__ bool is_finite_half(u16 bits) { return (bits & 0x7c00) != 0x7c00; }

// A warp for each head of a row: norms it, turns it, and puts it where it belongs. `more` is added to
// gamma.
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
            for (u32 i = lane; i < width; i += 32) total += norm == NORM_LAYER ? from[i] : from[i] * from[i];
            total = warp_sum(total) / (float)width;
            if (norm == NORM_LAYER) {
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
            if (norm && !is_value) value = (value - mean) * by * (gamma[i] + more) + (norm == NORM_LAYER ? beta[i] : 0.0f);
            head[i] = value;
        }
        __syncwarp();
        if (pairing && !is_value) {
            for (u32 i = lane; i < pairs; i += 32) {
                u32 a = pairing == PAIRS_HALVES ? i : 2 * i, b = pairing == PAIRS_HALVES ? i + pairs : 2 * i + 1;
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
            to += PAGE * padded + token;
            for (u32 i = lane; i < width; i += 32) {
                u16 half = to_half(head[i]);
                to[i * PAGE] = is_finite_half(half) ? half : 0;
            }
        } else {
            const float *values = from + key_heads * width;
            bool good = true;
            for (u32 i = lane; i < width; i += 32) good = good && is_finite_half(to_half(values[i]));
            good = __all_sync(EVERYONE, good);
            for (u32 i = lane; i < padded; i += 32) {
                to[(i / 8 * PAGE + token) * 8 + i % 8] = !good ? 0x7fff : i < width ? to_half(head[i]) : 0;
            }
        }
    }
}

// What a warp of `attend` has seen of a head: the largest score, the sum of the powers of e of the distances to it, and the
// values weighed by those.
struct Seen {
    float top, total, sums[EACH];

    __device__ __forceinline__ Seen() {
        top = NEVER;
        total = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++) sums[i] = 0.0f;
    }

    // Takes in the scores of up to 32 tokens, one a lane (minus infinity where there is none), not all of which may be
    // missing. Returns the weight of this lane's token.
    __device__ __forceinline__ float weigh(float score) {
        float best = fmaxf(top, warp_max(score));
        float shrink = expf(top - best), power = expf(score - best);
        top = best;
        total = __fadd_rn(__fmul_rn(total, shrink), warp_sum(power));
#pragma unroll
        for (int i = 0; i < EACH; i++) sums[i] = __fmul_rn(sums[i], shrink);
        return power;
    }

    // Adds a token's values under its weight: this lane's numbers of them, see `number_of`.
    __device__ __forceinline__ void mix(float weight, const float (&values)[EACH]) {
#pragma unroll
        for (int i = 0; i < EACH; i++) sums[i] = __fmaf_rn(weight, values[i], sums[i]);
    }
};

// A score that is not finite becomes infinity, which makes everything that it is compared with not finite: minus infinity
// would say that there is no score.
__device__ __forceinline__ float loud(float score) { return fabsf(score) <= FINITE_MAX ? score : -NEVER; }

__device__ __forceinline__ float bend(float score, float bound) {
    return bound > 0.0f ? bound * tanhf(score / bound) : score;
}

// The first page of a stream that is not before `oldest`.
__device__ __forceinline__ u32 first_page(u32 oldest, u32 stream) {
    const u32 STREAMS = WARPS * SPLITS;
    return oldest + (stream + STREAMS - oldest % STREAMS) % STREAMS;
}

// How two sums of powers of e go together: what the one before and the one that comes are multiplied by. One before that saw
// nothing has no sums; the one that comes saw something.
struct Joined {
    float top, before, after;
};

__device__ __forceinline__ Joined join(float before, float after) {
    float top = fmaxf(before, after);
    return {top, before == NEVER ? 0.0f : expf(before - top), expf(after - top)};
}

__device__ __forceinline__ float joined(float before, float after, const Joined &by) {
    return __fmaf_rn(before, by.before, __fmul_rn(after, by.after));
}

// The attention of a few queries: neighbouring rows, each with the heads that share a key head. Of many rows a block does
// all (WHOLE); of few only a part, the pages of their sequences whose streams are its own, and writes for each query the
// largest score, the total and the sums, or only that there is no score. Grid: rows by `rows_each`, key heads by groups of
// query heads, splits. WIDE is the least that heads fit in.
//
// A warp multiplies sixteen queries by the 32 tokens of a page. Which token and which dimension is which of the tensor
// cores' is chosen so that each lane reads eight neighbours at once: lane `4 g + c` has dimensions `32 i + 8 c` and on
// of token `8 (g / 2) + 2 j + g % 2` as column g of tile j of the scores, gets the scores of tokens `8 c + 2 j` and the
// next, and has tokens `8 c` and on of dimension `8 n + g` as column g of tile n of the sums.
#define PAGED_PARAMETERS                                                                                               \
    const float *queries, const u16 *store, const u32 *places, const u32 *sequences, const u32 *firsts,                \
        const u32 *pages, float *out, const u32 *count, u32 rows_each, u32 query_heads, u32 key_heads,                 \
        u32 width, u32 layers, u32 layer, u32 window, float scale, float bound
#define PAGED_ARGUMENTS                                                                                                \
    queries, store, places, sequences, firsts, pages, out, count, rows_each, query_heads, key_heads, width,            \
        layers, layer, window, scale, bound

// The first token that is seen from a place.
__device__ __forceinline__ u32 oldest_of(u32 place, u32 window) {
    return window && place + 1 > window ? place + 1 - window : 0;
}

// The sum or the largest over the four lanes that have the scores of the same two queries.
__device__ __forceinline__ float quad_sum(float value) {
    value = __fadd_rn(value, __shfl_xor_sync(EVERYONE, value, 1));
    return __fadd_rn(value, __shfl_xor_sync(EVERYONE, value, 2));
}

__device__ __forceinline__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(EVERYONE, value, 1));
    return fmaxf(value, __shfl_xor_sync(EVERYONE, value, 2));
}

// Whether any of some rows sees a page of a split's streams.
__device__ __forceinline__ bool is_seen(const u32 *places, u32 rows, u32 window, u32 split) {
    bool any = false;
#pragma unroll 1
    for (u32 row = 0; row < rows; row++) {
        u32 from = oldest_of(places[row], window) / PAGE, last = places[row] / PAGE;
        for (u32 w = 0; w < WARPS; w++) any = any || first_page(from, split + w * SPLITS) <= last;
    }
    return any;
}

__device__ __forceinline__ u32 to_halves(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }

template <int WIDE, bool WHOLE>
__device__ __forceinline__ void paged(PAGED_PARAMETERS) {
    // Queries as 16-bit floats, under a power of two each that `undo` undoes; rows begin in different banks.
    const u32 STRIDE = WIDE + 32;
    extern __shared__ uint4 room[];
    __shared__ float undo[QUERIES], tops[QUERIES], totals[QUERIES], whole_tops[QUERIES], whole_totals[QUERIES];
    u16 *halves = (u16 *)room;
    float *merged = (float *)(halves + QUERIES * STRIDE), *whole = merged + QUERIES * width;
    u32 first = blockIdx.x * rows_each, all = *count;
    if (first >= all) return;
    u32 rows = min(rows_each, all - first);
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, c = lane % 4;
    u32 each = query_heads / key_heads, groups = (each + QUERIES - 1) / QUERIES;
    u32 key_head = blockIdx.y / groups, head = key_head * each + blockIdx.y % groups * QUERIES;
    u32 heads = min(each - blockIdx.y % groups * QUERIES, QUERIES);
    u32 padded = (width + 7) / 8 * 8;
    places += first;
    sequences += first;
    queries += ((u64)first * query_heads + head) * width;
    // Where query q is: of the queries and answers, and SPLITS times as far of the parts.
#define QUERY(q) ((u64)((q) / heads) * query_heads + (q) % heads)
    if (WHOLE) {
        out += ((u64)first * query_heads + head) * width;
    } else {
        out += (((u64)first * query_heads + head) * SPLITS + blockIdx.z) * (width + 2);
        if (!is_seen(places, rows, window, blockIdx.z)) {
            if (threadIdx.x < rows * heads) out[QUERY(threadIdx.x) * SPLITS * (width + 2)] = NEVER;
            return;
        }
    }
#pragma unroll 1
    for (u32 q = warp; q < QUERIES; q += WARPS) {
        bool there = q < rows * heads;
        const float *query = queries + (there ? QUERY(q) : 0) * width;
        float top = 0.0f;
        for (u32 i = lane; i < width; i += 32) top = fmaxf(top, size_of(query[i]));
        Power power = power_of(there ? warp_max(top) : 0.0f);
        for (u32 i = lane; i < WIDE; i += 32) {
            halves[q * STRIDE + i] = there && i < width ? to_half(query[i] * power.by) : 0;
        }
        if (lane == 0) {
            undo[q] = power.undo;
            tops[q] = whole_tops[q] = NEVER;
            totals[q] = whole_totals[q] = 0.0f;
        }
    }
    __syncthreads();
#pragma unroll 1
    for (u32 split = WHOLE ? 0 : blockIdx.z; split < (WHOLE ? SPLITS : blockIdx.z + 1); split++) {
        if (WHOLE && !is_seen(places, rows, window, split)) continue;
        // Of queries g and g + 8: the largest score, the sum of the powers of e of the distances to it, and the values
        // weighed by those.
        float top[2] = {NEVER, NEVER}, total[2] = {0.0f, 0.0f}, sums[WIDE / 8][4];
#pragma unroll
        for (int n = 0; n < WIDE / 8; n++)
            for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
        // Rows of one sequence after the other.
#pragma unroll 1
        for (u32 row = 0, end; row < rows; row = end) {
            for (end = row + 1; end < rows && sequences[end] == sequences[row];) end++;
            // What queries g and g + 8 see, if they are of this sequence: tokens from and to.
            u32 from[2], to[2];
            for (int i = 0; i < 2; i++) {
                u32 q = g + 8 * i, at = q / heads;
                bool here = q < rows * heads && at >= row && at < end;
                from[i] = here ? oldest_of(places[at], window) : 0;
                to[i] = here ? places[at] + 1 : 0;
            }
            const u32 *own = pages + firsts[sequences[row]];
            u32 last = places[end - 1] / PAGE;
#pragma unroll 1
            for (u32 page = first_page(oldest_of(places[row], window) / PAGE, split + warp * SPLITS); page <= last;
                 page += WARPS * SPLITS) {
                const u16 *keys = store + head_at(own[page], layers, layer, key_heads, key_head, padded, width);
                const u16 *values = keys + PAGE * padded;
                float scores[4][4];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    for (int i = 0; i < 4; i++) scores[j][i] = 0.0f;
#pragma unroll 2
                for (u32 d = 0; d < width; d += 32) {
                    uint4 a = *(const uint4 *)(halves + g * STRIDE + d + 8 * c);
                    uint4 b = *(const uint4 *)(halves + (g + 8) * STRIDE + d + 8 * c);
                    bool there = d + 8 * c < padded;
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        u32 token = g / 2 * 8 + 2 * j + g % 2;
                        uint4 key = make_uint4(0, 0, 0, 0);
                        if (there) key = *(const uint4 *)(keys + ((d / 8 + c) * PAGE + token) * 8);
                        multiply_half(scores[j], make_uint4(a.x, b.x, a.y, b.y), key.x, key.y);
                        multiply_half(scores[j], make_uint4(a.z, b.z, a.w, b.w), key.z, key.w);
                    }
                }
                float shrink[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float best = NEVER, by = __fmul_rn(undo[g + 8 * i], scale);
#pragma unroll
                    for (int j = 0; j < 4; j++)
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            u32 token = page * PAGE + 8 * c + 2 * j + k;
                            bool seen = token >= from[i] && token < to[i];
                            float score = loud(bend(__fmul_rn(scores[j][2 * i + k], by), bound));
                            scores[j][2 * i + k] = seen ? score : NEVER;
                            best = fmaxf(best, scores[j][2 * i + k]);
                        }
                    best = fmaxf(top[i], quad_max(best));
                    // Who sees nothing here keeps what it has.
                    float base = best == NEVER ? 0.0f : best, more = 0.0f;
                    shrink[i] = expf(top[i] - base);
                    top[i] = best;
#pragma unroll
                    for (int j = 0; j < 4; j++)
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            float power = expf(scores[j][2 * i + k] - base);
                            scores[j][2 * i + k] = power;
                            more = __fadd_rn(more, power);
                        }
                    total[i] = __fadd_rn(__fmul_rn(total[i], shrink[i]), quad_sum(more));
                }
                uint4 weights[2];
                for (int i = 0; i < 2; i++) {
                    weights[i].x = to_halves(scores[2 * i][0], scores[2 * i][1]);
                    weights[i].y = to_halves(scores[2 * i][2], scores[2 * i][3]);
                    weights[i].z = to_halves(scores[2 * i + 1][0], scores[2 * i + 1][1]);
                    weights[i].w = to_halves(scores[2 * i + 1][2], scores[2 * i + 1][3]);
                }
#pragma unroll
                for (int n = 0; n < WIDE / 8; n++) {
                    if (8 * n < width) {
                        for (int i = 0; i < 4; i++) sums[n][i] = __fmul_rn(sums[n][i], shrink[i / 2]);
                        bool there = 8 * n + g < width;
                        uint4 value = make_uint4(0, 0, 0, 0);
                        if (there) value = *(const uint4 *)(values + (8 * n + g) * PAGE + 8 * c);
                        multiply_half(sums[n], weights[0], value.x, value.y);
                        multiply_half(sums[n], weights[1], value.z, value.w);
                    }
                }
            }
        }
        // The warps' sums, in their order: each adds its own to what those before it left.
#pragma unroll 1
        for (u32 turn = 0; turn < WARPS; turn++) {
            if (warp == turn) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 q = g + 8 * i;
                    float before = tops[q], old = totals[q];
                    __syncwarp();
                    if (top[i] == NEVER) continue;
                    Joined by = join(before, top[i]);
                    if (c == 0) {
                        tops[q] = by.top;
                        totals[q] = joined(old, total[i], by);
                    }
#pragma unroll
                    for (int n = 0; n < WIDE / 8; n++) {
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            u32 at = 8 * n + 2 * c + k;
                            if (at >= width) continue;
                            float sum = before == NEVER ? 0.0f : merged[q * width + at];
                            merged[q * width + at] = joined(sum, sums[n][2 * i + k], by);
                        }
                    }
                }
            }
            __syncthreads();
        }
        if constexpr (WHOLE) {
            // As `paged_merge` does.
#pragma unroll 1
            for (u32 i = threadIdx.x; i < rows * heads * width; i += blockDim.x) {
                u32 q = i / width;
                if (tops[q] == NEVER) continue;
                float before = whole_tops[q] == NEVER ? 0.0f : whole[i];
                whole[i] = joined(before, merged[i], join(whole_tops[q], tops[q]));
            }
            __syncthreads();
            if (threadIdx.x < QUERIES && tops[threadIdx.x] != NEVER) {
                u32 q = threadIdx.x;
                Joined by = join(whole_tops[q], tops[q]);
                whole_totals[q] = joined(whole_totals[q], totals[q], by);
                whole_tops[q] = by.top;
                tops[q] = NEVER;
            }
            __syncthreads();
        } else {
#pragma unroll 1
            for (u32 i = threadIdx.x; i < rows * heads * (width + 2); i += blockDim.x) {
                u32 q = i / (width + 2), at = i % (width + 2);
                if (at && tops[q] == NEVER) continue;
                float number = at == 0 ? tops[q] : at == 1 ? totals[q] : merged[q * width + at - 2];
                out[QUERY(q) * SPLITS * (width + 2) + at] = number;
            }
        }
    }
    if constexpr (WHOLE) {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < rows * heads * width; i += blockDim.x) {
            out[QUERY(i / width) * width + i % width] = whole[i] / whole_totals[i / width];
        }
    }
}

#define PAGED(wide)                                                                                                    \
    KERNEL(WARPS * 32, paged_##wide)(PAGED_PARAMETERS) { paged<wide, false>(PAGED_ARGUMENTS); }                        \
    KERNEL(WARPS * 32, paged_whole_##wide)(PAGED_PARAMETERS) { paged<wide, true>(PAGED_ARGUMENTS); }

PAGED(64)
PAGED(128)
PAGED(256)
static_assert(HEAD_MAX <= 256, "the widest heads fit in the last");

// Adds up the parts of a head of a row, in order. Grid: rows, heads.
KERNEL(256, paged_merge)(const float *partial, float *out, const u32 *count, u32 query_heads, u32 width) {
    u32 row = blockIdx.x, head = blockIdx.y;
    if (row >= *count) return;
    partial += ((u64)row * query_heads + head) * SPLITS * (width + 2);
    float top = NEVER, total = 0.0f;
    // Parts that saw nothing have no sums; scores that are no numbers are not among those.
    bool seen[SPLITS];
    Joined by[SPLITS];
#pragma unroll
    for (u32 split = 0; split < SPLITS; split++) {
        const float *part = partial + split * (width + 2);
        seen[split] = part[0] != NEVER;
        if (!seen[split]) continue;
        by[split] = join(top, part[0]);
        top = by[split].top;
        total = joined(total, part[1], by[split]);
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
#pragma unroll
        for (u32 split = 0; split < SPLITS; split++) {
            if (seen[split]) sum = joined(sum, partial[split * (width + 2) + 2 + i], by[split]);
        }
        out[((u64)row * query_heads + head) * width + i] = sum / total;
    }
}

// Attention in both directions among the rows of a sequence, all in 32 bits. Grid: rows, query heads.
KERNEL(WARPS * 32, attend)(const float *qkv, float *out, const u32 *sequences, const u32 *firsts, const u32 *count,
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
    Seen seen;
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
        float weight = seen.weigh(score);
        u32 tokens = min(end - start, 32);
        for (u32 token = 0; token < tokens; token++) {
            const float *value = qkv + ((u64)(start + token) * heads + value_head) * width;
            float numbers[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                u32 at = number_of(lane, i);
                numbers[i] = at < width ? value[at] : 0.0f;
            }
            seen.mix(__shfl_sync(EVERYONE, weight, token), numbers);
        }
    }
    float *tops = query + (width + 3) / 4 * 4, *totals = tops + WARPS, *sums = totals + WARPS;
    if (lane == 0) {
        tops[warp] = seen.top;
        totals[warp] = seen.total;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        u32 at = number_of(lane, i);
        if (at < width) sums[warp * width + at] = seen.sums[i];
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
