// What all kernels share. Conventions, for every file here:
//
// - Vectors of a step lie one after the other as 32-bit floats; `count` points to how many of them the step has, which
//   may be fewer than the grid was made for: a captured launch is made for the most that its plan takes.
// - What a vector's answer is does not depend on what other vectors are in the step: sums are made in an order that
//   follows from widths and positions alone. Where two kernels compute the same numbers for few and for many rows,
//   multiplications and additions are written as intrinsics, so that both round alike.
// - Kernels have plain parameters, eight-byte ones first; `src/launch.rs` names the same ones, and a test compares.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Names have a prefix, since NVRTC knows many names of its own.
#define KERNEL(threads, name) extern "C" __global__ void __launch_bounds__(threads) kedge_##name
#define EVERYONE 0xffffffffu
#define NEVER __int_as_float(0xff800000) /* minus infinity */

// Tokens in one page of keys and values.
#define PAGE 32

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

// Activations by the numbers that src/launch.rs gives them; none is 0.
__device__ __forceinline__ float activate(u32 activation, float x) {
    switch (activation) {
    case 1: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case 2: return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case 3: return x / (1.0f + expf(-x));
    default: return x;
    }
}
