// The matrix registers of AMX: eight tiles of up to 16 rows of 64 bytes.
//
// Numbers of tiles are template arguments, as instructions have them. The compiler knows nothing of
// tiles, so every instruction is a barrier for its loads and stores. With ACMIX_EMULATED, for
// tests, tiles are arrays.
#pragma once

#include "elements.h"

namespace acmix {
namespace {

// Rows of a tile and floats of a row; elements of one of bfloat16; and tiles, the first of which
// are for sums.
constexpr int64_t kEdge = 16, kTile = 2 * kEdge * kEdge;
constexpr int kTiles = 8, kSums = 4;

// Rows and bytes of a row of every tile, as ldtilecfg reads them.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the instruction reads it");

#ifdef ACMIX_EMULATED

struct TileState {
    TileShapes shapes;
    char data[kTiles][kEdge][64];
};
static thread_local TileState tiles;

INLINE void load_shapes(const TileShapes& shapes) { tiles.shapes = shapes; }
INLINE void store_shapes(TileShapes& shapes) { shapes = tiles.shapes; }

template <int N>
void tile_zero() {
    memset(tiles.data[N], 0, sizeof(tiles.data[N]));
}
template <int N>
void tile_load(const void* from, int64_t stride) {
    tile_zero<N>();
    for (int r = 0; r < tiles.shapes.rows[N]; r++) {
        const char* row = static_cast<const char*>(from) + r * stride;
        memcpy(tiles.data[N][r], row, tiles.shapes.bytes[N]);
    }
}
template <int N>
void tile_store(void* to, int64_t stride) {
    for (int r = 0; r < tiles.shapes.rows[N]; r++) {
        memcpy(static_cast<char*>(to) + r * stride, tiles.data[N][r], tiles.shapes.bytes[N]);
    }
}
template <int C, int A, int B>
void tile_dot() {
    float c[16][16];
    BFloat16 a[16][32], b[16][32];
    memcpy(c, tiles.data[C], sizeof(c));
    memcpy(a, tiles.data[A], sizeof(a));
    memcpy(b, tiles.data[B], sizeof(b));
    for (int i = 0; i < tiles.shapes.rows[C]; i++) {
        for (int k = 0; k < tiles.shapes.bytes[A] / 2; k++) {
            for (int j = 0; j < tiles.shapes.bytes[C] / 4; j++) {
                c[i][j] += load_one(&a[i][k]) * load_one(&b[k / 2][2 * j + k % 2]);
            }
        }
    }
    memcpy(tiles.data[C], c, sizeof(c));
}

#else

INLINE void load_shapes(const TileShapes& shapes) {
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
}
INLINE void store_shapes(TileShapes& shapes) { asm volatile("sttilecfg %0" : "=m"(shapes)); }

template <int N>
INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(N));
}
template <int N>
INLINE void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
}
template <int N>
INLINE void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(N) : "memory");
}
// C += A B: floats plus the products of pairs of bfloat16; row r of B has rows 2 r and 2 r + 1.
template <int C, int A, int B>
INLINE void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

// Sums over steps, in tiles 0 to N - 1: C_i = sum_step A(step) B(i, step).
template <int A, int B, int... I, typename ToA, typename ToB, typename ToC>
INLINE void products_of(Seq<I...>, int64_t steps, ToA a, int64_t a_stride, ToB b, ToC c,
                        int64_t c_stride) {
    (tile_zero<I>(), ...);
    for (int64_t step = 0; step < steps; step++) {
        tile_load<A>(a(step), a_stride);
        ((tile_load<B>(b(I, step), 64), tile_dot<I, A, B>()), ...);
    }
    (tile_store<I>(c(I), c_stride), ...);
}

// The same for any number of sums.
template <int A, int B, typename ToA, typename ToB, typename ToC>
INLINE void products(int64_t sums, int64_t steps, ToA a, int64_t a_stride, ToB b, ToC c,
                     int64_t c_stride) {
    for (int64_t first = 0; first < sums; first += kSums) {
        auto b_of = [&](int64_t i, int64_t step) { return b(first + i, step); };
        auto c_of = [&](int64_t i) { return c(first + i); };
        auto run = [&](auto some) {
            products_of<A, B>(some, steps, a, a_stride, b_of, c_of, c_stride);
        };
        switch (min_of(sums - first, kSums)) {
            case 4:
                run(MakeSeq<4>::type());
                break;
            case 3:
                run(MakeSeq<3>::type());
                break;
            case 2:
                run(MakeSeq<2>::type());
                break;
            default:
                run(MakeSeq<1>::type());
        }
    }
}

// The matrix unit falls asleep when it has had nothing to do for some 300 cycles, and takes 600 to
// wake up: longer than all products of a step. So whatever else takes as long calls this, whose
// result nobody reads, as it goes.
INLINE void stay_awake() { tile_dot<0, kTiles - 2, kTiles - 1>(); }

}  // namespace
}  // namespace acmix
