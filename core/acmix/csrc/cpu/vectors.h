// Vectors of the compiler's own kind, their exponential and logarithm, and integers of sizes.
//
// Each operator's file is compiled once per instruction set, with ACMIX_ISA as the namespace.
// Everything else lives in an unnamed namespace and no std template is used: a shared inline
// function compiled for AVX-512 could otherwise be the copy that the linker keeps for all.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef ACMIX_ISA
#define ACMIX_ISA baseline
#endif
#define INLINE inline __attribute__((always_inline))

namespace acmix {
namespace {

// With ACMIX_WIDE, for tests, the sizes are those of AVX-512 on any machine: the compiler makes the
// vectors of smaller ones.
#if defined(__AVX512F__) || defined(ACMIX_WIDE)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__) || defined(ACMIX_WIDE)
#define ACMIX_MANY_REGISTERS 1
constexpr bool kManyRegisters = true;  // 32, else 16
#else
constexpr bool kManyRegisters = false;
#endif

INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A product of sizes, cut off at more than any memory holds: sums of a few can't overflow.
INLINE int64_t product(int64_t a) { return a; }
template <typename... More>
INLINE int64_t product(int64_t a, int64_t b, More... more) {
    constexpr int64_t kMost = int64_t(1) << 56;
    int64_t c;
    if (__builtin_mul_overflow(a, b, &c) || c > kMost) c = kMost;
    return product(c, more...);
}

// Keeps a loaded vector in a register: GCC would rather load it again for each use, and the loads,
// which cross cache lines, are what the two main loops are short of.
#if defined(ACMIX_WIDE)
#define KEEP(v)
#elif defined(__AVX512F__)
#define KEEP(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define KEEP(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define KEEP(v) asm("" : "+w"(v))
#else
#define KEEP(v)
#endif

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

// GCC has it from 12 on; with ACMIX_NO_SHUFFLE, for tests, no compiler has.
#if defined(__has_builtin) && !defined(ACMIX_NO_SHUFFLE)
#if __has_builtin(__builtin_shufflevector)
#define ACMIX_SHUFFLE 1
#endif
#endif

template <int... I>
struct Seq {};
template <int N, int... I>
struct MakeSeq : MakeSeq<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSeq<0, I...> {
    using type = Seq<I...>;
};

#ifdef ACMIX_SHUFFLE
template <typename V, int... I>
INLINE void zip(V& a, V& b, Seq<I...>) {
    constexpr int n = sizeof...(I);
    V low = __builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...);
    b = __builtin_shufflevector(a, b, (n / 2 + I / 2 + (I % 2) * n)...);
    a = low;
}
// The inverse: lanes of even places into a, those of odd places into b.
template <typename V, int... I>
INLINE void unzip(V& a, V& b, Seq<I...>) {
    V even = __builtin_shufflevector(a, b, (2 * I)...);
    b = __builtin_shufflevector(a, b, (2 * I + 1)...);
    a = even;
}
#endif

// Lanes N to N + L of two vectors after one another, for a constant N up to L. One shuffle costs
// less than a load across two lines of the cache, as all of 64 bytes that are not aligned are.
#if defined(__AVX512F__) || (defined(ACMIX_WIDE) && defined(ACMIX_SHUFFLE))
#define ACMIX_SLIDES 1
template <int N, typename V, int... I>
INLINE V slide(V a, V b, Seq<I...>) {
#if defined(__AVX512F__)
    // GCC would shuffle by a table of indices.
    if constexpr (N == sizeof...(I))
        return b;
    else if constexpr (sizeof...(I) == 16)
        return (V)_mm512_alignr_epi32((__m512i)b, (__m512i)a, N);
    else
        return (V)_mm512_alignr_epi64((__m512i)b, (__m512i)a, N);
#else
    return __builtin_shufflevector(a, b, (N + I)...);
#endif
}
#endif

// In the scale of logits, it makes a softmax one of powers of two.
template <typename T>
constexpr T kLog2e = T(1.44269504088896340736);

// Polynomial of 2^f on [-1/2, 1/2]: interpolated at the Chebyshev points (3e-9) for float, Taylor
// (5e-17) for double.
template <typename V>
INLINE V exp2_fraction(V f, float) {
    V y = f * 0.00015461444724808513f + 0.0013400428177711937f;
    y = y * f + 0.00961805667843204f;
    y = y * f + 0.05550327226669895f;
    y = y * f + 0.24022650922289554f;
    y = y * f + 0.6931472067028329f;
    return y * f + 1.f;
}
template <typename V>
INLINE V exp2_fraction(V f, double) {
    constexpr double kLn2 = 0.693147180559945309417;
    constexpr double kInverse[13] = {1.,     1. / 2, 1. / 3,  1. / 4,  1. / 5,  1. / 6, 1. / 7,
                                     1. / 8, 1. / 9, 1. / 10, 1. / 11, 1. / 12, 1. / 13};
    V x = f * kLn2, y = x * kInverse[12] + 1.;
    for (int i = 11; i >= 0; i--) y = y * (x * kInverse[i]) + 1.;
    return y;
}

// 2^x for x up to about the largest exponent; exactly zero below the smallest normal number.
template <typename T>
INLINE typename Simd<T>::V exp2_of(typename Simd<T>::V x) {
    using S = Simd<T>;
    typename S::V n = x + Traits<T>::kMagic;
    typename S::V y = exp2_fraction(x - (n - Traits<T>::kMagic), T());
    typename S::I bits = (typename S::I)y + ((typename S::I)n << Traits<T>::kMantissa);
    return x < Traits<T>::kLowest ? typename S::V{} : (typename S::V)bits;
}

// Natural logarithm of normal positive numbers: 2 artanh((m - 1) / (m + 1)) + e ln 2.
template <typename T>
INLINE typename Simd<T>::V log_of(typename Simd<T>::V x) {
    using V = typename Simd<T>::V;
    using I = typename Simd<T>::I;
    I shifted = (I)x - Traits<T>::kHalf;
    I exponent = shifted >> Traits<T>::kMantissa;
    V m = (V)((I)x - (exponent << Traits<T>::kMantissa));
    V s = (m - 1) / (m + 1), s2 = s * s, sum = V{};
    for (int i = Traits<T>::kLogTerms; i >= 0; i--) sum = sum * s2 + T(1) / (2 * i + 1);
    V e = __builtin_convertvector(exponent, V);
    return x == x ? 2 * s * sum + e * T(0.693147180559945309417) : x;
}

}  // namespace
}  // namespace acmix
