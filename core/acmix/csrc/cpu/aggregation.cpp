// Neighbourhood aggregation on the CPU: windows of values summed under given weights.
//
// For query p of one head, with r(o) = stride * p + dilation * (o - k / 2):
//     out_p = sum_o w_o,p v_r(o),   dw_o,p = dout_p . v_r(o),   dv_r = sum_(p,o: r(o)=r) w_o,p
//     dout_p
// Work: k² D multiply-adds per query forward, 2 backward. Heads are the groups of channels that
// share their weights.

#include "unit.h"

namespace acmix {
namespace {

template <typename T>
struct AggregationUnit {
    static constexpr int L = Simd<T>::kLanes;

    const Aggregation& call;
    const Plan& p;
    int64_t group, tile;
    Turn turn;

    void forward(Arena& arena) const {
        const Window& w = p.window;
        Unit<T> unit(p, group, tile, p.query_pitch, arena);
        int64_t depth = w.depth, pitch = p.query_pitch;
        T* values = arena.take<T>(p.key_rows, depth, p.key_pitch);
        Strip<T> out{arena.take<T>(p.tile_h, depth, pitch), pitch, depth};
        Strip<T> weights{arena.take<T>(kRows, p.taps, pitch), pitch, p.taps};
        int64_t* table = unit.take_table(arena);
        if (arena.base == nullptr) return;

        int64_t rows = min_of(p.tile_h, p.out_h - unit.y0);
        int64_t key_rows = (rows - 1) * w.stride + 2 * p.pad + 1;
        unit.load_keys(values, call.v, unit.key_lanes(call.v, table), unit.y0 * w.stride, key_rows);
        Lanes lanes = unit.query_lanes(call.w, table);
        unit.for_sets(rows, [&](int64_t y, int count) {
            int64_t step_count = unit.query_steps(y, count);
            unit.load_queries(weights, call.w, lanes, unit.y0 + y, p.apart, count, T(1));
            for (int64_t x = 0; x < p.lanes; x += L) {
                unit.gather_queries(step_count, weights.data + x, p.taps * pitch, values + x, count,
                                    out.row(y) + x);
            }
        });
        unit.store_queries(call.out, unit.query_lanes(call.out, table), unit.y0, rows, out,
                           Scaled<T>{1});
    }

    void backward(Arena& arena) const {
        const Window& w = p.window;
        Unit<T> unit(p, group, tile, p.query_pitch, arena);
        int64_t depth = w.depth, pitch = p.query_pitch, padded_h = w.height + 2 * p.pad;
        T* values = arena.take<T>(p.key_rows, depth, p.key_pitch);
        T* dv = arena.take<T>(padded_h, depth, p.key_pitch);
        T* grad = arena.take<T>(p.tile_h, depth, pitch);
        T* weights = arena.take<T>(p.tile_h, p.taps, pitch);
        T* dw = arena.take<T>(p.tile_h, p.taps, pitch);
        int64_t* tables[4];
        for (int64_t*& table : tables) table = unit.take_table(arena);
        if (arena.base == nullptr) return;

        // Margins stay zero throughout: the copies and products below write between them only.
        int64_t row_size = depth * pitch, w_size = p.taps * pitch;
        memset(dv, 0, padded_h * depth * p.key_pitch * sizeof(T));
        memset(grad, 0, p.tile_h * row_size * sizeof(T));
        memset(weights, 0, p.tile_h * w_size * sizeof(T));
        Lanes value_lanes = unit.key_lanes(call.v, tables[0]);
        Lanes grad_lanes = unit.query_lanes(call.grad, tables[1]);
        Lanes w_lanes = unit.query_lanes(call.w, tables[2]);
        Lanes dw_lanes = unit.query_lanes(call.grad_w, tables[3]);
        for (int64_t y0 = 0; y0 < p.out_h; y0 += p.tile_h) {
            int64_t rows = min_of(p.tile_h, p.out_h - y0);
            int64_t key_rows = (rows - 1) * w.stride + 2 * p.pad + 1;
            unit.load_keys(values, call.v, value_lanes, y0 * w.stride, key_rows);
            unit.load_queries({grad + p.margin, pitch, depth}, call.grad, grad_lanes, y0, 1, rows,
                              T(1));
            unit.load_queries({weights + p.margin, pitch, p.taps}, call.w, w_lanes, y0, 1, rows,
                              T(1));
            unit.for_sets(rows, [&](int64_t y, int count) {
                for (int64_t x = 0; x < p.lanes; x += L) {
                    unit.window_dots(grad + y * row_size + p.margin + x, values + x, y, count,
                                     dw + y * w_size + p.margin + x, p.apart * w_size);
                }
            });
            unit.store_queries(call.grad_w, dw_lanes, y0, rows, {dw + p.margin, pitch, p.taps},
                               Scaled<T>{1});
            unit.gather_keys(dv, y0, rows, weights, grad);
        }
        unit.store_keys(call.grad_v, dv, T(1), tables[0], tables[1]);
    }
};

}  // namespace

namespace ACMIX_ISA {
int run(const Aggregation& call) { return run_typed<AggregationUnit>(call); }
}  // namespace ACMIX_ISA

}  // namespace acmix
