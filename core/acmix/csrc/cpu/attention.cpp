// Sliding window attention on the CPU.
//
// For query p of one head, with keys r(o) = stride * p + dilation * (o - k / 2):
//     s_o = D^(-1/2) q_p . k_r(o),   P = softmax_o(s),   out_p = sum_o P_o v_r(o)
// The position term q_p . (pe_p - pe_r) is made part of the keys when they are copied: q_p . pe_p
// is the same for all keys of p, the softmax drops it, and k_r - pe_r is a key.
// Backward, with P recomputed from the saved log-sum-exp and dP_o = dout_p . v_r(o):
//     dS_o = P_o (dP_o - sum_o' P_o' dP_o'),   dq_p = D^(-1/2) sum_o dS_o k_r(o)
//     dk_r = D^(-1/2) sum_(p,o: r(o)=r) dS_o q_p,   dv_r = sum_(p,o: r(o)=r) P_o dout_p
// Work: 2 k² D multiply-adds per query forward, 5 backward.

#include "unit.h"

namespace acmix {
namespace {

template <typename T>
struct AttentionUnit {
    using S = Simd<T>;
    using V = typename S::V;
    static constexpr int L = S::kLanes;

    const Attention& call;
    const Plan& p;
    int64_t group, tile;
    Turn turn;

    // Where a border does not reflect, keys outside the image are left out of the softmax.
    bool cuts() const { return !p.window.reflect; }

    // What is taken off the keys; of no map where there is nothing, or no scratch yet.
    Minus<T> take_position(const Unit<T>& unit, Arena& arena) const {
        if (call.position.data == nullptr) return {};
        int64_t* table = unit.take_table(arena);
        T* row = arena.take<T>(p.window.depth, p.key_pitch);
        if (arena.base == nullptr) return {};
        return {&call.position, unit.key_lanes(call.position, table), row};
    }

    bool is_mixed() const {
        return call.alpha.data != nullptr || call.offset.data != nullptr || call.add != 0;
    }

    // What becomes of the attention as it is written.
    Mixed<T> take_mix(const Unit<T>& unit, Arena& arena) const {
        if (!is_mixed()) return {};
        T* numbers = arena.take<T>(2, p.group, p.window.depth);
        if (arena.base == nullptr) return {};
        int64_t size = p.group * p.window.depth;
        copy_factors(unit, numbers, call.alpha, T(1));
        copy_factors(unit, numbers + size, call.offset, T(0));
        return {numbers, numbers + size, p.group, p.window.depth, call.add != 0};
    }

    // [head][channel] of this unit, or one number for all where there is no map.
    void copy_factors(const Unit<T>& unit, T* to, const Map& map, T missing) const {
        for (int64_t g = 0; g < p.group; g++) {
            const T* from = static_cast<const T*>(map.data);
            if (g < unit.head_count) from += unit.head_offset(map, g);
            for (int64_t d = 0; d < p.window.depth; d++) {
                *to++ = map.data == nullptr ? missing : from[d * map.stride[2]];
            }
        }
    }

    // Minus infinity where a window column falls outside the image, [column][lane].
    void column_mask(const Unit<T>& unit, T* mask) const {
        const Window& w = p.window;
        for (int64_t dx = 0; dx < w.kernel; dx++) {
            for (int64_t i = 0; i < p.lanes; i++) {
                int64_t x = i / p.group;
                int64_t key = (unit.x0 + x) * w.stride + dx * w.dilation - p.pad;
                bool outside = x < unit.width && (key < 0 || key >= w.width);
                mask[dx * p.lanes + i] = outside ? -T(INFINITY) : T(0);
            }
        }
    }

    // Leaves the keys outside the image out of the softmax: s[o][lane] of query row y.
    void cut(T* s, int64_t tap, const T* mask, int64_t y) const {
        const Window& w = p.window;
        for (int64_t dy = 0; dy < w.kernel; dy++) {
            int64_t key = y * w.stride + dy * w.dilation - p.pad;
            bool outside = key < 0 || key >= w.height;
            for (int64_t dx = 0; dx < w.kernel; dx++, s += tap, mask += p.lanes) {
                V add = outside ? S::all(-T(INFINITY)) : S::load(mask);
                S::store(s, S::load(s) + add);
            }
            mask -= w.kernel * p.lanes;
        }
    }

    // In place: s (logits in units of log 2) to exp2(s - max). Returns 1 / sum, writes the lse.
    V softmax(T* s, T* lse) const {
        // Four chains each, since one would wait for its own latency at every tap.
        V tops[4], sums[4] = {};
        for (int i = 0; i < 4; i++) tops[i] = S::load(s);
        int64_t o = 0;
        for (; o + 4 <= p.taps; o += 4) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) tops[i] = S::larger(tops[i], S::load(s + (o + i) * L));
        }
        for (; o < p.taps; o++) tops[0] = S::larger(tops[0], S::load(s + o * L));
        V top = S::larger(S::larger(tops[0], tops[1]), S::larger(tops[2], tops[3]));
        auto weigh = [&](int64_t tap, V& sum) {
            V e = exp2_of<T>(S::load(s + tap * L) - top);
            S::store(s + tap * L, e);
            sum += e;
        };
        for (o = 0; o + 4 <= p.taps; o += 4) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) weigh(o + i, sums[i]);
        }
        for (; o < p.taps; o++) weigh(o, sums[0]);
        V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        S::store(lse, top * (1 / kLog2e<T>)+log_of<T>(sum));
        return 1 / sum;
    }

    // One row of queries: s from logits to P, ds from dP to dS. Adds up sum_o P_o dP_o.
    void softmax_gradient(T* s, T* ds, const T* lse, T* sums) const {
        for (int64_t x = 0; x < p.lanes; x += L) {
            V norm = S::load(lse + x) * kLog2e<T>, delta = V{};
            for (int64_t o = 0; o < p.taps; o++) {
                T* at = s + o * p.query_pitch + x;
                V e = exp2_of<T>(S::load(at) - norm);
                S::store(at, e);
                delta += e * S::load(ds + o * p.query_pitch + x);
            }
            S::store(sums + x, S::load(sums + x) + delta);
            for (int64_t o = 0; o < p.taps; o++) {
                T* at = ds + o * p.query_pitch + x;
                S::store(at, S::load(s + o * p.query_pitch + x) * (S::load(at) - delta));
            }
        }
    }

    void forward(Arena& arena) const {
        const Window& w = p.window;
        // The weights of one vector of queries at a time stay in the first level cache.
        Unit<T> unit(p, group, tile, L, arena);
        int64_t depth = w.depth, pitch = p.query_pitch;
        T* values = arena.take<T>(p.key_rows, depth, p.key_pitch);
        T* keys = arena.take<T>(p.key_rows, depth, p.key_pitch);
        Strip<T> out{arena.take<T>(p.tile_h, depth, pitch), pitch, depth};
        Strip<T> q{arena.take<T>(p.tile_h, depth, pitch), pitch, depth};
        T* s = arena.take<T>(kRows, p.taps, L);
        Strip<T> lse{arena.take<T>(p.tile_h, p.lanes), p.lanes, 1};
        T* mask = cuts() ? arena.take<T>(w.kernel, p.lanes) : nullptr;
        int64_t* table = unit.take_table(arena);
        Minus<T> position = take_position(unit, arena);
        Mixed<T> mixed = take_mix(unit, arena);
        if (arena.base == nullptr) return;

        int64_t rows = min_of(p.tile_h, p.out_h - unit.y0), first = unit.y0 * w.stride;
        int64_t key_rows = (rows - 1) * w.stride + 2 * p.pad + 1;
        if (cuts()) column_mask(unit, mask);
        unit.load_keys(values, call.v, unit.key_lanes(call.v, table), first, key_rows);
        unit.load_keys(keys, call.k, unit.key_lanes(call.k, table), first, key_rows, position);
        unit.load_queries(q, call.q, unit.query_lanes(call.q, table, w.stride), first, w.stride,
                          rows, kLog2e<T> / T(sqrt(double(depth))));
        int64_t s_row = p.taps * L;
        unit.for_sets(rows, [&](int64_t y, int count) {
            int64_t step_count = unit.query_steps(y, count);
            for (int64_t x = 0; x < p.lanes; x += L) {
                V inverse[kRows];
                unit.window_dots(q.row(y) + x, keys + x, y, count, s, s_row);
                for (int j = 0; j < count; j++) {
                    int64_t row = y + j * p.apart;
                    if (cuts()) cut(s + j * s_row, L, mask + x, unit.y0 + row);
                    inverse[j] = softmax(s + j * s_row, lse.row(row) + x);
                }
                unit.gather_queries(step_count, s, s_row, values + x, count, out.row(y) + x,
                                    inverse);
            }
        });
        turn.wait();  // For what it is added to, where the same call makes it.
        Lanes to = unit.query_lanes(call.out, table);
        if (is_mixed()) {
            unit.store_queries(call.out, to, unit.y0, rows, out, mixed);
        } else {
            unit.store_queries(call.out, to, unit.y0, rows, out, Scaled<T>{1});
        }
        unit.store_queries(call.lse, unit.query_lanes(call.lse, table), unit.y0, rows, lse,
                           Scaled<T>{1});
    }

    void backward(Arena& arena) const {
        const Window& w = p.window;
        Unit<T> unit(p, group, tile, p.query_pitch, arena);
        int64_t depth = w.depth, pitch = p.query_pitch, padded_h = w.height + 2 * p.pad;
        T* values = arena.take<T>(p.key_rows, depth, p.key_pitch);
        T* dv = arena.take<T>(padded_h, depth, p.key_pitch);
        T* grad = arena.take<T>(p.tile_h, depth, pitch);
        T* s = arena.take<T>(p.tile_h, p.taps, pitch);
        T* ds = arena.take<T>(p.tile_h, p.taps, pitch);
        T* keys = arena.take<T>(p.key_rows, depth, p.key_pitch);
        T* dk = arena.take<T>(padded_h, depth, p.key_pitch);
        T* q = arena.take<T>(p.tile_h, depth, pitch);
        Strip<T> dq{arena.take<T>(p.tile_h, depth, pitch), pitch, depth};
        Strip<T> lse{arena.take<T>(p.lanes), p.lanes, 1};
        T* alphas = arena.take<T>(p.lanes);
        T* mask = cuts() ? arena.take<T>(w.kernel, p.lanes) : nullptr;
        int64_t* tables[6];
        for (int64_t*& table : tables) table = unit.take_table(arena);
        Minus<T> position = take_position(unit, arena);
        if (arena.base == nullptr) return;

        // Margins stay zero throughout: the copies and products below write between them only.
        int64_t row_size = depth * pitch, s_size = p.taps * pitch;
        memset(dv, 0, padded_h * depth * p.key_pitch * sizeof(T));
        memset(dk, 0, padded_h * depth * p.key_pitch * sizeof(T));
        memset(grad, 0, p.tile_h * row_size * sizeof(T));
        memset(q, 0, p.tile_h * row_size * sizeof(T));
        memset(s, 0, p.tile_h * s_size * sizeof(T));
        memset(ds, 0, p.tile_h * s_size * sizeof(T));
        memset(alphas, 0, p.lanes * sizeof(T));
        if (cuts()) column_mask(unit, mask);
        Lanes value_lanes = unit.key_lanes(call.v, tables[0]);
        Lanes grad_lanes = unit.query_lanes(call.grad, tables[1]);
        Lanes key_lanes = unit.key_lanes(call.k, tables[2]);
        Lanes q_lanes = unit.query_lanes(call.q, tables[3], w.stride);
        Lanes lse_lanes = unit.query_lanes(call.lse, tables[4]);
        Lanes dq_lanes = unit.query_lanes(call.grad_q, tables[5]);
        T scale = 1 / T(sqrt(double(depth)));
        T alpha = call.alpha.data == nullptr ? T(1) : *static_cast<const T*>(call.alpha.data);
        for (int64_t y0 = 0; y0 < p.out_h; y0 += p.tile_h) {
            int64_t rows = min_of(p.tile_h, p.out_h - y0), first = y0 * w.stride;
            int64_t key_rows = (rows - 1) * w.stride + 2 * p.pad + 1;
            unit.load_keys(values, call.v, value_lanes, first, key_rows);
            unit.load_keys(keys, call.k, key_lanes, first, key_rows, position);
            unit.load_queries({grad + p.margin, pitch, depth}, call.grad, grad_lanes, y0, 1, rows,
                              T(1));
            unit.load_queries({q + p.margin, pitch, depth}, call.q, q_lanes, first, w.stride, rows,
                              kLog2e<T> * scale);
            unit.for_sets(rows, [&](int64_t y, int count) {
                int64_t q_at = y * row_size + p.margin, s_at = y * s_size + p.margin;
                for (int64_t x = 0; x < p.lanes; x += L) {
                    unit.window_dots(grad + q_at + x, values + x, y, count, ds + s_at + x,
                                     p.apart * s_size);
                    unit.window_dots(q + q_at + x, keys + x, y, count, s + s_at + x,
                                     p.apart * s_size);
                    for (int j = 0; cuts() && j < count; j++) {
                        cut(s + s_at + j * p.apart * s_size + x, pitch, mask + x,
                            y0 + y + j * p.apart);
                    }
                }
            });
            for (int64_t r = 0; r < rows; r++) {
                unit.load_queries(lse, call.lse, lse_lanes, y0 + r, 1, 1, T(1));
                // Lanes without a query get P = exp2(s - inf) = 0.
                for (int64_t i = 0; i < p.lanes; i++) {
                    if (lse_lanes.offset[i] < 0) lse.data[i] = T(INFINITY);
                }
                int64_t s_at = r * s_size + p.margin;
                softmax_gradient(s + s_at, ds + s_at, lse.data, alphas);
            }
            unit.gather_keys(dv, y0, rows, s, grad);
            unit.gather_keys(dk, y0, rows, ds, q);
            unit.for_sets(rows, [&](int64_t y, int count) {
                int64_t step_count = unit.query_steps(y, count), s_at = y * s_size + p.margin;
                for (int64_t x = 0; x < p.lanes; x += L) {
                    unit.gather_queries(step_count, ds + s_at + x, p.apart * s_size, keys + x,
                                        count, dq.row(y) + x);
                }
            });
            unit.store_queries(call.grad_q, dq_lanes, y0, rows, dq, Scaled<T>{scale * alpha});
        }
        // q came in with log2(e) in its scale.
        unit.store_keys(call.grad_k, dk, alpha / kLog2e<T>, tables[0], tables[1]);
        unit.store_keys(call.grad_v, dv, alpha, tables[0], tables[1]);
        if (call.grad_alpha != nullptr) store_alpha(unit, alphas);
    }

    // The gradient of alpha is the sum of dout . out / alpha, of which a query has sum_o P_o dP_o.
    void store_alpha(const Unit<T>& unit, const T* sums) const {
        for (int64_t g = 0; g < unit.head_count; g++) {
            double sum = 0;
            for (int64_t x = 0; x < unit.width; x++) sum += sums[x * p.group + g];
            static_cast<T*>(call.grad_alpha)[unit.first_head + g] = T(sum);
        }
    }
};

}  // namespace

namespace ACMIX_ISA {
int run(const Attention& call) { return run_typed<AttentionUnit>(call); }
int run(const Attention& call, const Tasks& before) {
    return run_typed<AttentionUnit>(call, before);
}
}  // namespace ACMIX_ISA

}  // namespace acmix
