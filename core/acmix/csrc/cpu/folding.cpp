// The layer over the maps folded into the shift kernels, and the gradients of both.
//
//     folded[n][m][t][d] = scale sum_i layer[i][m] kernels[d][n][i][t]
//     dkernels[d][n][i][t] = sum_m layer[i][m] dfolded[n][m][t][d]
//     dlayer[i][m] = sum_(d,n,t) dfolded[n][m][t][d] kernels[d][n][i][t]
//
// Sums are kept in double: weights are few, and then round once. Vector lanes are neighbouring
// channels d, as in convolution.cpp, which reads the folded kernels. In torch the same are two
// einsums, conversions and permutations, which take longer than the convolution of a small map.
//
// Work: taps * maps * k² multiply-adds per output channel forward, twice that backward.

#include "dispatch.h"
#include "scratch.h"

namespace acmix {
namespace {

template <typename T>
struct FoldingUnit {
    using S = Simd<double>;
    using V = typename S::V;
    static constexpr int L = S::kLanes;

    const Folding& call;
    int64_t n;  // output of a group

    int64_t kernel_at(int64_t d) const { return (d * call.outs + n) * call.taps * call.area; }
    int64_t folded_at(int64_t m, int64_t d) const {
        return (n * call.maps + m) * call.area * call.depth + d;
    }
    double layer(int64_t i, int64_t m) const {
        return static_cast<const T*>(call.layer)[i * call.maps + m];
    }

    // Kernels of lanes [d0, d0 + L) as [tap of the layer][t][lane]; zero beyond the channels.
    void load_kernels(double* to, int64_t d0) const {
        for (int64_t lane = 0; lane < L; lane++) {
            bool inside = d0 + lane < call.depth;
            const T* from =
                static_cast<const T*>(call.kernels) + (inside ? kernel_at(d0 + lane) : 0);
            double* at = to + lane;
            for (int64_t i = 0; i < call.taps; i++) {
                const T* row = from + i * call.map_step;
                for (int64_t t = 0; t < call.area; t++, at += L) {
                    *at = inside ? double(row[t * call.tap_step]) : 0;
                }
            }
        }
    }

    // out[r][t] = sum_c weight(c, r) in[c][t], in rows of `area` vectors.
    template <typename Weight>
    void product(double* out, int64_t rows, const double* in, int64_t columns,
                 Weight weight) const {
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t t = 0; t < call.area; t++) {
                V sum = V{};
                for (int64_t c = 0; c < columns; c++) {
                    sum += weight(c, r) * S::load(in + (c * call.area + t) * L);
                }
                S::store(out + (r * call.area + t) * L, sum);
            }
        }
    }

    void forward(Arena& arena) const {
        double* kernels = arena.take<double>(call.taps, call.area, L);
        double* folded = arena.take<double>(call.maps, call.area, L);
        if (arena.base == nullptr) return;
        double scale = call.scale == nullptr ? 1 : *static_cast<const T*>(call.scale);
        for (int64_t d0 = 0; d0 < call.depth; d0 += L) {
            int64_t lanes = min_of(L, call.depth - d0);
            load_kernels(kernels, d0);
            if (call.layer != nullptr) {
                product(folded, call.maps, kernels, call.taps,
                        [&](int64_t i, int64_t m) { return layer(i, m); });
            }
            const double* from = call.layer != nullptr ? folded : kernels;
            for (int64_t row = 0; row < call.maps * call.area; row++, from += L) {
                T* to = static_cast<T*>(call.folded) + folded_at(0, d0) + row * call.depth;
                for (int64_t lane = 0; lane < lanes; lane++) to[lane] = T(scale * from[lane]);
            }
        }
    }

    // The sum over images and bands of the gradient of the folded kernels, [map][t][lane].
    void load_grads(double* to, int64_t d0, int64_t lanes) const {
        int64_t rows = call.maps * call.area, summand = call.outs * rows * call.depth;
        memset(to, 0, rows * L * sizeof(double));
        for (int64_t s = 0; s < call.summands; s++) {
            const T* from =
                static_cast<const T*>(call.grad_folded) + s * summand + folded_at(0, d0);
            for (int64_t row = 0; row < rows; row++, from += call.depth) {
                for (int64_t lane = 0; lane < lanes; lane++) to[row * L + lane] += from[lane];
            }
        }
    }

    void backward(Arena& arena) const {
        double* kernels = arena.take<double>(call.taps, call.area, L);
        double* dkernels = arena.take<double>(call.taps, call.area, L);
        double* grads = arena.take<double>(call.maps, call.area, L);
        double* dlayer = arena.take<double>(call.taps, call.maps);
        if (arena.base == nullptr) return;
        memset(dlayer, 0, call.taps * call.maps * sizeof(double));
        for (int64_t d0 = 0; d0 < call.depth; d0 += L) {
            int64_t lanes = min_of(L, call.depth - d0);
            load_kernels(kernels, d0);
            load_grads(grads, d0, lanes);
            product(dkernels, call.taps, grads, call.maps,
                    [&](int64_t m, int64_t i) { return layer(i, m); });
            for (int64_t lane = 0; lane < lanes; lane++) {
                T* to = static_cast<T*>(call.grad_kernels) + kernel_at(d0 + lane);
                for (int64_t i = 0; i < call.taps * call.area; i++) {
                    to[i] = T(dkernels[i * L + lane]);
                }
            }
            for (int64_t i = 0; i < call.taps; i++) {
                for (int64_t m = 0; m < call.maps; m++) {
                    dlayer[i * call.maps + m] +=
                        dot(kernels + i * call.area * L, grads + m * call.area * L, call.area);
                }
            }
        }
        T* to = static_cast<T*>(call.grad_layer) + n * call.taps * call.maps;
        for (int64_t i = 0; i < call.taps * call.maps; i++) to[i] = T(dlayer[i]);
    }

    static double dot(const double* a, const double* b, int64_t vectors) {
        V sum = V{};
        for (int64_t i = 0; i < vectors; i++) sum += S::load(a + i * L) * S::load(b + i * L);
        double total = 0;
        for (int lane = 0; lane < L; lane++) total += sum[lane];
        return total;
    }
};

template <typename T>
Task task_of(const Folding& call) {
    Arena sizes{nullptr};
    FoldingUnit<T> first{call, 0};
    call.backward ? first.backward(sizes) : first.forward(sizes);
    Work work = [](void* context, int64_t unit, void* scratch, Turn) {
        FoldingUnit<T> one{*static_cast<const Folding*>(context), unit};
        Arena arena{static_cast<char*>(scratch)};
        one.call.backward ? one.backward(arena) : one.forward(arena);
    };
    return {call.outs, sizes.used, work, const_cast<Folding*>(&call)};
}

}  // namespace

namespace ACMIX_ISA {
Task task(const Folding& call) {
    return call.type == kFloat ? task_of<float>(call) : task_of<double>(call);
}
int run(const Folding& call) { return parallel_for(call.threads, task(call)); }
}  // namespace ACMIX_ISA

}  // namespace acmix
