// Copies of rows of pixels in and out of scratch.
//
// A row in scratch is channel planes of lanes, [channel][lane]; where each lane lives in a tensor
// is a table, in which borders, memory formats, strides and interleaved heads end.
#pragma once

#include <type_traits>

#include "elements.h"

namespace acmix {
namespace {

// Where each lane of a scratch row lives in a tensor, relative to a row; -1: nowhere, read as zero.
struct Lanes {
    int64_t* offset;
    int64_t count, begin, end;  // lanes [begin, end) are neighbours in memory, the longest such run
    int64_t* other;             // lanes that live somewhere else, other_count of them
    int64_t other_count;
    void* pieces;  // count / L of Pieces, or null
};

#if defined(__AVX512F__)
// A vector of lanes as a permutation of at most two pieces of memory, read under masks: rows with
// reflected ends, two interleaved heads or every second pixel then cost two loads and a shuffle.
struct Pieces {
    int64_t first[2];
    int64_t index[8];  // 16 of 32 bits for float
    uint32_t mask[2], used;
};
static_assert(sizeof(Pieces) <= 12 * sizeof(int64_t), "find_runs counts on it");

template <typename T>
bool find_pieces(const int64_t* offset, Pieces& p) {
    constexpr int L = Simd<T>::kLanes;
    auto* index = reinterpret_cast<typename Traits<T>::Int*>(p.index);
    bool left[L];
    p.used = 0;
    for (int i = 0; i < L; i++) left[i] = offset[i] >= 0, p.used |= left[i] << i, index[i] = 0;
    for (int piece = 0; piece < 2; piece++) {
        int64_t first = -1;
        for (int i = 0; i < L; i++) {
            if (left[i] && (first < 0 || offset[i] < first)) first = offset[i];
        }
        p.first[piece] = first < 0 ? 0 : first, p.mask[piece] = 0;
        for (int i = 0; i < L; i++) {
            if (!left[i] || offset[i] >= first + L) continue;
            left[i] = false, p.mask[piece] |= 1u << (offset[i] - first);
            index[i] = static_cast<typename Traits<T>::Int>(piece * L + offset[i] - first);
        }
    }
    for (int i = 0; i < L; i++) {
        if (left[i]) return false;
    }
    return true;
}

INLINE void load_pieces(float* to, int64_t pitch, int64_t depth, const float* from, int64_t stride,
                        const Pieces& p, float scale) {
    __m512i index = _mm512_loadu_si512(p.index);
    __mmask16 first = p.mask[0], second = p.mask[1], used = p.used;
    __m512 factor = _mm512_set1_ps(scale);
    for (int64_t d = 0; d < depth; d++, from += stride, to += pitch) {
        __m512 a = _mm512_maskz_loadu_ps(first, from + p.first[0]);
        __m512 b = _mm512_maskz_loadu_ps(second, from + p.first[1]);
        a = _mm512_maskz_permutex2var_ps(used, a, index, b);
        _mm512_storeu_ps(to, _mm512_mul_ps(a, factor));
    }
}
INLINE void load_pieces(double* to, int64_t pitch, int64_t depth, const double* from,
                        int64_t stride, const Pieces& p, double scale) {
    __m512i index = _mm512_loadu_si512(p.index);
    __mmask8 first = p.mask[0], second = p.mask[1], used = p.used;
    __m512d factor = _mm512_set1_pd(scale);
    for (int64_t d = 0; d < depth; d++, from += stride, to += pitch) {
        __m512d a = _mm512_maskz_loadu_pd(first, from + p.first[0]);
        __m512d b = _mm512_maskz_loadu_pd(second, from + p.first[1]);
        a = _mm512_maskz_permutex2var_pd(used, a, index, b);
        _mm512_storeu_pd(to, _mm512_mul_pd(a, factor));
    }
}
#endif

// Places of a table of lanes: offsets, other lanes, pieces.
INLINE int64_t table_size(int64_t count) { return 4 * count; }

// `table` has table_size(count) places, the first `count` filled with offsets; channels are
// `stride` apart.
template <typename T>
Lanes find_runs(int64_t* table, int64_t count, int64_t stride) {
    Lanes lanes{table, count, 0, 0, table + count, 0, nullptr};
    for (int64_t i = 0; i < count;) {
        int64_t j = i + 1;
        if (table[i] >= 0) {
            while (j < count && table[j] == table[j - 1] + 1) j++;
            if (j - i > max_of(lanes.end - lanes.begin, 1)) lanes.begin = i, lanes.end = j;
        }
        i = j;
    }
    for (int64_t i = 0; i < count; i++) {
        bool in_run = i >= lanes.begin && i < lanes.end;
        if (table[i] >= 0 && !in_run) lanes.other[lanes.other_count++] = i;
    }
#if defined(__AVX512F__)
    constexpr int L = Simd<T>::kLanes;
    auto* pieces = reinterpret_cast<Pieces*>(table + 2 * count);
    // Where channels are neighbours, lanes are not.
    bool found = count % L == 0 && stride != 1;
    for (int64_t i = 0; found && i < count / L; i++) {
        found = find_pieces<T>(table + i * L, pieces[i]);
    }
    if (found) lanes.pieces = pieces;
#endif
    return lanes;
}

// to[i] = scale * from[i] for i < n where memory has another type than scratch.
template <typename T, int N, typename To, typename From>
INLINE void scaled_copy(To* to, const From* from, int64_t n, T scale) {
    for (int64_t i = 0; i < n; i++) store_one(to + i, load_one(from + i) * scale);
}

// The same in whole vectors, the last of which may overlap the one before.
template <typename T, int N>
INLINE void scaled_copy(T* to, const T* from, int64_t n, T scale) {
    if constexpr (N <= 1) {
        if (n > 0) to[0] = from[0] * scale;
    } else {
        typedef T U __attribute__((vector_size(N * sizeof(T)), may_alias, aligned(sizeof(T))));
        auto move = [&](int64_t i) {
            *reinterpret_cast<U*>(to + i) = *reinterpret_cast<const U*>(from + i) * scale;
        };
        if (n < N) return scaled_copy<T, N / 2>(to, from, n, scale);
        for (int64_t i = 0; i + N <= n; i += N) move(i);
        if (n % N != 0) move(n - N);
    }
}

#ifdef ACMIX_SHUFFLE
// The halves of a and b interleaved inside each chunk of E lanes: a0 b0 a1 b1 ...
template <int E, typename V, int... I>
INLINE void zip_chunks(V& a, V& b, Seq<I...>) {
    constexpr int n = sizeof...(I);
    V low = __builtin_shufflevector(a, b, (I / E * E + I % E / 2 + I % 2 * n)...);
    b = __builtin_shufflevector(a, b, (I / E * E + I % E / 2 + E / 2 + I % 2 * n)...);
    a = low;
}
// Every second chunk of E lanes of a changes places with that of b before it.
template <int E, typename V, int... I>
INLINE void swap_chunks(V& a, V& b, Seq<I...>) {
    constexpr int n = sizeof...(I);
    V low = __builtin_shufflevector(a, b, (I & E ? I - E + n : I)...);
    b = __builtin_shufflevector(a, b, (I & E ? I + n : I + E)...);
    a = low;
}
template <typename T, int E>
INLINE void swap_all_chunks(typename Simd<T>::V (&rows)[Simd<T>::kLanes]) {
    constexpr int L = Simd<T>::kLanes;
    if constexpr (E < L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) {
            if ((i & E) == 0) swap_chunks<E>(rows[i], rows[i + E], typename MakeSeq<L>::type());
        }
        swap_all_chunks<T, 2 * E>(rows);
    }
}
#endif

// Transposes a square of lanes: first the squares inside chunks of 16 bytes, whose lanes are
// cheaper to move than those of different chunks, and then the chunks.
template <typename T>
INLINE void transpose(typename Simd<T>::V (&rows)[Simd<T>::kLanes]) {
    constexpr int L = Simd<T>::kLanes;
#ifdef ACMIX_SHUFFLE
    constexpr int E = 16 / sizeof(T);
#pragma GCC unroll 2
    for (int round = E; round > 1; round /= 2) {
        typename Simd<T>::V next[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; i++) {
            int at = i / (E / 2) * E + i % (E / 2), to = i / (E / 2) * E + i % (E / 2) * 2;
            typename Simd<T>::V a = rows[at], b = rows[at + E / 2];
            zip_chunks<E>(a, b, typename MakeSeq<L>::type());
            next[to] = a, next[to + 1] = b;
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) rows[i] = next[i];
    }
    swap_all_chunks<T, E>(rows);
#else
    for (int i = 0; i < L; i++) {
        for (int j = 0; j < i; j++) {
            T swap = rows[i][j];
            rows[i][j] = rows[j][i], rows[j][i] = swap;
        }
    }
#endif
}

// Whether lanes are copied by squares of vectors of channels: those are neighbours in memory.
template <typename T>
INLINE bool by_squares(const Lanes& lanes, int64_t stride, int64_t depth) {
    constexpr int L = Simd<T>::kLanes;
    return stride == 1 && depth >= L && lanes.begin == lanes.end && lanes.count % L == 0;
}

template <int L>
INLINE bool nowhere(const int64_t* offset) {
    for (int i = 0; i < L; i++) {
        if (offset[i] >= 0) return false;
    }
    return true;
}

// dst[d * pitch + lane] = scale * src[lane offset + d] for the channels d that whole squares have;
// returns their number. change(lane, d, v) is what becomes of a vector of a lane's channels.
template <typename T, typename E, typename Change>
INLINE int64_t load_squares(T* dst, int64_t pitch, int64_t depth, const E* src, const Lanes& lanes,
                            T scale, int64_t next_row, Change change) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
    int64_t d = 0;
    for (; d + L <= depth; d += L) {
        for (int64_t lane = 0; lane < lanes.count; lane += L) {
            typename S::V rows[L];
            for (int i = 0; i < L; i++) {
                int64_t offset = lanes.offset[lane + i];
                rows[i] = typename S::V{};
                if (offset < 0) continue;
                rows[i] = change(lane + i, d, load_vector(src + offset + d));
                // The stride of pixels is too long for the hardware to see the next row come.
                __builtin_prefetch(src + offset + d + next_row);
            }
            transpose<T>(rows);
            for (int i = 0; i < L; i++) S::store(dst + (d + i) * pitch + lane, rows[i] * scale);
        }
    }
    return d;
}

// dst[d * pitch + lane] = scale * src[lane offset + d * stride]
template <typename T, typename E>
void load_row_of(T* dst, int64_t pitch, int64_t depth, const E* src, int64_t stride,
                 const Lanes& lanes, T scale, int64_t next_row) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
    int64_t d = 0;
    if (by_squares<T>(lanes, stride, depth)) {
        auto same = [](int64_t, int64_t, typename S::V v) { return v; };
        d = load_squares(dst, pitch, depth, src, lanes, scale, next_row, same);
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(E) == sizeof(T)) {
        if (d == 0 && lanes.pieces != nullptr) {
            auto* pieces = static_cast<const Pieces*>(lanes.pieces);
            for (int64_t i = 0; i < lanes.count / L; i++) {
                if (pieces[i].used != 0) {
                    load_pieces(dst + i * L, pitch, depth, src, stride, pieces[i], scale);
                    continue;
                }
                for (d = 0; d < depth; d++) S::store(dst + d * pitch + i * L, typename S::V{});
            }
            return;
        }
    }
#endif
    for (; d < depth; d++) {
        T* to = dst + d * pitch;
        const E* from = src + d * stride;
        bool full = lanes.begin == 0 && lanes.end == lanes.count;
        if (!full) {
            int64_t zero = lanes.begin / L * L;
            for (int64_t i = 0; i + L <= zero; i += L) S::store(to + i, typename S::V{});
            bool partly = zero < lanes.begin || lanes.begin == lanes.end;
            if (partly) S::store(to + zero, typename S::V{});
            for (int64_t i = lanes.end / L * L; i < lanes.count; i += L) {
                S::store(to + i, typename S::V{});
            }
        }
        if (lanes.begin < lanes.end) {
            scaled_copy<T, L>(to + lanes.begin, from + lanes.offset[lanes.begin],
                              lanes.end - lanes.begin, scale);
        }
        for (int64_t i = 0; i < lanes.other_count; i++) {
            int64_t lane = lanes.other[i];
            to[lane] = load_one(from + lanes.offset[lane]) * scale;
        }
    }
}

// What becomes of channel d of a lane as it is written: all channels of all lanes are scaled,
template <typename T>
struct Scaled {
    T scale;
    static constexpr bool adds = false;
    template <typename X>
    X of(int64_t, int64_t, X x) const {
        return x * scale;
    }
};
// or scaled and added to what is there,
template <typename T>
struct Added : Scaled<T> {
    static constexpr bool adds = true;
};
// or each by itself, with lanes of `group` heads, a power of two, and perhaps added.
template <typename T>
struct Mixed {
    const T *alpha, *offset;  // [head][channel]
    int64_t group, depth;
    bool adds;
    typename Simd<T>::V of(int64_t lane, int64_t d, typename Simd<T>::V x) const {
        int64_t at = (lane & (group - 1)) * depth + d;
        return x * Simd<T>::load(alpha + at) + Simd<T>::load(offset + at);
    }
    T of(int64_t lane, int64_t d, T x) const {
        int64_t at = (lane & (group - 1)) * depth + d;
        return x * alpha[at] + offset[at];
    }
};

// dst[lane offset + d * stride] = src[d * pitch + lane] as `finish` makes it.
template <typename T, typename E, typename Finish>
void store_row_of(E* dst, int64_t stride, const Lanes& lanes, const T* src, int64_t pitch,
                  int64_t depth, const Finish& finish, int64_t next_row) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
    int64_t d = 0;
    if (by_squares<T>(lanes, stride, depth)) {
        for (; d + L <= depth; d += L) {
            for (int64_t lane = 0; lane < lanes.count; lane += L) {
                if (finish.adds && nowhere<L>(lanes.offset + lane)) continue;
                typename S::V rows[L];
                for (int i = 0; i < L; i++) rows[i] = S::load(src + (d + i) * pitch + lane);
                transpose<T>(rows);
                for (int i = 0; i < L; i++) {
                    int64_t offset = lanes.offset[lane + i];
                    if (offset < 0) continue;
                    E* to = dst + offset + d;
                    typename S::V v = finish.of(lane + i, d, rows[i]);
                    if (finish.adds) v += load_vector(static_cast<const E*>(to));
                    store_vector(to, v);
                    __builtin_prefetch(to + next_row, 1);
                }
            }
        }
    }
    for (; d < depth; d++) {
        const T* from = src + d * pitch;
        E* to = dst + d * stride;
        auto put = [&](int64_t lane) {
            E* at = to + lanes.offset[lane];
            T x = finish.of(lane, d, from[lane]);
            store_one(at, finish.adds ? load_one(static_cast<const E*>(at)) + x : x);
        };
        if constexpr (!std::is_same<Finish, Scaled<T>>::value) {
            for (int64_t lane = 0; lane < lanes.count; lane++) {
                if (lanes.offset[lane] >= 0) put(lane);
            }
            continue;
        } else if (lanes.begin < lanes.end) {
            scaled_copy<T, L>(to + lanes.offset[lanes.begin], from + lanes.begin,
                              lanes.end - lanes.begin, finish.scale);
        }
        for (int64_t i = 0; i < lanes.other_count; i++) put(lanes.other[i]);
    }
}

// A row of a map that begins `at` elements from its data; the next that is wanted is `next_row`
// further.
template <typename T>
void load_row(T* dst, int64_t pitch, int64_t depth, const Map& map, int64_t at, const Lanes& lanes,
              T scale, int64_t next_row = 0) {
    with_elements<T>(map, [&](const auto* data) {
        load_row_of(dst, pitch, depth, data + at, map.stride[2], lanes, scale, next_row);
    });
}

// What is taken off the rows of a map: a map of T, or none, its lanes and scratch for a row of it.
template <typename T>
struct Minus {
    const Map* map = nullptr;
    Lanes lanes{};
    T* row = nullptr;
};

// The same less row y of `minus`.
template <typename T>
void load_difference(T* dst, int64_t pitch, int64_t depth, const Map& map, int64_t at,
                     const Lanes& lanes, int64_t next_row, const Minus<T>& minus, int64_t y) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
    int64_t minus_at = y * minus.map->stride[3];
    if (by_squares<T>(lanes, map.stride[2], depth) && depth % L == 0 && minus.map->stride[2] == 1) {
        const T* row = static_cast<const T*>(minus.map->data) + minus_at;
        auto less = [&](int64_t lane, int64_t d, typename S::V v) {
            return v - S::load(row + minus.lanes.offset[lane] + d);
        };
        return with_elements<T>(map, [&](const auto* data) {
            load_squares(dst, pitch, depth, data + at, lanes, T(1), next_row, less);
        });
    }
    load_row(dst, pitch, depth, map, at, lanes, T(1), next_row);
    load_row(minus.row, pitch, depth, *minus.map, minus_at, minus.lanes, T(1));
    for (int64_t d = 0; d < depth; d++) {
        for (int64_t i = d * pitch; i < d * pitch + lanes.count; i += L) {
            S::store(dst + i, S::load(dst + i) - S::load(minus.row + i));
        }
    }
}

template <typename T, typename Finish>
void store_row(const Map& map, int64_t at, const Lanes& lanes, const T* src, int64_t pitch,
               int64_t depth, const Finish& finish) {
    with_elements<T>(map, [&](auto* data) {
        store_row_of(data + at, map.stride[2], lanes, src, pitch, depth, finish, map.stride[3]);
    });
}

}  // namespace
}  // namespace acmix
