// Sliding window attention on maps of bfloat16 by the matrix unit (AMX), forward.
//
// 16 queries, of two rows and up to eight columns, times 16 keys of a row of the map are a product
// of matrices, in which the keys of a query's window are neighbours. The softmax reads these alone,
// and its weights, zero elsewhere, are multiplied by the values of two rows of keys at a time:
//     S = Q (K - position)^T,   P_i = exp2(log2(e) D^(-1/2) (S_i - max S_i)),   out = P V / P 1
// The sums P 1 are those of the weights as they were rounded. Lanes of vectors are taps of one
// query here, eight of two rows of its window each. A value that is not finite spoils all queries
// of a tile that has it.
//
// A unit goes down a column of such tiles; keys and values of its rows lie in rings, each row
// copied once. Tiles must begin at a line of the cache: loading them from elsewhere takes five
// times as long, and storing one takes as long as a product.

#include "dispatch.h"
#include "plan.h"
#include "scratch.h"
#include "taps.h"
#include "tiles.h"

namespace acmix {
namespace {

// Tiles behind the sums.
constexpr int kQ = kSums, kK = kSums + 1, kP = kSums + 2, kV = kSums + 3;
constexpr int64_t kRowTaps = 8, kLargestStride = 4;

bool has_lines(const Map& map) { return map.type == kBFloat16 && map.stride[2] == 1; }

// Whether half a vector holds a row of a window, and channels are neighbours.
bool fits(const Attention& call) {
    const Window& w = call.window;
    bool window = (w.kernel == 3 || w.kernel == 5 || w.kernel == 7) && w.stride <= kLargestStride &&
                  w.dilation == 1;
    bool lines = has_lines(call.q) && has_lines(call.k) && has_lines(call.v) && has_lines(call.out);
    bool position = call.position.data == nullptr || call.position.stride[2] == 1;
    return !w.backward && w.type == kFloat && w.reflect && window && lines && position &&
           w.depth > 0 && w.depth % kEdge == 0;
}

// How a call is cut into units of work: columns of tiles of some heads of an image.
struct TilePlan {
    const Attention& call;
    const Window& w;
    int64_t pad, out_h, out_w;
    int64_t part, parts;       // channels that one product takes, and so many of them
    int64_t blocks;            // tiles of values
    int64_t across;            // columns of queries in a tile
    int64_t key_rows;          // that a tile of queries sees
    int64_t pairs, ring;       // pairs of them, and of those of values in scratch
    int64_t columns;           // of tiles
    int64_t down, steps;       // tiles of a column, and of a unit
    int64_t bands;             // units of a column
    int64_t together, groups;  // heads of a unit, and so many groups of them
    int64_t units;
    alignas(64) uint16_t order[kRowTaps * 4 * kEdge];  // see set_order

    explicit TilePlan(const Attention& one) : call(one), w(one.window), units(0) {
        pad = w.kernel / 2;
        out_h = ceil_div(w.height, w.stride), out_w = ceil_div(w.width, w.stride);
        if (w.batch * w.heads == 0 || out_h == 0 || out_w == 0) return;
        part = w.depth % 32 == 0 ? 32 : 16, parts = w.depth / part;
        blocks = w.depth / kEdge;
        across = min_of(kRowTaps, (kEdge - w.kernel) / w.stride + 1);
        key_rows = w.kernel + w.stride;
        pairs = ceil_div(key_rows, 2), ring = pairs + w.stride;
        columns = ceil_div(out_w, across);
        // Enough units for all threads, unless halos would outweigh them.
        int64_t wanted = 4 * int64_t(w.threads), all = w.batch * w.heads * columns;
        down = ceil_div(out_h, 2);
        steps = max_of(ceil_div(down, ceil_div(wanted, all)), min_of(down, w.kernel));
        bands = ceil_div(down, steps);
        // The heads of a pixel are neighbours in memory.
        together = max_of(min_of(w.heads, all * bands / wanted), 1);
        groups = ceil_div(w.heads, together);
        units = w.batch * groups * bands * columns;
        set_order();
    }

    // Where the weights of column c come from among four rows of eight taps, the first or the last
    // two rows: [pair of columns][row][2]; the eighth tap is none, of weight zero.
    void set_order() {
        for (int64_t c = 0; c < across; c++) {
            for (int64_t i = 0; i < 4 * kEdge; i++) {
                int64_t half = i / 32, column = i % 32 / 4 * 2 + i % 2, row = i / 2 % 2;
                int64_t tap = column - c * w.stride;
                bool inside = tap >= 0 && tap < kRowTaps;
                order[c * 4 * kEdge + i] =
                    static_cast<uint16_t>(half * kEdge + row * kRowTaps + (inside ? tap : 7));
            }
        }
    }
};

// The columns of tiles of a unit, those of one head after another, with windows of K x K.
template <int K>
struct TileColumn {
    static constexpr int kPairs = (K + 1) / 2;  // of rows of a window: vectors of its taps

    const TilePlan& p;
    const Attention& call;
    const Window& w;
    Turn turn;
    int64_t image, head, x0, first, last;  // columns of queries from x0, steps [first, last)
    BFloat16 *keys, *values, *queries, *ones, *weights;
    float *logits, *taps, *sums, *tops, *alpha, *offset, *zeros;
    int64_t x[kEdge];  // columns of the map by those of a tile of keys

    TileColumn(const TilePlan& plan, Turn when, int64_t img, int64_t band, int64_t at, Arena& arena)
        : p(plan),
          call(plan.call),
          w(plan.w),
          turn(when),
          image(img),
          head(0),
          x0(at * plan.across),
          first(band * plan.steps),
          last(min_of(first + plan.steps, plan.down)),
          keys(arena.take<BFloat16>(2 * plan.pairs, kEdge, w.depth)),
          values(arena.take<BFloat16>(2 * plan.ring, kEdge, w.depth)),
          queries(arena.take<BFloat16>(kEdge, w.depth)),
          ones(arena.take<BFloat16>(kTile)),
          weights(arena.take<BFloat16>(plan.pairs, kTile)),
          logits(arena.take<float>(2 * plan.pairs + 1, kEdge, kEdge)),
          taps(arena.take<float>(kEdge, kPairs, kEdge)),
          sums(arena.take<float>(plan.blocks + 1, kEdge, kEdge)),
          tops(arena.take<float>(2, kEdge)),
          alpha(arena.take<float>(w.depth)),
          offset(arena.take<float>(w.depth)),
          zeros(arena.take<float>(w.depth)) {
        if (arena.base == nullptr) return;
        for (int64_t i = 0; i < kEdge; i++) x[i] = place_of(x0 * w.stride + i, w.width);
        for (int64_t i = 0; i < kTile; i++) ones[i].bits = 0x3f80;
        memset(zeros, 0, w.depth * sizeof(*zeros));
        memset(queries, 0, kEdge * w.depth * sizeof(*queries));
        // Weights outside of windows stay zero, as do rows that no query sees.
        memset(weights, 0, p.pairs * kTile * sizeof(*weights));
        memset(logits, 0, (2 * p.pairs + 1) * kEdge * kEdge * sizeof(*logits));
    }

    template <typename E = BFloat16>
    E* data_of(const Map& map, int64_t y) const {
        return static_cast<E*>(map.data) + image * map.stride[0] + head * map.stride[1] +
               y * map.stride[3];
    }

    // What a padded row or column stands for. Those beyond the map are seen by no query: any will
    // do.
    int64_t place_of(int64_t padded, int64_t size) const {
        return max_of(source_index(padded, p.pad, size, true), 0);
    }

    // ----------------------------------------------------------------------------- copies

    // A pair of padded rows of keys less the position, each as [part][pair of channels][key][2].
    void load_keys(int64_t pair) const {
        const BFloat16* from[2];
        const float* around[2] = {zeros, zeros};
        for (int i = 0; i < 2; i++) {
            int64_t y = place_of(2 * pair + i, w.height);
            from[i] = data_of(call.k, y);
            if (call.position.data != nullptr) around[i] = data_of<float>(call.position, y);
        }
        int64_t pixel = call.k.stride[4], ahead = 2 * call.k.stride[3];
        int64_t place = call.position.data == nullptr ? 0 : call.position.stride[4];
        auto key = [&](int row, int64_t column, int64_t d) {
            return load_vector(from[row] + column * pixel + d) -
                   S::load(around[row] + column * place + d);
        };
        // The transpose of 16 vectors of 32 channels of a key, or of 16 of the keys of both rows.
        auto put = [&](int row, int next, int64_t d, int64_t next_d, BFloat16* to, BFloat16* high) {
            V rows[16];
            stay_awake();
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                rows[i] = (V)pack(key(row, x[i], d), key(next, x[i], next_d));
                __builtin_prefetch(from[row] + x[i] * pixel + d + ahead);
            }
            transpose<float>(rows);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                S::store(reinterpret_cast<float*>(to) + i * 16, rows[i]);
                S::store(reinterpret_cast<float*>(high) + i * 16, rows[8 + i]);
            }
        };
        int64_t size = kEdge * w.depth;
        BFloat16* to = keys + pair % p.pairs * 2 * size;
        for (int64_t d = 0; d < w.depth; d += p.part, to += kEdge * p.part) {
            if (p.part == 16) {
                put(0, 1, d, d, to, to + size);
            } else {
                put(0, 0, d, d + 16, to, to + kTile / 2);
                put(1, 1, d, d + 16, to + size, to + size + kTile / 2);
            }
        }
    }

    // A pair of padded rows of values as [block of channels][pair of columns][row][channel][2].
    void load_values(int64_t pair) const {
        int64_t pixel = call.v.stride[4], ahead = 2 * call.v.stride[3];
        for (int64_t row = 0; row < 2; row++) {
            const BFloat16* from = data_of(call.v, place_of(2 * pair + row, w.height));
            BFloat16* to = values + (pair % p.ring * p.blocks * kEdge + row) * 2 * kEdge;
            stay_awake();
#pragma GCC unroll 8
            for (int64_t i = 0; i < kEdge; i += 2, to += 4 * kEdge) {
                const BFloat16 *a = from + x[i] * pixel, *b = from + x[i + 1] * pixel;
                for (int64_t n = 0; n < p.blocks; n++) {
                    store_pairs(to + n * kTile, a + n * kEdge, b + n * kEdge);
                }
                __builtin_prefetch(a + ahead);
                __builtin_prefetch(b + ahead);
            }
        }
    }

    // The queries of a step: [row][8 columns][channel], zero beyond the map.
    void load_queries(int64_t step) const {
        int64_t pixel = w.stride * call.q.stride[4], ahead = 2 * w.stride * call.q.stride[3];
        for_rows(step, [&](int64_t row, int64_t width, int64_t, const Choice*) {
            const BFloat16* from = data_of(call.q, (2 * step + row) * w.stride) + x0 * pixel;
            BFloat16* to = queries + row * kRowTaps * w.depth;
            for (int64_t c = 0; c < width; c++, from += pixel, to += w.depth) {
                for (int64_t d = 0; d < w.depth; d += kEdge) {
                    *reinterpret_cast<Halves*>(to + d) = *reinterpret_cast<const Halves*>(from + d);
                }
                __builtin_prefetch(from + ahead);
            }
        });
    }

    // [channel] of this head, or one number for all where there is no map.
    void load_factors(float* to, const Map& map, float missing) const {
        const float* from = map.data == nullptr ? nullptr : data_of<float>(map, 0);
        for (int64_t d = 0; d < w.depth; d++) {
            to[d] = from == nullptr ? missing : from[d * map.stride[2]];
        }
    }

    // --------------------------------------------------------------------------- products

    static int64_t next(int64_t slot, int64_t slots) { return slot + 1 == slots ? 0 : slot + 1; }

    // Logits of a step: [row of keys][query][key].
    void load_logits(int64_t step) const {
        int64_t size = kEdge * p.part;
        const BFloat16* from[K + kLargestStride + 1];
        int64_t slot = step * w.stride % p.pairs;
        for (int64_t i = 0; i < p.pairs; i++, slot = next(slot, p.pairs)) {
            from[2 * i] = keys + 2 * slot * kEdge * w.depth;
            from[2 * i + 1] = from[2 * i] + kEdge * w.depth;
        }
        auto a = [&](int64_t part) { return queries + part * p.part; };
        auto b = [&](int64_t i, int64_t part) { return from[i] + part * size; };
        auto c = [&](int64_t i) { return logits + i * kEdge * kEdge; };
        products<kQ, kK>(p.key_rows, p.parts, a, w.depth * 2, b, c, kEdge * 4);
    }

    // The taps of a step side by side, [query][pair of rows][2][8], and the largest of every query.
    V gather_taps(int64_t step) const {
        constexpr int64_t row_size = kEdge * kEdge;
        V largest[kEdge] = {};
        for_rows(step, [&](int64_t row, int64_t width, int64_t pair, const Choice* in) {
            const float* from = logits + (2 * pair * kEdge + row * kRowTaps) * kEdge;
            float* to = taps + row * kRowTaps * kPairs * kEdge;
            for (int64_t c = 0; c < width; c++, from += kEdge + w.stride) {
                V top = S::all(-INFINITY);
#pragma GCC unroll 4
                for (int n = 0; n < kPairs; n++, to += kEdge) {
                    const float* at = from + 2 * n * row_size;
                    V v = load_rows(at, at + row_size);
                    S::store(to, v);
                    top = larger_of(in[n], top, v);
                }
                largest[row * kRowTaps + c] = top;
            }
        });
        return largest_lanes(largest);
    }

    // The weights of a step: [pair of rows of keys][query][pair of keys][row][2].
    void weigh(int64_t step) const {
        float scale = kLog2e<float> / sqrtf(float(w.depth)), *top = tops + step % 2 * kEdge;
        S::store(top, gather_taps(step) * scale);
        for_rows(step, [&](int64_t row, int64_t width, int64_t pair, const Choice* in) {
            const float *from = taps + row * kRowTaps * kPairs * kEdge,
                        *less = top + row * kRowTaps;
            BFloat16* to = weights + pair * kTile + row * kRowTaps * 2 * kEdge;
            const uint16_t* place = p.order;
            for (int64_t c = 0; c < width; c++, to += 2 * kEdge, place += 4 * kEdge) {
                V e[4] = {};
#pragma GCC unroll 4
                for (int n = 0; n < kPairs; n++, from += kEdge) {
                    e[n] = weights_of(in[n], S::load(from) * scale - S::all(less[c]));
                }
#pragma GCC unroll 4
                for (int n = 0; n < kPairs; n++) {
                    store_ordered(to + n * kTile, pack(e[n / 2 * 2], e[n / 2 * 2 + 1]),
                                  place + n % 2 * 2 * kEdge);
                }
            }
        });
    }

    // Calls body(row, width, pair, in) for the rows of queries of a step: how many there are, the
    // first pair of rows of keys that they see, and which taps of its pairs of rows are theirs.
    template <typename Body>
    INLINE void for_rows(int64_t step, Body body) const {
        int64_t width = min_of(p.out_w - x0, p.across);
        for (int64_t row = 0; row < min_of(p.out_h - 2 * step, 2); row++) {
            int64_t start = row * w.stride;
            constexpr Choice one = (1 << K) - 1, both = one << kRowTaps | one;
            Choice in[kPairs];
            for (int n = 0; n < kPairs; n++) in[n] = both;
            // The odd row of a window is its first or its last.
            in[start % 2 == 0 ? kPairs - 1 : 0] = start % 2 == 0 ? one : one << kRowTaps;
            stay_awake();
            body(row, width, start / 2, in);
        }
    }

    // Sums of values under the weights, [query][channel], and behind them of ones.
    void load_sums(int64_t step) const {
        const BFloat16* from[K + kLargestStride];
        int64_t slot = step * w.stride % p.ring;
        for (int64_t i = 0; i < p.pairs; i++, slot = next(slot, p.ring)) {
            from[i] = values + slot * p.blocks * kTile;
        }
        auto a = [&](int64_t pair) { return weights + pair * kTile; };
        auto b = [&](int64_t i, int64_t pair) {
            return i == p.blocks ? ones : from[pair] + i * kTile;
        };
        auto c = [&](int64_t i) { return sums + i * kEdge; };
        products<kP, kV>(p.blocks + 1, p.pairs, a, 64, b, c, (w.depth + kEdge) * 4);
    }

    void store_sums(int64_t step) const {
        float totals[kEdge], lse[kEdge];
        for (int64_t i = 0; i < kEdge; i++) totals[i] = sums[i * (w.depth + kEdge) + w.depth];
        V top = S::load(tops + step % 2 * kEdge);
        S::store(lse, top * (1 / kLog2e<float>)+log_of<float>(S::load(totals)));
        for_rows(step, [&](int64_t row, int64_t width, int64_t, const Choice*) {
            int64_t y = 2 * step + row;
            float* sum_to = data_of<float>(call.lse, y) + x0 * call.lse.stride[4];
            BFloat16* to = data_of(call.out, y) + x0 * call.out.stride[4];
            const float* from = sums + row * kRowTaps * (w.depth + kEdge);
            for (int64_t c = 0; c < width; c++, to += call.out.stride[4], from += kEdge) {
                sum_to[c * call.lse.stride[4]] = lse[row * kRowTaps + c];
                V inverse = inverse_of(S::load(from + w.depth));
                for (int64_t d = 0; d < w.depth; d += kEdge, from += kEdge) {
                    V v = S::load(from) * inverse * S::load(alpha + d) + S::load(offset + d);
                    if (call.add) v += load_vector(static_cast<const BFloat16*>(to + d));
                    store_vector(to + d, v);
                }
            }
        });
    }

    // ------------------------------------------------------------------------------- units

    void run(int64_t which) {
        head = which;
        load_factors(alpha, call.alpha, 1);
        load_factors(offset, call.offset, 0);
        load(first, first * w.stride);
        for (int64_t step = first; step <= last; step++) {
            if (step < last) load_logits(step);
            if (step > first) load_sums(step - 1);
            if (step + 1 < last) load(step + 1, step * w.stride + p.pairs);
            if (step < last) weigh(step);
            if (step == first) turn.wait();  // For what it is added to, where the call makes it.
            if (step > first) store_sums(step - 1);
        }
    }

    // The rows of a step, pairs of keys from `pair` on.
    void load(int64_t step, int64_t pair) const {
        for (; pair < step * w.stride + p.pairs; pair++) {
            load_keys(pair);
            load_values(pair);
        }
        load_queries(step);
    }
};

TileShapes shapes_of(const TilePlan& p) {
    TileShapes shapes;
    for (int tile = 0; tile < kTiles; tile++) shapes.rows[tile] = 16, shapes.bytes[tile] = 64;
    shapes.bytes[kQ] = static_cast<uint16_t>(p.part * 2);
    shapes.rows[kK] = static_cast<uint8_t>(p.part / 2);
    return shapes;
}

template <int K>
void run_unit(void* data, int64_t unit, void* scratch, Turn turn) {
    const TilePlan& p = *static_cast<const TilePlan*>(data);
    Arena arena{static_cast<char*>(scratch)};
    int64_t band = unit % p.bands, column = unit / p.bands % p.columns;
    int64_t group = unit / p.bands / p.columns % p.groups;
    TileColumn<K> one(p, turn, unit / p.bands / p.columns / p.groups, band, column, arena);
    // Whoever called may have tiles of its own.
    TileShapes theirs, ours = shapes_of(p);
    store_shapes(theirs);
    load_shapes(ours);
    int64_t end = min_of((group + 1) * p.together, p.w.heads);
    for (int64_t head = group * p.together; head < end; head++) one.run(head);
    load_shapes(theirs);
}

template <int K>
int run_windows(const Attention& call, Tasks tasks) {
    TilePlan plan(call);
    Arena sizes{nullptr};
    if (plan.units > 0) {
        TileColumn<K>(plan, {}, 0, 0, 0, sizes);
        tasks.add({plan.units, sizes.used, run_unit<K>, &plan});
    }
    return parallel_for(call.window.threads, tasks);
}

}  // namespace

namespace amx {

int run(const Attention& call, const Tasks& before) {
    if (!fits(call)) return ACMIX_AMX::run(call, before);
    if (call.window.kernel == 3) return run_windows<3>(call, before);
    if (call.window.kernel == 5) return run_windows<5>(call, before);
    return run_windows<7>(call, before);
}

}  // namespace amx
}  // namespace acmix
