// Choosing tokens from logits: runtime/engine/src/generate/sample.rs on the device, to the same token.
//
// A block chooses for one vector of logits. There is no sorting: of the likeliest tokens the last one's number is found
// digit by digit, from sums by digit. Masses (the powers of e of distances to the largest logit) are whole numbers, so
// that all sums are exact, in whatever order threads add; what comes before them is written as intrinsics, so that it
// rounds as it does on the host. Among equal logits the first counts as likelier.

#include "common.cuh"

#define BINS 2048

// As `Choices::of` of src/choose.rs writes them. `told` is one more than how many of the likeliest tokens are told; zero when no
// probability is.
struct Draw {
    float sharpness;
    u32 top_k;
    float top_p;
    u32 told;
    u64 least, random;
    u32 first_change, changes;
};

struct Change {
    u32 token;
    float bias, by, off;
};

// What is written for a vector, before the likeliest tokens with their logits.
struct Found {
    u32 is_none, token;
    float logit, top;
    u64 total;
};

static_assert(sizeof(Draw) == 4 * DRAW_NUMBERS && sizeof(Change) == 4 * CHANGE_NUMBERS, "as src/choose.rs has them");
static_assert(sizeof(Found) == 8 * FOUND_NUMBERS, "as src/choose.rs has it");

// See `mass` of sample.rs.
__device__ __forceinline__ u64 mass(float distance) {
    float turns = rintf(__fmul_rn(distance, 1.44269504f));
    if (!(turns >= -41.0f)) return 0;
    float x = __fsub_rn(__fsub_rn(distance, __fmul_rn(turns, 0.6933594f)), __fmul_rn(turns, -2.1219444e-4f));
    float y = 1.9875691e-4f;
    y = __fadd_rn(__fmul_rn(y, x), 1.3982e-3f);
    y = __fadd_rn(__fmul_rn(y, x), 8.333452e-3f);
    y = __fadd_rn(__fmul_rn(y, x), 4.1665796e-2f);
    y = __fadd_rn(__fmul_rn(y, x), 1.6666665e-1f);
    y = __fadd_rn(__fmul_rn(y, x), 5e-1f);
    float power = __fadd_rn(__fadd_rn(__fmul_rn(y, __fmul_rn(x, x)), x), 1.0f);
    return (u64)__fmul_rn(power, __int_as_float((int)turns + WHOLE_BITS + 127 << 23));
}

// A number whose order is that of logits: NaN comes last, and both zeros are the same.
__device__ __forceinline__ u32 ordered(float logit) {
    u32 bits = __float_as_int(logit);
    if (logit != logit) return 0xffffffffu;
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(u32 key) { return __int_as_float(key >> 31 ? key ^ 0x80000000u : ~key); }

// The sum or the largest over the block, the same in every thread. The block waits for itself on both sides.
template <bool LARGEST>
__device__ __forceinline__ u64 over_block(u64 value, u64 *parts) {
#pragma unroll 1
    for (int step = 16; step > 0; step >>= 1) {
        u64 other = __shfl_xor_sync(EVERYONE, value, step);
        value = LARGEST ? max(value, other) : value + other;
    }
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = value;
    __syncthreads();
    value = parts[0];
#pragma unroll 1
    for (u32 warp = 1; warp < CHOOSERS; warp++) value = LARGEST ? max(value, parts[warp]) : value + parts[warp];
    return value;
}

// The sum of what the lanes to this one have.
__device__ __forceinline__ u64 sum_to_here(u64 value) {
#pragma unroll 1
    for (u32 step = 1; step < 32; step *= 2) {
        u64 other = __shfl_up_sync(EVERYONE, value, step);
        if ((threadIdx.x & 31) >= step) value += other;
    }
    return value;
}

// Hands every `step`th logit and its token on. A few are read before the first is looked at: one block alone must keep many
// reads under way.
template <typename Each>
__device__ __forceinline__ void over(const float *logits, u32 from, u32 to, u32 step, const Each &each) {
    const int AHEAD = 8;
#pragma unroll 1
    for (; from + (AHEAD - 1) * step < to; from += AHEAD * step) {
        float some[AHEAD];
#pragma unroll
        for (int n = 0; n < AHEAD; n++) some[n] = logits[from + n * step];
#pragma unroll
        for (int n = 0; n < AHEAD; n++) each(some[n], from + n * step);
    }
#pragma unroll 1
    for (; from < to; from += step) each(logits[from], from);
}

// The likeliest token and its logit as one number, no larger than `most`: that of the logit, and all but the token's.
__device__ __forceinline__ u64 likeliest(const float *logits, u32 width, u64 most, u64 *parts) {
    u64 best = 0;
    over(logits, threadIdx.x, width, CHOOSERS * 32, [&](float logit, u32 i) {
        u64 one = (u64)ordered(logit) << 32 | ~i;
        if (one <= most) best = max(best, one);
    });
    return over_block<true>(best, parts);
}

__device__ __forceinline__ float logit_of(u64 one) { return unordered((u32)(one >> 32)); }
__device__ __forceinline__ bool is_finite(u64 one) { return fabsf(logit_of(one)) <= FINITE_MAX; }

// How a vector's masses are made.
struct Scale {
    float top, sharpness;
    __device__ __forceinline__ u64 of(float logit) const {
        return mass(__fmul_rn(__fsub_rn(logit, top), sharpness));
    }
};

// What is kept: tokens likelier than one, and the first few of those as likely.
struct Cut {
    u32 key, equals;
};

// The likeliest tokens whose masses, or whose count, come to `target`, which all together do.
template <bool MASSES>
__device__ __forceinline__ Cut cut(const float *logits, u32 width, u64 target, Scale scale, u64 *bins, u64 *told) {
    u32 key = 0, lane = threadIdx.x & 31;
#pragma unroll 1
    for (u32 turn = 0; turn < 3; turn++) {
        u32 shift = turn == 0 ? 21 : turn == 1 ? 10 : 0, bits = turn == 2 ? 10 : 11;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
        __syncthreads();
        over(logits, threadIdx.x, width, CHOOSERS * 32, [&](float logit, u32) {
            u32 own = ordered(logit);
            if (turn && own >> (shift + bits) != key) return;
            u64 weight = MASSES ? scale.of(logit) : 1;
            if (weight) atomicAdd(&bins[own >> shift & ((1u << bits) - 1)], weight);
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            // The first lane has the bins of the likeliest.
            u32 each = (1u << bits) / 32, first = (31 - lane) * each;
            u64 own = 0;
#pragma unroll 1
            for (u32 i = 0; i < each; i++) own += bins[first + i];
            u64 sum = sum_to_here(own);
            u32 reached = __ballot_sync(EVERYONE, sum >= target);
            if (lane == __ffs(reached) - 1) {
                u64 left = target - (sum - own);
                u32 digit = first + each - 1;
                while (digit > first && bins[digit] < left) left -= bins[digit--];
                told[0] = left;
                told[1] = key << bits | digit;
            }
        }
        __syncthreads();
        target = told[0];
        key = (u32)told[1];
    }
    u64 weight = MASSES ? max(scale.of(unordered(key)), 1ull) : 1;
    return {key, (u32)((target + weight - 1) / weight)};
}

// What each warp has of the kept tokens: it looks at a run of neighbours.
struct Runs {
    u64 sums[CHOOSERS];
    u32 equals[CHOOSERS];
};

__device__ __forceinline__ u32 run_length(u32 tokens) { return (tokens + CHOOSERS * 32 - 1) / (CHOOSERS * 32) * 32; }

// Sums up the kept ones of some tokens that are at least so heavy. Returns the mass of each of those as likely as the cut.
__device__ __forceinline__ u64 sum_runs(const float *logits, u32 from, u32 to, Cut cut, u64 least, Scale scale, Runs &runs) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, length = run_length(to - from);
    from += warp * length;
    u32 equals = 0;
    u64 sum = 0;
    over(logits, from + lane, min(from + length, to), 32, [&](float logit, u32) {
        u32 key = ordered(logit);
        u64 own = key > cut.key ? scale.of(logit) : 0;
        if (own >= least) sum += own;
        if (key == cut.key) equals++;
    });
#pragma unroll 1
    for (int step = 16; step > 0; step >>= 1) {
        sum += __shfl_xor_sync(EVERYONE, sum, step);
        equals += __shfl_xor_sync(EVERYONE, equals, step);
    }
    __syncthreads();
    if (lane == 0) {
        runs.sums[warp] = sum;
        runs.equals[warp] = equals;
    }
    __syncthreads();
    u64 each = cut.equals ? scale.of(unordered(cut.key)) : 0;
    return each >= least ? each : 0;
}

// Counts runs on to the first whose end is beyond `at`, or over all: what is before it, and how many more equals.
__device__ __forceinline__ u32 count_on(const Runs &runs, Cut cut, u64 each, u64 at, u64 &before, u32 &equals) {
    before = 0;
#pragma unroll 1
    for (u32 warp = 0; warp < CHOOSERS; warp++) {
        u32 more = min(cut.equals - equals, runs.equals[warp]);
        u64 own = runs.sums[warp] + more * each;
        if (before + own > at) return warp;
        before += own;
        equals += more;
    }
    return CHOOSERS;
}

// The token that the draw falls on, walking through the kept ones in the order of their numbers.
__device__ __forceinline__ u32 drawn(const float *logits, u32 width, const Draw &draw, float top, u64 *bins, u64 *told,
                                     Runs &runs) {
    Scale scale = {top, draw.sharpness};
    Cut kept = {0, 0};
    u64 total, before;
    u32 equals = 0, from = 0, to = width, lane = threadIdx.x & 31, warp;
    if (draw.top_k && draw.top_k < width) kept = cut<false>(logits, width, draw.top_k, scale, bins, told);
    if (draw.top_p < 1.0f) {
        u64 each = sum_runs(logits, from, to, kept, 0, scale, runs);
        count_on(runs, kept, each, ~0ull, total, equals);
        u64 wanted = __double2ull_ru(__dmul_rn(__ull2double_rn(total), (double)draw.top_p));
        kept = cut<true>(logits, width, min(max(wanted, 1ull), total), scale, bins, told);
        equals = 0;
    }
    u64 each = sum_runs(logits, from, to, kept, draw.least, scale, runs);
    count_on(runs, kept, each, ~0ull, total, equals);
    u64 left = __umul64hi(draw.random, total);
    equals = 0;
    // The run in which it falls, and the run of that run.
#pragma unroll 1
    for (u32 turn = 0; turn < 2; turn++) {
        if (turn) sum_runs(logits, from, to, kept, draw.least, scale, runs);
        warp = count_on(runs, kept, each, left, before, equals);
        left -= before;
        u32 length = run_length(to - from);
        from += warp * length;
        to = min(from + length, to);
    }
    if (warp == threadIdx.x >> 5) {
        for (u32 start = from; start < to; start += 32) {
            bool there = start + lane < to;
            float logit = there ? logits[start + lane] : NEVER;
            u32 key = ordered(logit), same = __ballot_sync(EVERYONE, there && key == kept.key);
            u64 own = there && key > kept.key ? scale.of(logit) : 0;
            if (own < draw.least) own = 0;
            if (there && key == kept.key && equals + __popc(same & ((1u << lane) - 1)) < kept.equals) own = each;
            u64 sum = sum_to_here(own);
            u32 beyond = __ballot_sync(EVERYONE, sum > left);
            if (beyond) {
                if (lane == 0) told[0] = start + __ffs(beyond) - 1;
                break;
            }
            left -= __shfl_sync(EVERYONE, sum, 31);
            equals += __popc(same);
        }
    }
    __syncthreads();
    return (u32)told[0];
}

// Chooses a token for each vector of logits, which are changed on the way. A block for each; how many there are is told by
// the grid, since this is never captured.
extern "C" __global__ void __launch_bounds__(CHOOSERS * 32, 1) kedge_choose(float *logits, const Draw *draws, Change *changes, Found *found, u32 width, u32 found_step) {
    __shared__ u64 bins[BINS], parts[CHOOSERS], told[2];
    __shared__ Runs runs;
    u32 row = blockIdx.x;
    logits += (u64)row * width;
    found = (Found *)((u64 *)found + (u64)row * found_step);
    Draw draw = draws[row];
    changes += draw.first_change;
    u32 *listed = (u32 *)(found + 1);
    for (u32 i = threadIdx.x; i < 2 * found_step; i += blockDim.x) ((u32 *)found)[i] = 0;
    // Nothing that is not finite passes for the largest, and if something is no number, that is.
    u64 best = likeliest(logits, width, ~0ull, parts), total = 0;
    float raw_top = logit_of(best);
    bool good = is_finite(best);
    if (good && draw.told) {
        over(logits, threadIdx.x, width, CHOOSERS * 32, [&](float logit, u32) {
            total += mass(__fsub_rn(logit, raw_top));
        });
        total = over_block<false>(total, parts);
        u64 one = best;
#pragma unroll 1
        for (u32 at = 0; at < min(draw.told - 1, width); at++) {
            if (at) one = likeliest(logits, width, one - 1, parts);
            if (threadIdx.x == 0) {
                listed[2 * at] = ~(u32)one;
                listed[2 * at + 1] = __float_as_int(logit_of(one));
            }
        }
    }
    if (good && draw.changes) {
        for (u32 i = threadIdx.x; i < draw.changes; i += blockDim.x) {
            Change change = changes[i];
            float old = logits[change.token], logit = __fadd_rn(old, change.bias);
            logit = logit > 0.0f ? __fdiv_rn(logit, change.by) : __fmul_rn(logit, change.by);
            logits[change.token] = __fsub_rn(logit, change.off);
            // For who asks what it was.
            changes[i].bias = old;
        }
        __syncthreads();
        best = likeliest(logits, width, ~0ull, parts);
        good = is_finite(best);
    }
    if (!good) {
        if (threadIdx.x == 0) found->is_none = 1;
        return;
    }
    u32 token = ~(u32)best;
    if (draw.sharpness != 0.0f) token = drawn(logits, width, draw, logit_of(best), bins, told, runs);
    if (threadIdx.x == 0) {
        found->token = token;
        found->logit = logits[token];
        found->top = raw_top;
        found->total = total;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < draw.changes; i += blockDim.x) {
        if (changes[i].token == token) found->logit = changes[i].bias;
    }
}
