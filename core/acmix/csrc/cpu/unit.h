// One unit of work of attention or aggregation: a group of heads and, forward, a tile of its
// queries. Its rows in scratch, the products of its windows, and the loop over all units.
//
// Maps are copied into scratch, channel planes of padded rows [row][channel][lane]: borders, memory
// formats and strides end there. Query rows that are `apart` rows apart share their keys, kRows of
// them a set.
#pragma once

#include "dispatch.h"
#include "plan.h"
#include "rows.h"
#include "scratch.h"

namespace acmix {
namespace {

// Rows of queries in scratch: [row][channel][lane].
template <typename T>
struct Strip {
    T* data;
    int64_t pitch, channels;
    T* row(int64_t r) const { return data + r * channels * pitch; }
};

template <typename T>
struct Unit {
    using S = Simd<T>;
    static constexpr int L = S::kLanes;

    const Plan& p;
    const Window& w;
    int64_t first_head, head_count, y0, x0, width;  // heads and the corner and width of the tile
    int64_t tap;          // lanes from a tap's numbers in scratch to the next tap's
    int64_t* key_row;     // where each padded row of the tile's keys lies in scratch
    int64_t* key_column;  // where each window column lies in a padded row of keys
    int64_t* tap_column;  // and among the taps of a window row
    int64_t* shifted;     // columns of the keys' side of the windows: see gather_keys
    Step* steps;
    int64_t slide;  // lanes between two columns of a window, or 0: see slides.h

    Unit(const Plan& plan, int64_t group, int64_t tile, int64_t tap_lanes, Arena& arena)
        : p(plan),
          w(plan.window),
          first_head(group * plan.group),
          head_count(min_of(plan.group, plan.heads - first_head)),
          y0(tile / plan.tiles_x * plan.tile_h),
          x0(tile % plan.tiles_x * plan.tile_w),
          width(min_of(plan.tile_w, plan.out_w - x0)),
          tap(tap_lanes),
          key_row(arena.take<int64_t>(plan.tile_rows)),
          key_column(arena.take<int64_t>(w.kernel)),
          tap_column(arena.take<int64_t>(w.kernel)),
          shifted(arena.take<int64_t>(2, w.kernel)),
          steps(arena.take<Step>(max_of(plan.tile_h, product(kRows, w.kernel)))),
          slide(slide_of<T>(w, plan.group)) {
        if (arena.base == nullptr) return;
        for (int64_t dx = 0; dx < w.kernel; dx++) {
            key_column[dx] = lane_of(dx * w.dilation);
            tap_column[dx] = dx * tap;
        }
    }

    // ----------------------------------------------------------------------------- places

    // Lane of the first head at a padded column.
    int64_t lane_of(int64_t x) const {
        return x % w.stride * p.phase_pitch + x / w.stride * p.group;
    }

    int64_t head_offset(const Map& map, int64_t g) const {
        int64_t head = first_head + g;
        return head / w.heads * map.stride[0] + head % w.heads * map.stride[1];
    }

    // Room for any Lanes of this unit.
    int64_t* take_table(Arena& arena) const {
        return arena.take<int64_t>(table_size(max_of(p.lanes, p.key_pitch)));
    }

    // Lanes of a row of queries of this tile; `step` columns of the map lie between two of them.
    Lanes query_lanes(const Map& map, int64_t* table, int64_t step = 1) const {
        int64_t heads[L], i = 0;
        head_offsets(map, heads);
        for (int64_t x = 0; x < width; x++) {
            i = put_heads(table, i, heads, (x0 + x) * step * map.stride[4]);
        }
        while (i < p.lanes) table[i++] = -1;
        return find_runs<T>(table, p.lanes, map.stride[2]);
    }

    // Lanes of a padded row of keys of this tile: [phase][column][head].
    Lanes key_lanes(const Map& map, int64_t* table, bool interior = false) const {
        int64_t heads[L], i = 0, columns = p.phase_pitch / p.group;
        head_offsets(map, heads);
        for (int64_t phase = 0; phase < w.stride; phase++) {
            for (int64_t column = 0; column < columns; column++) {
                int64_t padded = (x0 + column) * w.stride + phase;
                int64_t x = padded < w.width + 2 * p.pad
                                ? source_index(padded, p.pad, w.width, w.reflect && !interior)
                                : -1;
                i = put_heads(table, i, heads, x < 0 ? -1 : x * map.stride[4]);
            }
        }
        return find_runs<T>(table, i, map.stride[2]);
    }

    // Where the heads of this unit begin, or -1 for those beyond the last.
    void head_offsets(const Map& map, int64_t (&to)[L]) const {
        for (int64_t g = 0; g < p.group; g++) to[g] = g < head_count ? head_offset(map, g) : -1;
    }

    // Adds the lanes of a column, which is `at` from where heads begin or nowhere, behind i others.
    int64_t put_heads(int64_t* table, int64_t i, const int64_t (&heads)[L], int64_t at) const {
        for (int64_t g = 0; g < p.group; g++, i++) {
            table[i] = heads[g] < 0 || at < 0 ? -1 : heads[g] + at;
        }
        return i;
    }

    // ----------------------------------------------------------------------------- copies

    // Padded rows [first, first + rows) of a map into scratch [row][channel][key_pitch], which
    // has each row of the image once; less those of another map where there is one.
    void load_keys(T* to, const Map& map, const Lanes& lanes, int64_t first, int64_t rows,
                   const Minus<T>& minus = {}) const {
        int64_t row_size = w.depth * p.key_pitch, y_step = map.stride[3];
        int64_t begin = max_of(first - p.pad, 0), end = min_of(first + rows - p.pad, w.height);
        bool zeros = false;
        for (int64_t r = 0; r < rows; r++) {
            int64_t y = source_index(first + r, p.pad, w.height, w.reflect);
            key_row[r] = (y < 0 ? end - begin : y - begin) * row_size;
            zeros = zeros || y < 0;
        }
        for (int64_t y = begin; y < end; y++, to += row_size) {
            if (minus.map == nullptr) {
                load_row(to, p.key_pitch, w.depth, map, y * y_step, lanes, T(1), y_step);
            } else {
                load_difference(to, p.key_pitch, w.depth, map, y * y_step, lanes, y_step, minus, y);
            }
        }
        if (zeros) memset(to, 0, row_size * sizeof(T));
    }

    // Sums [row][channel][key_pitch] of all padded positions, added up at the pixels that they
    // stand for in a fixed order, into a map.
    void store_keys(const Map& map, T* sum, T scale, int64_t* table, int64_t* mirror) const {
        int64_t row_size = w.depth * p.key_pitch, padded_h = w.height + 2 * p.pad;
        for (int64_t r = 0; w.reflect && r < padded_h; r++) {
            int64_t y = source_index(r, p.pad, w.height, true) + p.pad;
            if (y == r) continue;
            T *from = sum + r * row_size, *into = sum + y * row_size;
            for (int64_t i = 0; i < row_size; i++) into[i] += from[i];
        }
        Lanes inside = key_lanes(map, table, true), mirrored = key_lanes(map, mirror);
        for (int64_t i = 0; i < inside.count; i++) {
            if (inside.offset[i] >= 0) mirrored.offset[i] = -1;
        }
        for (int64_t y = 0; y < w.height; y++) {
            T* row = sum + (y + p.pad) * row_size;
            int64_t at = y * map.stride[3];
            store_row(map, at, inside, row, p.key_pitch, w.depth, Scaled<T>{scale});
            if (!w.reflect) continue;
            store_row(map, at, mirrored, row, p.key_pitch, w.depth, Added<T>{{scale}});
        }
    }

    // Rows first, first + step, ... of a map of queries.
    void load_queries(const Strip<T>& to, const Map& map, const Lanes& lanes, int64_t first,
                      int64_t step, int64_t rows, T scale) const {
        for (int64_t r = 0; r < rows; r++) {
            load_row(to.row(r), to.pitch, to.channels, map, (first + r * step) * map.stride[3],
                     lanes, scale, step * map.stride[3]);
        }
    }

    template <typename Finish>
    void store_queries(const Map& map, const Lanes& lanes, int64_t first, int64_t rows,
                       const Strip<T>& from, const Finish& finish) const {
        for (int64_t r = 0; r < rows; r++) {
            store_row(map, (first + r) * map.stride[3], lanes, from.row(r), from.pitch,
                      from.channels, finish);
        }
    }

    // --------------------------------------------------------------------------- products

    // Calls body(y, count) for every set of rows: y, y + apart, ..., `count` of them.
    template <typename Body>
    INLINE void for_sets(int64_t rows, Body body) const {
        for (int64_t block = 0; block < rows; block += kRows * p.apart) {
            for (int64_t phase = 0; phase < p.apart && block + phase < rows; phase++) {
                int64_t y = block + phase;
                body(y, static_cast<int>(min_of(ceil_div(rows - y, p.apart), kRows)));
            }
        }
    }

    // Calls body(t, first, last) for every key row of the windows of a set, of which t is one
    // window row or more from the set's first: query rows [first, last) see it.
    template <typename Body>
    INLINE void for_key_rows(int rows, Body body) const {
        int64_t k = w.kernel;
        for (int64_t t = 0; t < (rows - 1) * p.key_step + k; t++) {
            int first = static_cast<int>(t < k ? 0 : (t - k) / p.key_step + 1);
            int last = static_cast<int>(min_of(t / p.key_step + 1, rows));
            if (first < last) body(t, first, last);
        }
    }

    // s[j][o] of a set of rows, the first of which is y of the tile, against their keys; q, keys
    // and s point at the lanes' start, and s_row lanes lie between the first taps of two rows.
    void window_dots(const T* q, const T* keys, int64_t y, int rows, T* s, int64_t s_row) const {
        int64_t k = w.kernel, q_row = p.apart * w.depth * p.query_pitch;
        for_key_rows(rows, [&](int64_t t, int first, int last) {
            const T* query = q + first * q_row;
            const T* key = keys + key_row[y * w.stride + t * w.dilation];
            T* to = s + first * s_row + (t - first * p.key_step) * k * tap;
            // The next query row sees this key row one or more window rows earlier.
            int64_t to_row = s_row - p.key_step * k * tap;
#ifdef ACMIX_SLIDES
            auto run = [&](auto rows, auto columns, auto step) {
                slide_dots<T, rows, columns, step>(query, q_row, p.query_pitch, key, p.key_pitch,
                                                   w.depth, to, to_row, tap);
            };
            if (slide != 0 && with_sizes<T>(last - first, k, slide, run)) return;
#endif
#define ACMIX_ROWS(A)                                                                         \
    case A:                                                                                   \
        dots<T, A>(query, q_row, p.query_pitch, key, p.key_pitch, key_column, k, w.depth, to, \
                   to_row, tap);                                                              \
        break;
            switch (last - first) {
                ACMIX_ROWS(1)
                ACMIX_ROWS(2)
                ACMIX_ROWS(3)
            }
#undef ACMIX_ROWS
        });
    }

    // Fills in the steps from the key rows of a set's windows to its queries, of rows from y of
    // the tile on; returns their number.
    int64_t query_steps(int64_t y, int rows) const {
        int64_t count = 0;
        for_key_rows(rows, [&](int64_t t, int first, int last) {
            int64_t source = key_row[y * w.stride + t * w.dilation];
            steps[count++] = {t * w.kernel * tap, source, first, last};
        });
        return count;
    }

    // Sums of the keys of a set of rows under the weights s[j][o], after query_steps, times a
    // vector for each row if there is one.
    void gather_queries(int64_t step_count, const T* s, int64_t s_row, const T* keys, int rows,
                        T* to, const typename S::V* factor = nullptr) const {
        int64_t w_row = s_row - p.key_step * w.kernel * tap;
        int64_t to_row = p.apart * w.depth * p.query_pitch;
#ifdef ACMIX_SLIDES
        if (slide != 0) return slide_queries(step_count, s, w_row, keys, to, to_row, factor);
#endif
        gather(steps, step_count, s, w_row, tap_column, keys, p.key_pitch, key_column, w.kernel, to,
               to_row, p.query_pitch, w.depth, rows, factor, false);
    }

#ifdef ACMIX_SLIDES
    // gather_queries where the columns of windows slide.
    void slide_queries(int64_t step_count, const T* s, int64_t w_row, const T* keys, T* to,
                       int64_t to_row, const typename S::V* factor) const {
        for (int64_t t = 0; t < step_count; t++) {
            const Step& now = steps[t];
            bool fresh = t == now.last - 1;
            bool done = factor != nullptr && t - now.first == w.kernel - 1;
            auto run = [&](auto rows, auto columns, auto step) {
                slide_gather<T, rows, columns, step>(s + now.weight + now.first * w_row, w_row, tap,
                                                     keys + now.source, p.key_pitch, w.depth,
                                                     to + now.first * to_row, to_row, p.query_pitch,
                                                     fresh, done ? factor + now.first : nullptr);
            };
            with_sizes<T>(now.last - now.first, w.kernel, slide, run);
        }
    }

    // The part of gather_keys for one set of rows of keys, where the columns of windows slide.
    void slide_keys(T* sum, int64_t sum_row, const T* weights, const T* source,
                    int64_t step_count) const {
        int64_t pitch = p.query_pitch, w_row = w.kernel * pitch;
        for (int64_t x = 0; x < p.phase_pitch; x += L) {
            for (const Step* now = steps; now < steps + step_count; now++) {
                const T* weight = weights + p.margin + x + now->weight + now->first * w_row;
                const T* from = source + p.margin + x + now->source;
                T* to = sum + x + now->first * sum_row;
                auto run = [&](auto rows, auto columns, auto step) {
                    slide_gather<T, rows, columns, -step>(weight, w_row, pitch - step, from, pitch,
                                                          w.depth, to, sum_row, p.key_pitch, false,
                                                          nullptr);
                };
                with_sizes<T>(now->last - now->first, w.kernel, slide, run);
            }
        }
    }
#endif

    // Adds to the padded rows of `sum` what rows [first_row, first_row + rows) of queries give to
    // their keys: [row][tap] weights of [row][channel] sources, both with margins of zeros.
    void gather_keys(T* sum, int64_t first_row, int64_t rows, const T* weights,
                     const T* source) const {
        int64_t k = w.kernel, dilation = w.dilation, stride = w.stride;
        int64_t w_row = p.taps * p.query_pitch, row_size = w.depth * p.key_pitch;
        int64_t *w_offset = shifted, *s_offset = shifted + k;
        int64_t first = first_row * stride;
        int64_t last = (first_row + rows - 1) * stride + (k - 1) * dilation;
        for (int64_t phase = 0; phase < dilation; phase++) {
            for (int64_t t = first + phase; t <= last; t += kRows * dilation) {
                int count = static_cast<int>(min_of((last - t) / dilation + 1, kRows));
                int64_t step_count = 0;
                for (int64_t r = 0; r < rows; r++) {
                    // Window row of key row t + j * dilation, seen from this query row, is i + j.
                    int64_t away = t - (first_row + r) * stride;
                    if (away % dilation != 0) continue;
                    int64_t i = away / dilation;
                    int from = static_cast<int>(max_of(0, -i));
                    int to = static_cast<int>(min_of(count, k - i));
                    if (from >= to) continue;
                    steps[step_count++] = {r * w_row + i * k * p.query_pitch,
                                           r * w.depth * p.query_pitch, from, to};
                }
                if (step_count == 0) continue;
#ifdef ACMIX_SLIDES
                if (slide != 0) {
                    slide_keys(sum + t * row_size, dilation * row_size, weights, source,
                               step_count);
                    continue;
                }
#endif
                for (int64_t shift = 0; shift < stride; shift++) {
                    int64_t columns = 0;
                    for (int64_t dx = 0; dx < k; dx++) {
                        if (dx * dilation % stride != shift) continue;
                        s_offset[columns] = -(dx * dilation / stride * p.group);
                        w_offset[columns] = dx * p.query_pitch + s_offset[columns];
                        columns++;
                    }
                    if (columns == 0) continue;
                    T* to = sum + t * row_size + shift * p.phase_pitch;
                    for (int64_t x = 0; x < p.phase_pitch; x += L) {
                        gather(steps, step_count, weights + p.margin + x, k * p.query_pitch,
                               w_offset, source + p.margin + x, p.query_pitch, s_offset, columns,
                               to + x, dilation * row_size, p.key_pitch, w.depth, count, nullptr,
                               true);
                    }
                }
            }
        }
    }
};

// Runs an operator on all units of its plan, after other tasks. Operator<T>{call, plan, group,
// tile, turn} has a forward and a backward pass, which only count their scratch when the arena has
// none to give.
template <template <typename> class Operator, typename T, typename Call>
int run_units(const Call& call, Tasks tasks) {
    struct Context {
        const Call& call;
        Plan plan;
        void run(int64_t group, int64_t tile, Arena& arena, Turn turn) const {
            Operator<T> one{call, plan, group, tile, turn};
            call.window.backward ? one.backward(arena) : one.forward(arena);
        }
    } context{call, make_plan<T>(call.window)};
    const Plan& plan = context.plan;
    if (plan.units == 0) return parallel_for(call.window.threads, tasks);
    Arena sizes{nullptr};
    context.run(0, 0, sizes, {});
    Work work = [](void* data, int64_t unit, void* scratch, Turn turn) {
        const Context& c = *static_cast<const Context*>(data);
        const Plan& p = c.plan;
        int64_t first = unit / p.tiles * p.together, end = min_of(first + p.together, p.groups);
        for (int64_t group = first; group < end; group++) {
            Arena arena{static_cast<char*>(scratch)};
            c.run(group, unit % p.tiles, arena, turn);
        }
    };
    tasks.add({plan.units, sizes.used, work, &context});
    return parallel_for(call.window.threads, tasks);
}

template <template <typename> class Operator, typename Call>
int run_typed(const Call& call, const Tasks& before = {}) {
    return call.window.type == kFloat ? run_units<Operator, float>(call, before)
                                      : run_units<Operator, double>(call, before);
}

}  // namespace
}  // namespace acmix
