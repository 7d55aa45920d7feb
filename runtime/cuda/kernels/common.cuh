// What all kernels share. Conventions, for every file here:
//
// - Vectors of a step lie one after the other as 32-bit floats; `count` points to how many of them the step has, which
//   may be fewer than the grid was made for: a captured launch is made for the most that its plan takes.
// - What a vector's answer is does not depend on what other vectors are in the step: sums are made in an order that
//   follows from widths and positions alone. Where two kernels compute the same numbers for few and for many rows,
//   multiplications and additions are written as intrinsics, so that both round alike.
// - Kernels have plain parameters, eight-byte ones first; `src/arguments.rs` names the same ones, and a test compares.
// - Numbers in capitals that are not defined here are those of `src/constants.rs`.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Names have a prefix, since NVRTC knows many names of its own.
#define KERNEL(threads, name) extern "C" __global__ void __launch_bounds__(threads) kedge_##name
#define EVERYONE 0xffffffffu
#define NEVER __int_as_float(0xff800000) /* minus infinity */
#define FINITE_MAX 3.4028235e38f

__device__ __forceinline__ float from_half(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u16 to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float2 from_halves(u32 both) {
    return make_float2(from_half((u16)both), from_half((u16)(both >> 16)));
}

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
    for (int step = 16; step > 0; step >>= 1) value = __fadd_rn(value, __shfl_xor_sync(EVERYONE, value, step));
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int step = 16; step > 0; step >>= 1) value = fmaxf(value, __shfl_xor_sync(EVERYONE, value, step));
    return value;
}

// The sum over a block of whole warps. `parts` holds one number a warp; the block waits for itself on both sides.
__device__ __forceinline__ float block_sum(float value, float *parts) {
    value = warp_sum(value);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = value;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < blockDim.x >> 5; warp++) sum = __fadd_rn(sum, parts[warp]);
    return sum;
}

__device__ __forceinline__ float block_max(float value, float *parts) {
    value = warp_max(value);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = value;
    __syncthreads();
    float top = parts[0];
    for (u32 warp = 1; warp < blockDim.x >> 5; warp++) top = fmaxf(top, parts[warp]);
    return top;
}

// d += a b with 16-bit floats: sixteen rows by sixteen inputs by eight columns.
__device__ __forceinline__ void multiply_half(float (&d)[4], uint4 a, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.z), "r"(a.w), "r"(b1));
#endif
}

// By the number of the activation.
__device__ __forceinline__ float activate(u32 activation, float x) {
    switch (activation) {
    case ACTIVATION_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ACTIVATION_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case ACTIVATION_SILU: return x / (1.0f + expf(-x));
    default: return x;
    }
}

// Rounding of vectors for products (linear.cu). What is not finite makes all products with it not finite.

// The parts of a rounded vector: where it goes, and what undoes it. Nothing is rounded where `kind` is 0.
struct Rounded {
    u32 kind, padded, scales_step;
    void *out, *scales;
};

#define ROUNDED_PARAMETERS void *rounded, void *scales
#define ROUNDED_NUMBERS u32 kind_of_rounded, u32 padded, u32 scales_step
#define ROUNDED {kind_of_rounded, padded, scales_step, rounded, scales}

// The power of two that brings the largest number of a vector to [2¹⁴, 2¹⁵), and what undoes it.
struct Power {
    float by, undo;
};

__device__ __forceinline__ Power power_of(float top) {
    u32 exponent = max((u32)__float_as_int(top) >> 23, 15);
    bool plain = top == 0.0f || exponent == 255;
    return {plain ? 1.0f : __int_as_float(268 - exponent << 23), plain ? 1.0f : __int_as_float(exponent - 14 << 23)};
}

// The size of a number as rounding sees it.
__device__ __forceinline__ float size_of(float value) {
    float size = fabsf(value);
    return size <= FINITE_MAX ? size : -NEVER;
}

// To 16-bit floats, under a power of two that its scale undoes. The vector's block has put its largest size in `top`, and all
// its threads call this; `padded` is its width there. In a chunk of sixteen the four numbers that one lane multiplies lie
// together.
__device__ __forceinline__ void round_half(const float *x, u32 row, u32 width, float top, const Rounded &to) {
    Power power = power_of(top);
    if (threadIdx.x == 0) ((float *)to.scales)[row] = power.undo;
    for (u32 i = threadIdx.x; i < to.padded; i += blockDim.x) {
        u32 at = i / 16 * 16 + i % 8 / 2 * 4 + i % 16 / 8 * 2 + i % 2;
        ((u16 *)to.out)[(u64)row * to.padded + at] = i < width ? to_half(x[i] * power.by) : 0;
    }
}

// To bytes: each 32 numbers under their largest size / 127. The scales have that, and the sum of the bytes times it. A
// warp for 32 numbers, a number a lane: number `i` of row `row`. In a chunk the eight that one lane multiplies lie
// together.
__device__ __forceinline__ void round_bytes(float value, u32 row, u32 i, u32 width, const Rounded &to) {
    float top = warp_max(size_of(value));
    float by = top > 0.0f ? 127.0f / top : 0.0f;
    int q = __float2int_rn(__fmul_rn(value, by));
    int sum = q;
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(EVERYONE, sum, step);
    u32 at = i / 32 * 32 + i % 16 / 4 * 8 + i % 32 / 16 * 4 + i % 4;
    ((signed char *)to.out)[(u64)row * width + at] = (signed char)q;
    float scale = top / 127.0f;
    if (i % 32 == 0) {
        ((float2 *)to.scales)[(u64)(i / 32) * to.scales_step + row] = make_float2(scale, scale * (float)sum);
    }
}
