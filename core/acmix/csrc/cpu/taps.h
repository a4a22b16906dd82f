// What vectors do with the taps of windows between the products of tiles.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace acmix {
namespace {

using S = Simd<float>;
using V = S::V;
static_assert(S::kLanes == kEdge, "a vector is a row of a tile");

// Lanes of v by choice.
#if defined(__AVX512F__)
typedef __mmask16 Choice;
INLINE V larger_of(Choice choice, V top, V v) {
    return (V)_mm512_mask_max_ps((__m512)top, choice, (__m512)top, (__m512)v);
}
#else
typedef uint16_t Choice;
INLINE V or_zero(Choice choice, V v) {
    for (int i = 0; i < kEdge; i++) v[i] = choice >> i & 1 ? v[i] : 0;
    return v;
}
INLINE V larger_of(Choice choice, V top, V v) {
    for (int i = 0; i < kEdge; i++) top[i] = choice >> i & 1 && !(top[i] > v[i]) ? v[i] : top[i];
    return top;
}
#endif

// The elements of v in this order.
INLINE void store_ordered(BFloat16* to, Words v, const uint16_t* order) {
#if defined(__AVX512F__)
    _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)v));
#else
    BFloat16 from[2 * kEdge];
    memcpy(from, &v, sizeof(from));
    for (int i = 0; i < 2 * kEdge; i++) to[i] = from[order[i]];
#endif
}

// Two rows of eight floats.
INLINE V load_rows(const float* a, const float* b) {
#if defined(__AVX512F__)
    __m512 low = _mm512_castps256_ps512(_mm256_loadu_ps(a));
    return (V)_mm512_insertf32x8(low, _mm256_loadu_ps(b), 1);
#else
    V v;
    memcpy(&v, a, 32);
    memcpy(reinterpret_cast<char*>(&v) + 32, b, 32);
    return v;
#endif
}

// 32 numbers as bfloat16.
INLINE Words pack(V a, V b) {
#if defined(__AVX512BF16__)
    return (Words)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
#else
    BFloat16 lanes[2 * kEdge];
    store_vector(lanes, a), store_vector(lanes + kEdge, b);
    Words packed;
    memcpy(&packed, lanes, sizeof(packed));
    return packed;
#endif
}

// The 16 channels of two neighbours in a row, by pairs.
INLINE void store_pairs(BFloat16* to, const BFloat16* a, const BFloat16* b) {
#if defined(__AVX512F__)
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    __m512i both = _mm512_inserti64x4(_mm512_zextsi256_si512(low), high, 1);
    _mm512_store_si512(to, _mm512_permutexvar_epi16(order, both));
#else
    for (int d = 0; d < kEdge; d++) to[2 * d] = a[d], to[2 * d + 1] = b[d];
#endif
}

// 2^x for x <= 0 in the lanes chosen, to 1e-4 of it: weights are rounded to eight bits.
INLINE V weights_of(Choice choice, V x) {
#if defined(__AVX512F__)
    V f = (V)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
    V y = ((f * 0.07706717f + 0.22764485f) * f + 0.69511682f) * f + 1.f;
    return (V)_mm512_maskz_scalef_ps(choice, (__m512)y, (__m512)x);
#else
    return or_zero(choice, exp2_of<float>(x));
#endif
}

INLINE V inverse_of(V x) {
#if defined(__AVX512F__)
    return (V)_mm512_rcp14_ps((__m512)x);
#else
    return 1 / x;
#endif
}

#ifdef ACMIX_SHUFFLE
template <int E, int... I>
INLINE V larger_halves(V a, V b, Seq<I...>) {
    V own = __builtin_shufflevector(a, b, (I & E ? I + 16 : I)...);
    V other = __builtin_shufflevector(a, b, (I & E ? I + 16 - E : I + E)...);
    return S::larger(own, other);
}
#endif

// Lane i: the largest lane of rows[i].
template <int E = 8>
INLINE V largest_lanes(V (&rows)[16]) {
#ifdef ACMIX_SHUFFLE
#pragma GCC unroll 8
    for (int i = 0; i < E; i++) {
        rows[i] = larger_halves<E>(rows[i], rows[i + E], MakeSeq<16>::type());
    }
    if constexpr (E > 1) return largest_lanes<E / 2>(rows);
    return rows[0];
#else
    transpose<float>(rows);
    V tops = rows[0];
    for (int i = 1; i < 16; i++) tops = S::larger(tops, rows[i]);
    return tops;
#endif
}

}  // namespace
}  // namespace acmix
