// What every ACmix kernel shares: number types, borders, windows.
//
// The launcher puts this text in place of its #include, so that a kernel is one self-contained
// source for NVRTC and its cache.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Within one channel 32 bits are enough (the launcher checks it); across channels they are not.
typedef long long Offset;

// Sums are float, or double for double.
template <typename T>
struct Accumulator {
    typedef float type;
};
template <>
struct Accumulator<double> {
    typedef double type;
};

__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ double load(const double* p) { return *p; }
__device__ __forceinline__ float load(const __half* p) { return __half2float(*p); }
__device__ __forceinline__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }

__device__ __forceinline__ void store(float* p, float value) { *p = value; }
__device__ __forceinline__ void store(double* p, double value) { *p = value; }
__device__ __forceinline__ void store(__half* p, float value) { *p = __float2half(value); }
__device__ __forceinline__ void store(__nv_bfloat16* p, float value) {
    *p = __float2bfloat16(value);
}

// NVRTC has no INFINITY macro.
__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Input index of window position t, or -1 where it lies outside and is not reflected.
__device__ __forceinline__ int source_index(int t, int size, int reflect) {
    if (t >= 0 && t < size) return t;
    if (!reflect) return -1;
    return t < 0 ? -t : 2 * (size - 1) - t;
}

// The window positions that source_index sends to input index r: r itself (i = 0) and its mirror
// images before (i = 1) and after (i = 2) the map. False where there is none within the padding.
__device__ __forceinline__ bool mirror_image(int i, int r, int size, int pad, int reflect, int* t) {
    if (i == 0) {
        *t = r;
        return true;
    }
    *t = i == 1 ? -r : 2 * (size - 1) - r;
    const bool is_outside = i == 1 ? r > 0 && r <= pad : r < size - 1 && *t < size + pad;
    return reflect && is_outside;
}

// Output index whose window holds position t at offset o (counted from the centre), or -1.
__device__ __forceinline__ int output_index(int t, int o, int out_size, int stride, int dilation) {
    const int position = t - dilation * o;
    if (position < 0 || position % stride != 0) return -1;
    const int index = position / stride;
    return index < out_size ? index : -1;
}

// How many offsets of the window around `centre` lead to input index r.
__device__ __forceinline__ int visits(int centre, int r, int size, int radius, int dilation,
                                      int reflect) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        int t;
        if (!mirror_image(i, r, size, radius * dilation, reflect, &t)) continue;
        const int distance = t > centre ? t - centre : centre - t;
        count += distance <= radius * dilation && distance % dilation == 0;
    }
    return count;
}

// Where the maps of a plane begin, in planes: `heads` of every image, those of its queries,
// keys or values (`part` 0, 1, 2) among `slots`, three times as many, or by themselves.
__device__ __forceinline__ Offset slot(int plane, int heads, int slots, int part) {
    return Offset(plane / heads) * slots + plane % heads + part * (slots - heads) / 2;
}
