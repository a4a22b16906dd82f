// Attention inside the windows of a map on the CPU.
//
// For query i and keys j of one window and head, which are its L pixels row by row:
//     s_ij = D^(-1/2) q_i . k_j + bias_ij + mask_ij
//     P_ij = softmax_j(s),   out_i = sum_j P_ij v_j
// Backward, with P computed anew and dP_ij = dout_i . v_j:
//     dS_ij = P_ij (dP_ij - sum_j' P_ij' dP_ij'),   dq_i = D^(-1/2) sum_j dS_ij k_j
//     dk_j = D^(-1/2) sum_i dS_ij q_i,   dv_j = sum_i P_ij dout_i
// Pixels are read and written where they lie in the map. What is summed over channels is transposed
// to [channel][key]: vector lanes are the keys of a query in the logits, their softmax and its
// gradient, and channels in the other sums.
//
// Work: 2 L D multiply-adds per query forward, 5 backward. A window of one head is a unit, whose
// scratch stays in the second level cache. Its pixels are fetched while the unit before is
// computed: a quarter of the time was waiting for them.

#include "dispatch.h"
#include "rows.h"
#include "scratch.h"

namespace acmix {
namespace {

// Rows and vectors of results that stay in registers.
constexpr int kBlockRows = 3, kBlockVectors = kManyRegisters ? 7 : 4;

// A matrix in scratch, whose rows and columns may change places: they lie `row` and `step` apart.
template <typename T>
struct Matrix {
    T* data;
    int64_t row, step = 1;
    Matrix transposed() const { return {data, step, row}; }
    T* at(int64_t r) const { return data + r * row; }
};

// c[r][v] = sum_t a[r][t] b[t][v] for R rows and C vectors from v on.
template <typename T, int R, int C>
void product_block(const Matrix<T>& a, const Matrix<T>& b, int64_t steps, const Matrix<T>& c,
                   int64_t v) {
    using S = Simd<T>;
    typename S::V sum[R][C];
    const T *from = b.data + v, *factors = a.data;
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < C; i++) sum[r][i] = typename S::V{};
    }
    for (int64_t t = 0; t < steps; t++, from += b.row, factors += a.step) {
        typename S::V factor[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) factor[r] = S::all(factors[r * a.row]);
#pragma GCC unroll 8
        for (int i = 0; i < C; i++) {
            typename S::V value = S::load(from + i * S::kLanes);
            KEEP(value);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) sum[r][i] += factor[r] * value;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < C; i++) S::store(c.at(r) + v + i * S::kLanes, sum[r][i]);
    }
}

// The same for R rows of any number of whole vectors.
template <typename T, int R>
void product_rows(const Matrix<T>& a, const Matrix<T>& b, int64_t steps, const Matrix<T>& c,
                  int64_t columns) {
    int64_t v = 0;
#define ACMIX_BLOCK(C)                                                     \
    for (; v + C * Simd<T>::kLanes <= columns; v += C * Simd<T>::kLanes) { \
        product_block<T, R, C>(a, b, steps, c, v);                         \
    }
    ACMIX_BLOCK(kBlockVectors)
    ACMIX_BLOCK(4)
    ACMIX_BLOCK(3)
    ACMIX_BLOCK(2)
    ACMIX_BLOCK(1)
#undef ACMIX_BLOCK
}

// The same for up to kBlockRows rows from `first` of a, to the first of c.
template <typename T>
void multiply(const Matrix<T>& a, int64_t first, int64_t rows, const Matrix<T>& b, int64_t steps,
              const Matrix<T>& c, int64_t columns) {
    static_assert(kBlockRows == 3, "the cases below are those of three rows");
    Matrix<T> from{a.at(first), a.row, a.step};
    if (rows == 3) product_rows<T, 3>(from, b, steps, c, columns);
    if (rows == 2) product_rows<T, 2>(from, b, steps, c, columns);
    if (rows == 1) product_rows<T, 1>(from, b, steps, c, columns);
}

template <typename T>
struct WindowUnit {
    using S = Simd<T>;
    using V = typename S::V;
    static constexpr int L = S::kLanes;

    const Windows& call;
    int64_t pixels, keys, depth;  // of a window; keys and depth in whole vectors
    int64_t rows, columns;        // windows of an image
    T scale;                      // of the logits

    explicit WindowUnit(const Windows& c)
        : call(c),
          pixels(product(c.window_height, c.window_width)),
          keys(round_up(pixels, L)),
          depth(round_up(c.depth, L)),
          rows(c.height / c.window_height),
          columns(c.width / c.window_width),
          scale(1 / T(sqrt(double(c.depth)))) {}

    int64_t units() const { return call.batch * rows * columns * call.heads; }

    // Where the first pixel of a unit is in a map.
    int64_t start_of(const Map& map, int64_t unit) const {
        int64_t head = unit % call.heads, window = unit / call.heads;
        int64_t y = window / columns % rows * call.window_height;
        int64_t x = window % columns * call.window_width;
        return window / columns / rows * map.stride[0] + head * map.stride[1] + y * map.stride[3] +
               x * map.stride[4];
    }
    int64_t next_of(const Map& map, int64_t unit) const {
        return unit + 1 < units() ? start_of(map, unit + 1) - start_of(map, unit) : 0;
    }
    // Where its others are, from there.
    int64_t pixel_of(const Map& map, int64_t i) const {
        return i / call.window_width * map.stride[3] + i % call.window_width * map.stride[4];
    }

    // Pixels as rows [pixel][channel], zero behind the channels. Those of the next unit are
    // prefetched, since the hardware does not see them come.
    Matrix<T> load_pixels(T* to, const Map& map, int64_t unit, T scale) const {
        int64_t next = next_of(map, unit);
        with_elements<T>(map, [&](const auto* data) {
            constexpr int64_t kLine = 64 / sizeof(*data);
            const auto* from = data + start_of(map, unit);
            for (int64_t i = 0; i < pixels; i++) {
                const auto* pixel = from + pixel_of(map, i);
                T* row = to + i * depth;
                int64_t d = 0;
                for (int64_t c = 0; c < call.depth; c += kLine) {
                    __builtin_prefetch(pixel + next + c);
                }
                if (map.stride[2] == 1) {
                    for (; d + L <= call.depth; d += L) {
                        S::store(row + d, load_vector(pixel + d) * scale);
                    }
                }
                for (; d < call.depth; d++) row[d] = load_one(pixel + d * map.stride[2]) * scale;
                for (; d < depth; d++) row[d] = 0;
            }
        });
        return {to, depth};
    }

    // Pixels as columns, [channel][pixel], zero behind the pixels.
    Matrix<T> load_columns(T* to, const Map& map, int64_t unit, int64_t* table) const {
        for (int64_t j = 0; j < keys; j++) table[j] = j < pixels ? pixel_of(map, j) : -1;
        load_row(to, keys, call.depth, map, start_of(map, unit),
                 find_runs<T>(table, keys, map.stride[2]), T(1), next_of(map, unit));
        return {to, keys};
    }

    // Up to kBlockRows rows of pixels from `first` on.
    void store_pixels(const Map& map, int64_t unit, int64_t first, int64_t count,
                      const Matrix<T>& from, const T* scale) const {
        with_elements<T>(map, [&](auto* data) {
            for (int64_t r = 0; r < count; r++) {
                auto* pixel = data + start_of(map, unit) + pixel_of(map, first + r);
                const T* row = from.at(r);
                int64_t d = 0;
                if (map.stride[2] == 1) {
                    for (; d + L <= call.depth; d += L) {
                        store_vector(pixel + d, S::load(row + d) * scale[r]);
                    }
                }
                for (; d < call.depth; d++) {
                    store_one(pixel + d * map.stride[2], row[d] * scale[r]);
                }
            }
        });
    }

    // A vector of a matrix that has `rest` numbers from there on, and zeros.
    static INLINE V load_bias(const T* from, int64_t rest) {
        if (rest >= L) return S::load(from);
        V lanes = V{};
        for (int64_t i = 0; i < rest; i++) lanes[i] = from[i];
        return lanes;
    }

    // All lanes by twos, for short chains.
    template <typename Fold>
    static INLINE T folded(V v, Fold fold) {
        T lanes[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) lanes[i] = v[i];
#pragma GCC unroll 4
        for (int step = L / 2; step > 0; step /= 2) {
#pragma GCC unroll 8
            for (int i = 0; i < step; i++) lanes[i] = fold(lanes[i], lanes[i + step]);
        }
        return lanes[0];
    }

    // In place: row i of s to exp2(s + bias + mask - max), zero behind the keys. Returns 1 / sum.
    T softmax(T* s, const T* bias, const T* mask, int64_t i) const {
        int64_t row = i * pixels, area = pixels * pixels;
        V tops = S::all(-T(INFINITY)), sums = V{};
        typename S::I index;
        for (int i = 0; i < L; i++) index[i] = i;
        for (int64_t j = 0; j < keys; j += L) {
            int64_t at = row + j, left = pixels - j;
            V logit = S::load(s + j) + load_bias(bias + at, area - at) * kLog2e<T>;
            if (mask != nullptr) logit += load_bias(mask + at, area - at) * kLog2e<T>;
            // What follows a row is of the next.
            if (left < L) logit = index < typename S::Int(left) ? logit : S::all(-T(INFINITY));
            S::store(s + j, logit);
            tops = S::larger(tops, logit);
        }
        V top = S::all(folded(tops, [](T a, T b) { return a > b ? a : b; }));
        for (int64_t j = 0; j < keys; j += L) {
            V e = exp2_of<T>(S::load(s + j) - top);
            S::store(s + j, e);
            sums += e;
        }
        return 1 / folded(sums, [](T a, T b) { return a + b; });
    }

    // Weights of `count` queries from `first` on, not divided by their sums: see inverse.
    void weigh(int64_t unit, const Matrix<T>& q, const Matrix<T>& k, int64_t first, int64_t count,
               const Matrix<T>& p, T* inverse) const {
        multiply(q, first, count, k, call.depth, p, keys);
        int64_t area = pixels * pixels, window = unit / call.heads % (rows * columns);
        const T* bias = static_cast<const T*>(call.bias) + unit % call.heads * area;
        const T* mask = static_cast<const T*>(call.mask);
        if (mask != nullptr) mask += window * area;
        for (int64_t r = 0; r < count; r++) inverse[r] = softmax(p.at(r), bias, mask, first + r);
    }

    // Calls body(first, count) for every block of pixels.
    template <typename Body>
    INLINE void for_blocks(Body body) const {
        for (int64_t i = 0; i < pixels; i += kBlockRows) body(i, min_of(pixels - i, kBlockRows));
    }

    // Both passes count their scratch when the arena has none to give.
    void forward(Arena& arena, int64_t unit) const {
        int64_t* table = arena.take<int64_t>(table_size(keys));
        T* q_rows = arena.take<T>(pixels, depth);
        T* v_rows = arena.take<T>(pixels, depth);
        T* k_columns = arena.take<T>(call.depth, keys);
        Matrix<T> p{arena.take<T>(kBlockRows, keys), keys};
        Matrix<T> out{arena.take<T>(kBlockRows, depth), depth};
        if (arena.base == nullptr) return;
        Matrix<T> k = load_columns(k_columns, call.k, unit, table);
        Matrix<T> q = load_pixels(q_rows, call.q, unit, kLog2e<T> * scale);
        Matrix<T> v = load_pixels(v_rows, call.v, unit, T(1));
        for_blocks([&](int64_t first, int64_t count) {
            T inverse[kBlockRows];
            weigh(unit, q, k, first, count, p, inverse);
            multiply(p, 0, count, v, pixels, out, depth);
            store_pixels(call.out, unit, first, count, out, inverse);
        });
    }

    // In place: p to P, dp to dS.
    void softmax_gradient(T* p, T* dp, T inverse) const {
        V delta = V{};
        for (int64_t j = 0; j < keys; j += L) {
            V weight = S::load(p + j) * inverse;
            S::store(p + j, weight);
            delta += weight * S::load(dp + j);
        }
        T sum = folded(delta, [](T a, T b) { return a + b; });
        for (int64_t j = 0; j < keys; j += L) {
            S::store(dp + j, S::load(p + j) * (S::load(dp + j) - sum));
        }
    }

    void backward(Arena& arena, int64_t unit) const {
        int64_t* table = arena.take<int64_t>(table_size(keys));
        T *rows_of[3], *columns_of[2];
        for (T*& piece : rows_of) piece = arena.take<T>(pixels, depth);
        for (T*& piece : columns_of) piece = arena.take<T>(call.depth, keys);
        Matrix<T> p{arena.take<T>(pixels, keys), keys}, ds{arena.take<T>(pixels, keys), keys};
        Matrix<T> sums{arena.take<T>(kBlockRows, depth), depth};
        if (arena.base == nullptr) return;
        Matrix<T> k_columns = load_columns(columns_of[0], call.k, unit, table);
        Matrix<T> v_columns = load_columns(columns_of[1], call.v, unit, table);
        Matrix<T> q = load_pixels(rows_of[0], call.q, unit, kLog2e<T> * scale);
        Matrix<T> k = load_pixels(rows_of[1], call.k, unit, T(1));
        Matrix<T> g = load_pixels(rows_of[2], call.grad, unit, T(1));
        T* logits = static_cast<T*>(call.grad_logits) + unit * pixels * pixels;
        for_blocks([&](int64_t first, int64_t count) {
            T inverse[kBlockRows];
            Matrix<T> weights{p.at(first), keys}, changes{ds.at(first), keys};
            weigh(unit, q, k_columns, first, count, weights, inverse);
            multiply(g, first, count, v_columns, call.depth, changes, keys);
            for (int64_t r = 0; r < count; r++) {
                softmax_gradient(weights.at(r), changes.at(r), inverse[r]);
                memcpy(logits + (first + r) * pixels, changes.at(r), pixels * sizeof(T));
            }
        });
        // q came in with log2(e) in its scale.
        const T scale_q[] = {scale, scale, scale}, one[] = {1, 1, 1};
        const T scale_k[] = {1 / kLog2e<T>, 1 / kLog2e<T>, 1 / kLog2e<T>};
        for_blocks([&](int64_t first, int64_t count) {
            multiply(ds, first, count, k, pixels, sums, depth);
            store_pixels(call.grad_q, unit, first, count, sums, scale_q);
            multiply(ds.transposed(), first, count, q, pixels, sums, depth);
            store_pixels(call.grad_k, unit, first, count, sums, scale_k);
            multiply(p.transposed(), first, count, g, pixels, sums, depth);
            store_pixels(call.grad_v, unit, first, count, sums, one);
        });
    }

    void run(Arena& arena, int64_t unit) const {
        call.backward ? backward(arena, unit) : forward(arena, unit);
    }
};

template <typename T>
int run_typed(const Windows& call) {
    struct Context {
        WindowUnit<T> unit;
        int64_t together;  // units that one thread does after one another, as they follow in memory
    } context{WindowUnit<T>(call), 1};
    int64_t units = context.unit.units();
    context.together = max_of(min_of(4 * call.heads, units / (8 * int64_t(call.threads))), 1);
    Arena sizes{nullptr};
    context.unit.run(sizes, 0);
    Work work = [](void* data, int64_t item, void* scratch, Turn) {
        const Context& c = *static_cast<const Context*>(data);
        int64_t first = item * c.together, end = min_of(first + c.together, c.unit.units());
        for (int64_t unit = first; unit < end; unit++) {
            Arena arena{static_cast<char*>(scratch)};
            c.unit.run(arena, unit);
        }
    };
    return parallel_for(call.threads,
                        Task{ceil_div(units, context.together), sizes.used, work, &context});
}

}  // namespace

namespace ACMIX_ISA {
int run(const Windows& call) {
    return call.type == kFloat ? run_typed<float>(call) : run_typed<double>(call);
}
}  // namespace ACMIX_ISA

}  // namespace acmix
