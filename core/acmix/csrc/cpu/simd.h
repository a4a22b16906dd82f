// Vectors of the compiler's own kind and pieces of scratch, for the kernels' source files.
//
// Each file is compiled once per instruction set, with ACMIX_ISA as the namespace. Everything else
// lives in an unnamed namespace and no std template is used: a shared inline function compiled for
// AVX-512 could otherwise be the copy that the linker keeps for all.
#pragma once

#include <math.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "acmix_cpu.h"

#ifndef ACMIX_ISA
#define ACMIX_ISA baseline
#endif
#define INLINE inline __attribute__((always_inline))

namespace acmix {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;  // 32, else 16
#else
constexpr bool kManyRegisters = false;
#endif

INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Keeps a loaded vector in a register: GCC would rather load it again for each use, and the loads,
// which cross cache lines, are what the two main loops are short of.
#if defined(__AVX512F__)
#define KEEP(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define KEEP(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define KEEP(v) asm("" : "+w"(v))
#else
#define KEEP(v)
#endif

// ---------------------------------------------------------------------------------- vectors

template <typename T>
struct Traits;
template <>
struct Traits<float> {
    using Int = int32_t;
    static constexpr int kMantissa = 23, kLogTerms = 6;
    static constexpr float kMagic = 12582912.f, kLowest = -126.f;
    static constexpr int32_t kHalf = 0x3f3504f3;  // sqrt(1/2)
};
template <>
struct Traits<double> {
    using Int = int64_t;
    static constexpr int kMantissa = 52, kLogTerms = 12;
    static constexpr double kMagic = 6755399441055744., kLowest = -1022.;
    static constexpr int64_t kHalf = 0x3fe6a09e667f3bcd;
};

template <typename T>
struct Simd {
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using Int = typename Traits<T>::Int;
    typedef T V __attribute__((vector_size(kVectorBytes), may_alias));
    typedef T U __attribute__((vector_size(kVectorBytes), may_alias, aligned(sizeof(T))));
    typedef Int I __attribute__((vector_size(kVectorBytes), may_alias));
    static INLINE V load(const T* p) { return *reinterpret_cast<const U*>(p); }
    static INLINE void store(T* p, V v) { *reinterpret_cast<U*>(p) = v; }
    static INLINE V all(T x) { return V{} + x; }
    static INLINE V larger(V a, V b) { return a > b ? a : b; }
};

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define ACMIX_SHUFFLE 1
#endif
#endif

#ifdef ACMIX_SHUFFLE
template <int... I>
struct Seq {};
template <int N, int... I>
struct MakeSeq : MakeSeq<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSeq<0, I...> {
    using type = Seq<I...>;
};
template <typename V, int... I>
INLINE void zip(V& a, V& b, Seq<I...>) {
    constexpr int n = sizeof...(I);
    V low = __builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...);
    b = __builtin_shufflevector(a, b, (n / 2 + I / 2 + (I % 2) * n)...);
    a = low;
}
#endif

// ---------------------------------------------------------------------------------- scratch

// Hands out aligned pieces of a thread's scratch; with a null base it only counts.
struct Arena {
    char* base;
    size_t used = 0;
    template <typename T>
    T* take(int64_t count) {
        T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
        used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return piece;
    }
};

}  // namespace
}  // namespace acmix
