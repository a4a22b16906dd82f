// The elements of a map in memory, which may be narrower than what they are computed in.
#pragma once

#include "acmix_cpu.h"
#include "vectors.h"

namespace acmix {
namespace {

// The upper half of a float.
struct BFloat16 {
    uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes), may_alias));

// Calls body(data) with the data of a map, of T or else of what its type says.
template <typename T, typename Body>
INLINE void with_elements(const Map& map, Body body) {
    if constexpr (sizeof(T) == sizeof(float)) {
        if (map.type == kBFloat16) return body(static_cast<BFloat16*>(map.data));
    }
    body(static_cast<T*>(map.data));
}

template <typename T>
INLINE typename Simd<T>::V load_vector(const T* p) {
    return Simd<T>::load(p);
}
INLINE Simd<float>::V load_vector(const BFloat16* p) {
    Halves halves = *reinterpret_cast<const Halves*>(p);
    return (Simd<float>::V)(__builtin_convertvector(halves, Words) << 16);
}

template <typename T>
INLINE void store_vector(T* p, typename Simd<T>::V v) {
    Simd<T>::store(p, v);
}
// To the nearest, halves to even; not a number stays so.
INLINE void store_vector(BFloat16* p, Simd<float>::V v) {
#if defined(__AVX512BF16__)
    *reinterpret_cast<Halves*>(p) = (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    Words bits = (Words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = v == v ? rounded : Words{} + 0x7fc0;
    *reinterpret_cast<Halves*>(p) = __builtin_convertvector(rounded, Halves);
#endif
}

template <typename T>
INLINE T load_one(const T* p) {
    return *p;
}
INLINE float load_one(const BFloat16* p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

template <typename T>
INLINE void store_one(T* p, T x) {
    *p = x;
}
INLINE void store_one(BFloat16* p, float x) {
    BFloat16 lanes[Simd<float>::kLanes];
    store_vector(lanes, Simd<float>::all(x));
    *p = lanes[0];
}

}  // namespace
}  // namespace acmix
