// Products with matrices: `out = x Wᵀ`, sixteen outputs by eight vectors at a time.
//
// Weights are packed (src/pack.rs) in tiles of sixteen outputs by a chunk of inputs, each number where the lane that
// multiplies it reads it: weights are the 16-row side of the tensor cores' products, vectors the 8-column side, also
// when there is only one vector.
//
// Chunks are dealt to a fixed number of shares by their index, and the sums of the shares are added in order. For few
// vectors each warp of a block takes a share (there is more to read than to compute); for many each warp has outputs of
// its own and takes the shares one after the other. Either way a vector's answer has the same bits, whatever else is in
// the step.
//
// Vectors come rounded: to 16-bit floats under a power of two each (`round_half`), or to signed bytes under a scale for
// each 32 (`round_bytes`), as the CPU backend does. In a chunk the numbers that one lane multiplies lie together. Products
// of bytes are summed as whole numbers, exactly.

#include "common.cuh"

// What every product takes. `list` names the vectors that take part, `list_step` apart for each matrix of a mixture
// (the third dimension of the grid), whose counts follow each other at `count`; without it all do. Vector `id` reads
// row `id / divide` of x and writes row `id` of out.
#define LINEAR_PARAMETERS                                                                                              \
    const u8 *x, const float *scales, const u8 *weights, const u8 *units, const float *bias, float *out,               \
        const u32 *count, const u32 *list, u64 weights_step, u64 units_step, u32 inputs, u32 outputs, u32 width,       \
        u32 first, u32 divide, u32 activation, u32 list_step, u32 scales_step
#define LINEAR_ARGUMENTS                                                                                               \
    x, scales, weights, units, bias, out, count, list, weights_step, units_step, inputs, outputs, width, first,        \
        divide, activation, list_step, scales_step

// The vectors of a block, by their ids; none is NOBODY. False when the block has nothing to do.
#define NOBODY 0xffffffffu
__device__ __forceinline__ bool gather(u32 *ids, u32 columns, const u32 *count, const u32 *list, u32 list_step) {
    u32 total = count[blockIdx.z], first = blockIdx.y * columns;
    if (first >= total) return false;
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) {
        u32 at = first + i;
        ids[i] = at >= total ? NOBODY : list ? list[(u64)blockIdx.z * list_step + at] : at;
    }
    __syncthreads();
    return true;
}

// How many of a block's tiles have anybody; there are never fewer than one.
template <int TILES>
__device__ __forceinline__ int tiles_of(const u32 *ids) {
    int tiles = 1;
    while (tiles < TILES && ids[tiles * COLUMNS] != NOBODY) tiles++;
    return tiles;
}

// The row that a column reads; a column without anybody reads the first one's, and nobody sees what becomes of it.
__device__ __forceinline__ u32 row_of(const u32 *ids, u32 column, u32 divide) {
    u32 id = ids[column];
    return (id == NOBODY ? ids[0] : id) / divide;
}

// What happens to a sum at the end.
struct Finish {
    const u32 *ids;
    u32 divide, outputs, width, first, activation;
    const float *scale_of_vectors, *scale_of_outputs, *bias;
    float *out;

    __device__ __forceinline__ void put(u32 column, u32 output, float sum) const {
        u32 id = ids[column];
        if (id == NOBODY || output >= outputs) return;
        if (scale_of_vectors) sum = __fmul_rn(sum, scale_of_vectors[id / divide]);
        if (scale_of_outputs) sum = __fmul_rn(sum, scale_of_outputs[output]);
        if (bias) sum = __fadd_rn(sum, bias[output]);
        out[(u64)id * width + first + output] = activate(activation, sum);
    }
};

// Where the sums of this lane belong: those of a tile by their index.
__device__ __forceinline__ u32 column_of(int tile, int i) { return tile * COLUMNS + threadIdx.x % 4 * 2 + (i & 1); }
__device__ __forceinline__ u32 output_of(int i) { return threadIdx.x % 32 / 4 + (i >> 1) * 8; }

// Goes through all chunks share by share and finishes the sums. `step(chunk, tiles, sums)` adds the products of a chunk.
// With SPLIT the warps of the block take a share each of the same outputs, else each warp all shares of its own.
template <int TILES, bool SPLIT, typename Step>
__device__ __forceinline__ void sum_up(u32 chunks, const Finish &finish, u32 first_output, const Step &step) {
    u32 warp = threadIdx.x >> 5, shares = min(chunks, SHARES);
    int tiles = tiles_of<TILES>(finish.ids);
    float totals[TILES][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
        for (int i = 0; i < 4; i++) totals[t][i] = 0.0f;
    if (SPLIT) {
        __shared__ float sums[SHARES][TILES * COLUMNS * OUTPUTS];
#pragma unroll (TILES == 1 ? 4 : 1)
        for (u32 chunk = warp; chunk < chunks; chunk += shares) step(chunk, tiles, totals);
#pragma unroll
        for (int t = 0; t < TILES; t++)
            for (int i = 0; i < 4; i++) sums[warp][column_of(t, i) * OUTPUTS + output_of(i)] = totals[t][i];
        __syncthreads();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < tiles * COLUMNS * OUTPUTS; i += blockDim.x) {
            float sum = 0.0f;
#pragma unroll 1
            for (u32 share = 0; share < shares; share++) sum = __fadd_rn(sum, sums[share][i]);
            finish.put(i / OUTPUTS, first_output + i % OUTPUTS, sum);
        }
    } else {
#pragma unroll 1
        for (u32 share = 0; share < shares; share++) {
            float sums[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; t++)
                for (int i = 0; i < 4; i++) sums[t][i] = 0.0f;
#pragma unroll 1
            for (u32 chunk = share; chunk < chunks; chunk += shares) step(chunk, tiles, sums);
#pragma unroll
            for (int t = 0; t < TILES; t++)
                for (int i = 0; i < 4; i++) totals[t][i] = __fadd_rn(totals[t][i], sums[t][i]);
        }
        // A loop, so that activations are there once: each turn picks its sum.
#pragma unroll 1
        for (int at = 0; at < tiles * 4; at++) {
            float sum = 0.0f;
#pragma unroll
            for (int t = 0; t < TILES; t++)
                for (int i = 0; i < 4; i++) sum = at == t * 4 + i ? totals[t][i] : sum;
            finish.put(column_of(at / 4, at % 4), first_output + output_of(at % 4), sum);
        }
    }
}

// Rounds vectors to 16-bit floats. A block for each vector; `times` as many come as `count` says.
KERNEL(1024, round_half)(const float *x, ROUNDED_PARAMETERS, const u32 *count, u32 width, u32 times, ROUNDED_NUMBERS) {
    __shared__ float parts[32];
    u32 row = blockIdx.x;
    if (row >= *count * times) return;
    x += (u64)row * width;
    float top = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) top = fmaxf(top, size_of(x[i]));
    Rounded to = ROUNDED;
    round_half(x, row, width, block_max(top, parts), to);
}

// Rounds vectors to bytes. A thread for each number: rows along x of the grid, columns along y.
KERNEL(256, round_bytes)(const float *x, ROUNDED_PARAMETERS, const u32 *count, u32 width, u32 times, ROUNDED_NUMBERS) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count * times || i >= width) return;
    Rounded to = ROUNDED;
    round_bytes(x[(u64)row * width + i], row, i, width, to);
}

// 32-bit weights, as stored. A warp has four outputs, its lanes share the inputs.
KERNEL(256, linear_f32)(LINEAR_PARAMETERS) {
    __shared__ u32 ids[COLUMNS];
    if (!gather(ids, COLUMNS, count, list, list_step)) return;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 output = (blockIdx.x * (blockDim.x >> 5) + warp) * F32_EACH;
    if (output >= outputs) return;
    const float *w = (const float *)(weights + blockIdx.z * weights_step) + (u64)output * inputs;
    const float *vectors = (const float *)x;
    float sums[F32_EACH][COLUMNS];
    for (int o = 0; o < F32_EACH; o++)
        for (int c = 0; c < COLUMNS; c++) sums[o][c] = 0.0f;
    if (inputs % 4 == 0) {
        for (u32 k = lane * 4; k < inputs; k += 128) {
            float4 ws[F32_EACH];
#pragma unroll
            for (int o = 0; o < F32_EACH; o++) {
                bool there = output + o < outputs;
                ws[o] = there ? *(const float4 *)(w + (u64)o * inputs + k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (ids[c] == NOBODY) break;
                float4 v = *(const float4 *)(vectors + (u64)(ids[c] / divide) * inputs + k);
#pragma unroll
                for (int o = 0; o < F32_EACH; o++) {
                    float sum = __fmaf_rn(ws[o].x, v.x, sums[o][c]);
                    sum = __fmaf_rn(ws[o].y, v.y, sum);
                    sum = __fmaf_rn(ws[o].z, v.z, sum);
                    sums[o][c] = __fmaf_rn(ws[o].w, v.w, sum);
                }
            }
        }
    } else {
        for (u32 k = lane; k < inputs; k += 32) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (ids[c] == NOBODY) break;
                float v = vectors[(u64)(ids[c] / divide) * inputs + k];
#pragma unroll
                for (int o = 0; o < F32_EACH; o++) {
                    float by = output + o < outputs ? w[(u64)o * inputs + k] : 0.0f;
                    sums[o][c] = __fmaf_rn(by, v, sums[o][c]);
                }
            }
        }
    }
    // Each lane finishes one of the sums.
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (ids[c] == NOBODY) break;
#pragma unroll
        for (int o = 0; o < F32_EACH; o++) {
            float all = warp_sum(sums[o][c]);
            if (lane == c * F32_EACH + o) sum = all;
        }
    }
    u32 id = ids[lane / F32_EACH];
    output += lane % F32_EACH;
    if (id == NOBODY || output >= outputs) return;
    if (bias) sum = __fadd_rn(sum, bias[output]);
    out[(u64)id * width + first + output] = activate(activation, sum);
}

// d = a b with signed bytes: sixteen outputs by 32 inputs by eight vectors.
__device__ __forceinline__ void multiply_bytes(int (&d)[4], uint4 a, u32 b0, u32 b1) {
    d[0] = d[1] = d[2] = d[3] = 0;
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(d[0]), "+r"(d[1]) : "r"(a.x), "r"(b0));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(d[0]), "+r"(d[1]) : "r"(a.z), "r"(b1));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(d[2]), "+r"(d[3]) : "r"(a.y), "r"(b0));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(d[2]), "+r"(d[3]) : "r"(a.w), "r"(b1));
#endif
}

// The first output of this warp's tile.
template <bool SPLIT>
__device__ __forceinline__ u32 first_output() {
    return (SPLIT ? blockIdx.x : blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * OUTPUTS;
}

// 16-bit weights. `units` has a scale for each output, or there is none; `inputs` is padded to whole chunks.
template <int TILES, bool SPLIT>
__device__ __forceinline__ void linear_half(LINEAR_PARAMETERS) {
    __shared__ u32 ids[TILES * COLUMNS];
    if (!gather(ids, TILES * COLUMNS, count, list, list_step)) return;
    u32 lane = threadIdx.x & 31, chunks = inputs / 16, output = first_output<SPLIT>();
    if (output >= outputs) return;
    const uint4 *tile = (const uint4 *)(weights + blockIdx.z * weights_step) + (u64)(output / OUTPUTS) * chunks * 32 + lane;
    const uint2 *vectors = (const uint2 *)x + lane % 4;
    u32 from[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++) from[t] = row_of(ids, t * COLUMNS + lane / 4, divide) * (inputs / 4);
    const float *scale_of_outputs = units ? (const float *)(units + blockIdx.z * units_step) : 0;
    Finish finish = {ids, divide, outputs, width, first, activation, scales, scale_of_outputs, bias, out};
    sum_up<TILES, SPLIT>(chunks, finish, output, [&](u32 chunk, int tiles, float(&sums)[TILES][4]) {
        uint4 a = tile[chunk * 32];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (t >= tiles) break;
            uint2 b = vectors[from[t] + chunk * 4];
            multiply_half(sums[t], a, b.x, b.y);
        }
    });
}

KERNEL(256, linear_half_8)(LINEAR_PARAMETERS) { linear_half<1, true>(LINEAR_ARGUMENTS); }
KERNEL(256, linear_half_32)(LINEAR_PARAMETERS) { linear_half<4, true>(LINEAR_ARGUMENTS); }
KERNEL(256, linear_half_64)(LINEAR_PARAMETERS) { linear_half<8, false>(LINEAR_ARGUMENTS); }

// Quantised weights in chunks of 32 inputs: numbers, then 32 bytes of scales (src/pack.rs).
enum Format { Q8_0, Q4_0, Q4_K, Q5_K, Q6_K };

template <Format FORMAT>
struct Chunk {
    static const u32 NUMBERS = FORMAT == Q8_0 ? 512 : FORMAT == Q5_K ? 320 : FORMAT == Q6_K ? 384 : 256;
    static const u32 BYTES = NUMBERS + 32;
    // Bytes of `units` for each eight chunks.
    static const u32 UNITS = FORMAT == Q4_K || FORMAT == Q5_K ? 64 : 32;

    // A lane's sixteen numbers as signed bytes.
    static __device__ __forceinline__ uint4 numbers(const u8 *chunk, u32 lane) {
        if (FORMAT == Q8_0) return ((const uint4 *)chunk)[lane];
        uint2 low = ((const uint2 *)chunk)[lane];
        const u32 NIBBLES = 0x0f0f0f0f;
        uint4 a = make_uint4(low.x & NIBBLES, low.x >> 4 & NIBBLES, low.y & NIBBLES, low.y >> 4 & NIBBLES);
        if (FORMAT == Q4_0) return make_uint4(less(a.x, 8), less(a.y, 8), less(a.z, 8), less(a.w, 8));
        if (FORMAT == Q5_K) {
            u32 high = ((const u16 *)(chunk + 256))[lane];
            return make_uint4(a.x | fifth(high), a.y | fifth(high >> 4), a.z | fifth(high >> 8),
                              a.w | fifth(high >> 12));
        }
        if (FORMAT == Q6_K) {
            u32 high = ((const u32 *)(chunk + 256))[lane];
            const u32 PAIRS = 0x30303030;
            return make_uint4(less(a.x | (high << 4 & PAIRS), 32), less(a.y | (high << 2 & PAIRS), 32),
                              less(a.z | (high & PAIRS), 32), less(a.w | (high >> 2 & PAIRS), 32));
        }
        return a;
    }

    // Takes a number off each byte, none of which is above 127.
    static __device__ __forceinline__ u32 less(u32 bytes, u32 off) {
        return ((bytes | 0x80808080) - off * 0x01010101) ^ 0x80808080;
    }

    // Four bits to the fifth bit of four bytes.
    static __device__ __forceinline__ u32 fifth(u32 bits) { return ((bits & 15) * 0x00204081 & 0x01010101) << 4; }
};

template <Format FORMAT, int TILES, bool SPLIT>
__device__ __forceinline__ void linear_quant(LINEAR_PARAMETERS) {
    typedef Chunk<FORMAT> C;
    __shared__ u32 ids[TILES * COLUMNS];
    if (!gather(ids, TILES * COLUMNS, count, list, list_step)) return;
    u32 lane = threadIdx.x & 31, chunks = inputs / 32, row = lane / 4, output = first_output<SPLIT>();
    if (output >= outputs) return;
    weights += blockIdx.z * weights_step + (u64)(output / OUTPUTS) * chunks * C::BYTES;
    if (FORMAT != Q8_0 && FORMAT != Q4_0) {
        units += blockIdx.z * units_step + (u64)(output / OUTPUTS) * ((chunks + 7) / 8) * C::UNITS;
    }
    // A lane multiplies one vector's numbers, and keeps the sums of two others.
    const uint2 *vectors = (const uint2 *)x + lane % 4;
    const float2 *scale_of = (const float2 *)scales;
    u32 from[TILES], kept[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        from[t] = row_of(ids, t * COLUMNS + row, divide) * (inputs / 8);
        for (int i = 0; i < 2; i++) kept[t][i] = row_of(ids, column_of(t, i), divide);
    }
    Finish finish = {ids, divide, outputs, width, first, activation, 0, 0, bias, out};
    sum_up<TILES, SPLIT>(chunks, finish, output, [&](u32 chunk, int tiles, float(&sums)[TILES][4]) {
        const u8 *at = weights + (u64)chunk * C::BYTES, *scale_at = at + C::NUMBERS;
        uint4 a = C::numbers(at, lane);
        // For outputs `row` and `row + 8`: the scale, and the second half's scale or the minimum.
        float by[2], other[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 output = row + 8 * i;
            if (FORMAT == Q8_0 || FORMAT == Q4_0) {
                by[i] = from_half(((const u16 *)scale_at)[output]);
            } else {
                const u16 *unit = (const u16 *)(units + chunk / 8 * C::UNITS);
                float scale = from_half(unit[output]);
                if (FORMAT == Q6_K) {
                    by[i] = __fmul_rn(scale, (float)((const signed char *)scale_at)[output]);
                    other[i] = __fmul_rn(scale, (float)((const signed char *)scale_at)[OUTPUTS + output]);
                } else {
                    by[i] = __fmul_rn(scale, (float)scale_at[output]);
                    other[i] = __fmul_rn(from_half(unit[OUTPUTS + output]), (float)scale_at[OUTPUTS + output]);
                }
            }
        }
        const float2 *scale_here = scale_of + (u64)chunk * scales_step;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (t >= tiles) break;
            uint2 b = vectors[from[t] + chunk * 4];
            float2 scale[2] = {scale_here[kept[t][0]], scale_here[kept[t][1]]};
            int whole[4], second[4];
            if (FORMAT == Q6_K) {
                multiply_bytes(whole, make_uint4(a.x, a.y, 0, 0), b.x, b.y);
                multiply_bytes(second, make_uint4(0, 0, a.z, a.w), b.x, b.y);
            } else {
                multiply_bytes(whole, a, b.x, b.y);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float scale_of_vector = scale[i & 1].x, sum = sums[t][i];
                sum = __fmaf_rn((float)whole[i], __fmul_rn(by[i >> 1], scale_of_vector), sum);
                if (FORMAT == Q6_K) {
                    sum = __fmaf_rn((float)second[i], __fmul_rn(other[i >> 1], scale_of_vector), sum);
                }
                if (FORMAT == Q4_K || FORMAT == Q5_K) sum = __fmaf_rn(-other[i >> 1], scale[i & 1].y, sum);
                sums[t][i] = sum;
            }
        }
    });
}

#define LINEAR_QUANT(name, format)                                                                                     \
    KERNEL(256, linear_##name##_8)(LINEAR_PARAMETERS) { linear_quant<format, 1, true>(LINEAR_ARGUMENTS); }             \
    KERNEL(256, linear_##name##_32)(LINEAR_PARAMETERS) { linear_quant<format, 4, true>(LINEAR_ARGUMENTS); }            \
    KERNEL(256, linear_##name##_64)(LINEAR_PARAMETERS) { linear_quant<format, 8, false>(LINEAR_ARGUMENTS); }

LINEAR_QUANT(q8_0, Q8_0)
LINEAR_QUANT(q4_0, Q4_0)
LINEAR_QUANT(q4_k, Q4_K)
LINEAR_QUANT(q5_k, Q5_K)
LINEAR_QUANT(q6_k, Q6_K)
