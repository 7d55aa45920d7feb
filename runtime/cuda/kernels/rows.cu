// Operations that handle each vector by itself, except products: embedding, norms, sums, gates, pooling.

#include "common.cuh"

// A number as GGUF stores it (ggml-common.h). A block's scale comes first, except
// in the last kind.
__device__ __noinline__ float stored(u32 kind, const u8 *base, u64 index) {
    switch (kind) {
    case STORED_F32: return ((const float *)base)[index];
    case STORED_F16: return from_half(((const u16 *)base)[index]);
    case STORED_BF16: return __int_as_float((u32)((const u16 *)base)[index] << 16);
    case STORED_Q8_0: {
        const u8 *block = base + index / 32 * 34;
        return from_half(*(const u16 *)block) * (float)(signed char)block[2 + index % 32];
    }
    case STORED_Q4_0: {
        const u8 *block = base + index / 32 * 18;
        u32 at = index % 32;
        int q = block[2 + at % 16] >> (at / 16 * 4) & 15;
        return from_half(*(const u16 *)block) * (float)(q - 8);
    }
    case STORED_Q4_K:
    case STORED_Q5_K: {
        const u8 *block = base + index / 256 * (kind == STORED_Q4_K ? 144 : 176);
        u32 at = index % 256, part = at / 32;
        const u8 *packed = block + 4;
        u32 scale, minimum;
        if (part < 4) {
            scale = packed[part] & 63;
            minimum = packed[part + 4] & 63;
        } else {
            scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4;
            minimum = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4;
        }
        u32 q = block[(kind == STORED_Q4_K ? 16 : 48) + part / 2 * 32 + at % 32] >> (part % 2 * 4) & 15;
        if (kind == STORED_Q5_K) q |= (block[16 + at % 32] >> part & 1) << 4;
        float unit = from_half(*(const u16 *)block), unit_of_minimum = from_half(*(const u16 *)(block + 2));
        return __fsub_rn(unit * (float)scale * (float)q, unit_of_minimum * (float)minimum);
    }
    default: {
        const u8 *block = base + index / 256 * 210;
        u32 at = index % 256, half = at / 128, row = at % 128 / 32, lane = at % 32;
        u32 low = block[64 * half + lane + 32 * (row % 2)] >> (row / 2 * 4) & 15;
        u32 high = block[128 + 32 * half + lane] >> (2 * row) & 3;
        float scale = (float)(signed char)block[192 + at / 16];
        return from_half(*(const u16 *)(block + 208)) * scale * (float)((int)(low | high << 4) - 32);
    }
    }
}

// A number of a matrix that is packed for products (src/pack.rs). Models whose last
// matrix is their table of words have it only once.
__device__ __noinline__ float packed(u32 kind, const u8 *base, const u8 *units, u32 chunks, u32 row, u32 input) {
    static_assert(OUTPUTS == 16, "lanes have an output of the first eight and one of the others");
    u32 tile = row / OUTPUTS, output = row % OUTPUTS;
    if (kind == PACKED_HALF) {
        u32 within = input % 16, lane = output % 8 * 4 + within % 8 / 2, part = within / 8 * 2 + output / 8;
        const u16 *chunk = (const u16 *)(base + ((u64)tile * chunks + input / 16) * 512);
        float value = from_half(chunk[lane * 8 + part * 2 + within % 2]);
        return units ? value * ((const float *)units)[row] : value;
    }
    // Bytes of a chunk's numbers, of which the low four bits have 256 where they are apart.
    u32 bytes = kind == PACKED_Q8_0 ? 512 : kind == PACKED_Q5_K ? 320 : kind == PACKED_Q6_K ? 384 : 256;
    u32 within = input % 32, lane = output % 8 * 4 + within % 16 / 4, part = within / 16 * 2 + output / 8, at = within % 4;
    const u8 *chunk = base + ((u64)tile * chunks + input / 32) * (bytes + 32), *scales = chunk + bytes;
    if (kind == PACKED_Q8_0) return from_half(((const u16 *)scales)[output]) * (float)(signed char)chunk[lane * 16 + part * 4 + at];
    u32 q = chunk[lane * 8 + part / 2 * 4 + at] >> (part % 2 * 4) & 15;
    if (kind == PACKED_Q4_0) return from_half(((const u16 *)scales)[output]) * (float)((int)q - 8);
    const u16 *unit = (const u16 *)(units + ((u64)tile * ((chunks + 7) / 8) + input / 256) * (kind == PACKED_Q6_K ? 32 : 64));
    if (kind == PACKED_Q6_K) {
        q |= (chunk[256 + lane * 4 + at] >> (2 * part) & 3) << 4;
        float scale = (float)(signed char)scales[within / 16 * OUTPUTS + output];
        return from_half(unit[output]) * scale * (float)((int)q - 32);
    }
    if (kind == PACKED_Q5_K) q |= (chunk[256 + lane * 2 + part / 2] >> (part % 2 * 4 + at) & 1) << 4;
    float scale = (float)scales[output], minimum = (float)scales[OUTPUTS + output];
    return __fsub_rn(from_half(unit[output]) * scale * (float)q, from_half(unit[OUTPUTS + output]) * minimum);
}

// A block for each row.
KERNEL(512, embed)(const u8 *words, const u8 *units, const u8 *positions, const u8 *types, const u32 *ids,
                   const u32 *places, const u32 *kinds_of_tokens, float *out, const u32 *count, u32 kind_of_words,
                   u32 chunks, u32 kind_of_positions, u32 kind_of_types, u32 width, float scale) {
    u32 row = blockIdx.x;
    if (row >= *count) return;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        u32 id = ids[row];
        float sum = kind_of_words < PACKED_HALF ? stored(kind_of_words, words, (u64)id * width + i)
                                      : packed(kind_of_words, words, units, chunks, id, i);
        if (positions) sum += stored(kind_of_positions, positions, (u64)places[row] * width + i);
        if (types) sum += stored(kind_of_types, types, (u64)kinds_of_tokens[row] * width + i);
        out[(u64)row * width + i] = sum * scale;
    }
}

// A block for each row. Without `beta` it is the root of the mean square that is scaled to one. What comes out is rounded
// at once for the product that reads it, if one does.
KERNEL(1024, norm)(const float *x, const float *residual, const float *gamma, const float *beta, float *sum, float *out,
                   ROUNDED_PARAMETERS, const u32 *count, u32 width, ROUNDED_NUMBERS, float epsilon, float more) {
    __shared__ float parts[32];
    u32 row = blockIdx.x;
    if (row >= *count) return;
    x += (u64)row * width;
    out += (u64)row * width;
    if (residual) residual += (u64)row * width;
    float total = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = residual ? x[i] + residual[i] : x[i];
        if (sum) sum[(u64)row * width + i] = value;
        total += beta ? value : value * value;
    }
    total = block_sum(total, parts) / (float)width;
    float mean = 0.0f;
    if (beta) {
        mean = total;
        total = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            float value = (residual ? x[i] + residual[i] : x[i]) - mean;
            total += value * value;
        }
        total = block_sum(total, parts) / (float)width;
    }
    float by = 1.0f / sqrtf(total + epsilon);
    Rounded to = ROUNDED;
    float top = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = (residual ? x[i] + residual[i] : x[i]) - mean;
        value = value * by * (gamma[i] + more) + (beta ? beta[i] : 0.0f);
        out[i] = value;
        top = fmaxf(top, size_of(value));
        if (to.kind == ROUNDED_BYTES) round_bytes(value, row, i, width, to);
    }
    if (to.kind == ROUNDED_HALVES) round_half(out, row, width, block_max(top, parts), to);
}

// These take a thread for each number: rows along x of the grid, columns along y.
KERNEL(256, add)(const float *x, const float *y, float *out, const u32 *count, u32 width) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count || i >= width) return;
    u64 at = (u64)row * width + i;
    out[at] = x[at] + y[at];
}

KERNEL(256, softcap)(const float *x, float *out, const u32 *count, u32 width, float bound) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count || i >= width) return;
    u64 at = (u64)row * width + i;
    out[at] = bound * tanhf(x[at] / bound);
}

// `width` is that of the result; `times` as many rows as `count` says. What comes out is rounded at once to bytes, if the
// product that reads it wants bytes.
KERNEL(256, gate)(const float *x, float *out, ROUNDED_PARAMETERS, const u32 *count, u32 width, u32 activation,
                  u32 times, ROUNDED_NUMBERS) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count * times || i >= width) return;
    const float *both = x + (u64)row * 2 * width;
    float value = activate(activation, both[i]) * both[width + i];
    out[(u64)row * width + i] = value;
    Rounded to = ROUNDED;
    if (to.kind == ROUNDED_BYTES) round_bytes(value, row, i, width, to);
}

KERNEL(256, take)(const float *x, const u32 *rows, float *out, const u32 *count, u32 width) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (row >= *count || i >= width) return;
    out[(u64)row * width + i] = x[(u64)rows[row] * width + i];
}

// Here x of the grid are sequences: `firsts` says where each begins, and one more where the last ends.
KERNEL(256, pool)(const float *x, const u32 *firsts, float *out, const u32 *count, u32 width, u32 pooling) {
    u32 i = blockIdx.y * blockDim.x + threadIdx.x, sequence = blockIdx.x;
    if (sequence >= *count || i >= width) return;
    u32 first = firsts[sequence], end = firsts[sequence + 1];
    float value = x[(u64)(pooling == POOL_LAST ? end - 1 : first) * width + i];
    if (pooling == POOL_MEAN || pooling == POOL_MAX) {
        for (u32 row = first + 1; row < end; row++) {
            float other = x[(u64)row * width + i];
            value = pooling == POOL_MEAN ? value + other : fmaxf(value, other);
        }
        if (pooling == POOL_MEAN) value /= (float)(end - first);
    }
    out[(u64)sequence * width + i] = value;
}

// A block for each row.
KERNEL(512, normalize)(const float *x, float *out, const u32 *count, u32 width) {
    __shared__ float parts[16];
    u32 row = blockIdx.x;
    if (row >= *count) return;
    x += (u64)row * width;
    float total = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) total += x[i] * x[i];
    float length = fmaxf(sqrtf(block_sum(total, parts)), 1e-12f);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[(u64)row * width + i] = x[i] / length;
}
