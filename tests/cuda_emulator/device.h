// CUDA C++ as the ACmix kernels use it, for g++: a kernel's text compiles unchanged behind this.
//
// Not here: static shared memory, warp functions, atomics, vector types. No kernel needs them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
    unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
typedef void (*Body)(void* context);
void barrier(int line);
int run(Body body, void* context, const unsigned* grid, const unsigned* block);
}  // namespace emulator

static inline void __syncthreads(int line = __builtin_LINE()) { emulator::barrier(line); }

static inline float emulator_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t emulator_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __int_as_float(int bits) { return emulator_float(uint32_t(bits)); }

using std::exp;
using std::log;
using std::max;
using std::min;

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

static inline float __half2float(__half h) {
    const uint32_t sign = uint32_t(h.bits & 0x8000) << 16;
    const uint32_t exponent = h.bits >> 10 & 31, mantissa = h.bits & 0x3ff;
    if (exponent == 0) return (sign ? -1 : 1) * std::ldexp(float(mantissa), -24);
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return emulator_float(sign | wide << 23 | mantissa << 13);
}
// Rounds to nearest, ties to even, as the device does.
static inline __half __float2half(float value) {
    const uint32_t bits = emulator_bits(value), sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7fff)};
    if (magnitude < 0x38800000)
        return {uint16_t(sign | uint32_t(std::nearbyint(std::ldexp(std::fabs(value), 24))))};
    magnitude += 0xfff + (magnitude >> 13 & 1);
    if (magnitude >= 0x47800000) return {uint16_t(sign | 0x7c00)};
    return {uint16_t(sign | (magnitude - 0x38000000) >> 13)};
}
static inline float __bfloat162float(__nv_bfloat16 b) {
    return emulator_float(uint32_t(b.bits) << 16);
}
static inline __nv_bfloat16 __float2bfloat16(float value) {
    const uint32_t bits = emulator_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// A launch takes pointers to the arguments, as the driver's does, and tells their types: one
// letter each, small for numbers, capital for pointers.
namespace emulator {
template <typename T>
constexpr char letter() {
    if (std::is_pointer_v<T>) {
        const char pointed = letter<std::remove_cv_t<std::remove_pointer_t<T>>>();
        return char(pointed - 'a' + 'A');
    }
    if (std::is_same_v<T, float>) return 'f';
    if (std::is_same_v<T, double>) return 'd';
    if (std::is_same_v<T, __half>) return 'h';
    if (std::is_same_v<T, __nv_bfloat16>) return 'b';
    return std::is_same_v<T, int> ? 'i' : '?';
}

// Not instrumented: the arguments themselves are no memory of the device.
#define EMULATOR_PLAIN __attribute__((no_sanitize("thread"), noinline))

template <typename... A>
struct Call {
    void (*kernel)(A...);
    void** args;

    template <size_t... I>
    EMULATOR_PLAIN void expand(std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<A>*>(args[I])...);
    }
    EMULATOR_PLAIN static void body(void* call) {
        static_cast<Call*>(call)->expand(std::index_sequence_for<A...>());
    }
};

template <typename... A>
EMULATOR_PLAIN int launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block,
                          void** args) {
    Call<A...> call = {kernel, args};
    return run(&Call<A...>::body, &call, grid, block);
}
template <typename... A>
const char* signature(void (*)(A...)) {
    static const char letters[] = {letter<std::remove_cv_t<A>>()..., 0};
    return letters;
}
}  // namespace emulator

#define EMULATOR_EXPORT(i, ...)                                                              \
    extern "C" __attribute__((visibility("default"))) int emulator_launch_##i(               \
        const unsigned* grid, const unsigned* block, void** args) {                          \
        return emulator::launch(&__VA_ARGS__, grid, block, args);                            \
    }                                                                                        \
    extern "C" __attribute__((visibility("default"))) const char* emulator_signature_##i() { \
        return emulator::signature(&__VA_ARGS__);                                            \
    }
