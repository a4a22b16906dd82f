// The convolution path on the CPU: a layer over the maps of each channel, then shift and sum.
//
// For every channel d, with f zero outside the image:
//     f_i[p] = sum_m layer[i][m] in_m[d][p]                    (i < taps; without a layer f = in)
//     out[d][n][p] = sum_(i,t) kernels[n][i][t][d] f_i[stride * p + t - k / 2]
// A map of ones after the others carries the bias of the layer, and its zeros outside the image
// are the padding that comes after the layer. Backward, with g the gradient of out on the grid of
// the input, zero between the strides:
//     df_i[p] = sum_(n,t) kernels[n][i][t] g_n[p - t + k / 2],  din_m = sum_i layer[i][m] df_i
//     dkernels[n][i][t] = sum_p g_n[p] f_i[p + t - k / 2],  dlayer[i][m] = sum_p df_i[p] in_m[p]
// So two products serve everything, see stencil.h.
//
// Rows of the image with their padding are copied into scratch [row][column][map][lane], where
// borders, strides and the number of channels end.
//
// Work: taps * (maps + k² * outs) multiply-adds per pixel and channel forward, three times that
// backward. Gradients of weights are summed per image and band, and those sums by the caller in a
// fixed order, so results do not depend on the number of threads.
//
// Measured on two AVX-512 cores, batch 4, 12 maps of 16 channels, 56²: 0.9 ms. Copying rows is 40 %
// of it and bound by memory (prefetching and the order of the pixels change little); the products
// run at 50 G multiply-adds/s a core. With AVX2, where four outputs of three pixels fill the
// registers, copying is a quarter and the products run at 41 G/s a core, a matrix product at 35.

#include "dispatch.h"
#include "elements.h"
#include "scratch.h"
#include "stencil.h"

namespace acmix {
namespace {

template <typename T>
struct ConvolutionUnit {
    using S = Simd<T>;
    static constexpr int L = S::kLanes;

    const Convolution& call;
    Turn turn;
    int64_t out_h, out_w, pad, area;  // area: taps of the kernel, k²
    int64_t all_maps, inputs;         // maps with that of ones, maps of the stencil
    int64_t bands, blocks;
    Stack raw, features, grads, changes;  // inputs of the layer, f, g, df
    // Of this unit:
    int64_t image = 0, y0 = 0, rows = 0, d0 = 0, lanes = 0;

    explicit ConvolutionUnit(const Convolution& c, Turn at = {})
        : call(c),
          turn(at),
          out_h(ceil_div(c.height, c.stride)),
          out_w(ceil_div(c.width, c.stride)),
          pad(c.kernel / 2),
          area(c.kernel * c.kernel),
          all_maps(c.maps + c.ones),
          inputs(c.taps > 0 ? c.taps : all_maps),
          bands(ceil_div(c.backward ? c.height : out_h, c.band)),
          blocks(ceil_div(c.depth, L)),
          raw(all_maps, c.width, L),
          features(inputs, c.width + 2 * pad, L),
          grads(c.outs, c.width + 2 * pad, L),
          changes(c.taps, c.width, L) {}

    int64_t units() const { return call.batch * bands * blocks; }

    void start(int64_t unit) {
        image = unit / blocks / bands;
        y0 = unit / blocks % bands * call.band;
        rows = min_of(call.band, (call.backward ? call.height : out_h) - y0);
        d0 = unit % blocks * L;
        lanes = min_of(L, call.depth - d0);
    }

    // Where a row of this unit's image and channels begins in a map.
    int64_t row_at(const Map& map, int64_t row) const {
        return image * map.stride[0] + d0 * map.stride[2] + row * map.stride[3];
    }
    T* plane(const Map& map, int64_t row) const {
        return static_cast<T*>(map.data) + row_at(map, row);
    }

    // Lanes of one pixel from memory; lanes beyond the channels are zero.
    template <typename E>
    void copy_pixel(T* to, const E* from) const {
        if (lanes == L) return S::store(to, load_vector(from));
        S::store(to, typename S::V{});
        for (int64_t i = 0; i < lanes; i++) to[i] = load_one(from + i);
    }

    // Maps of row y of the image, and that of ones.
    template <typename E>
    void copy_row(T* to, const E* inputs, int64_t y) const {
        const E* from = inputs + row_at(call.input, y);
        const E* rest = static_cast<const E*>(call.rest.data);
        if (call.split < call.maps) rest += row_at(call.rest, y);
        for (int64_t x = 0; x < call.width; x++) {
            for (int64_t m = 0; m < call.split; m++, to += L) {
                copy_pixel(to, from + m * call.input.stride[1]);
            }
            for (int64_t m = 0; m < call.maps - call.split; m++, to += L) {
                copy_pixel(to, rest + m * call.rest.stride[1]);
            }
            if (call.ones) S::store(to, S::all(1)), to += L;
            from += call.input.stride[4], rest += call.rest.stride[4];
        }
    }

    // Rows [first, first + count) of f with its padding; raw rows are kept, or only the last one.
    void load_features(T* to, T* raws, bool keep, const T* layer, Pixels row_pixels, int64_t first,
                       int64_t count) const {
        for (int64_t r = 0; r < count; r++, to += features.row_size) {
            int64_t y = first + r;
            if (y < 0 || y >= call.height) {
                memset(to, 0, features.row_size * sizeof(T));
                continue;
            }
            int64_t margin = pad * features.pixel_size;
            memset(to, 0, margin * sizeof(T));
            memset(to + features.row_size - margin, 0, margin * sizeof(T));
            T* row = keep ? raws + r * raw.row_size : raws;
            if (call.taps == 0) row = to + margin;
            with_elements<T>(call.input, [&](const auto* data) { copy_row(row, data, y); });
            if (call.taps > 0)
                stencil(row, raw, row_pixels, 1, layer, call.taps, Planar<T>{to + margin, L, L});
        }
    }

    // Rows [first, first + count) of g on the grid of the input.
    void load_grads(T* to, int64_t first, int64_t count) const {
        memset(to, 0, count * grads.row_size * sizeof(T));
        for (int64_t r = 0; r < count; r++, to += grads.row_size) {
            int64_t y = first + r;
            if (y < 0 || y >= call.height || y % call.stride != 0) continue;
            const T* row = plane(call.grad, y / call.stride);
            for (int64_t x = 0; x < out_w; x++) {
                T* at = to + (pad + x * call.stride) * grads.pixel_size;
                separate(at, row + x * call.grad.stride[4], call.outs, lanes);
            }
        }
    }

    // Weights in the blocks of `stencil`; weight(output, map, tap) points to lanes, or to one
    // number for all lanes.
    template <typename Weight>
    void pack(T* to, int64_t outs, int64_t maps, int64_t taps, bool one, Weight weight) const {
        for (int64_t first = 0; first < outs;) {
            int b = block_of(outs - first);
            for (int64_t i = 0; i < maps * taps; i++) {
                for (int64_t n = first; n < first + b; n++, to += L) {
                    const T* from = weight(n, i % maps, i / maps);
                    one ? S::store(to, S::all(*from)) : copy_pixel(to, from);
                }
            }
            first += b;
        }
    }
    void pack_layer(T* to) const {
        auto weight = [&](int64_t i, int64_t m, int64_t) {
            return static_cast<const T*>(call.layer) + i * all_maps + m;
        };
        pack(to, call.taps, all_maps, 1, true, weight);
    }
    const T* kernel_at(int64_t n, int64_t i, int64_t tap) const {
        int64_t index = (n * inputs + i) * area + tap;
        return static_cast<const T*>(call.kernels) + index * call.depth + d0;
    }

    // Where the pixels of a band are in two arrays, `step` of the first apart.
    Pixels pixels(Arena& arena, int64_t count_y, int64_t count_x, int64_t in_row, int64_t in_column,
                  int64_t out_row, int64_t out_column) const {
        int64_t count = count_y * count_x;
        Pixels list{arena.take<int64_t>(count), arena.take<int64_t>(count), count};
        if (arena.base == nullptr) return list;
        int64_t i = 0;
        for (int64_t x0 = 0; x0 < count_x; x0 += kStrip) {
            int64_t end = min_of(count_x, x0 + kStrip);
            for (int64_t y = 0; y < count_y; y++) {
                for (int64_t x = x0; x < end; x++, i++) {
                    list.in[i] = y * in_row + x * in_column;
                    list.out[i] = y * out_row + x * out_column;
                }
            }
        }
        return list;
    }
    Pixels layer_pixels(Arena& arena) const {
        return pixels(arena, 1, call.taps > 0 ? call.width : 0, 0, raw.pixel_size, 0,
                      features.pixel_size);
    }

    // Both passes count their scratch when the arena has none to give.
    void forward(Arena& arena) const {
        int64_t most = arena.base == nullptr ? call.band : rows;
        int64_t loaded = (most - 1) * call.stride + call.kernel;
        Pixels all =
            pixels(arena, most, out_w, call.stride * features.row_size,
                   call.stride * features.pixel_size, call.out.stride[3], call.out.stride[4]);
        Pixels row = layer_pixels(arena);
        T* layer = arena.take<T>(call.taps, all_maps, L);
        T* raws = arena.take<T>(call.taps > 0 ? raw.row_size : 0);
        T* f = arena.take<T>(loaded, features.row_size);
        T* weights = arena.take<T>(call.outs, inputs, area, L);
        if (arena.base == nullptr) return;
        pack_layer(layer);
        load_features(f, raws, false, layer, row, y0 * call.stride - pad, loaded);
        turn.wait();  // For the kernels, where they are folded in the same call.
        pack(weights, call.outs, inputs, area, false,
             [&](int64_t n, int64_t i, int64_t tap) { return kernel_at(n, i, tap); });
        with_elements<T>(call.out, [&](auto* data) {
            stencil(f, features, all, call.kernel, weights, call.outs,
                    interleaved<T>(data + row_at(call.out, y0), call.out.stride[2], lanes));
        });
    }

    void backward(Arena& arena) const {
        int64_t most = arena.base == nullptr ? call.band : rows, loaded = most + 2 * pad;
        bool has_layer = call.taps > 0;
        Pixels row = layer_pixels(arena);
        Pixels same = pixels(arena, has_layer ? most : 0, call.width, grads.row_size,
                             grads.pixel_size, changes.row_size, changes.pixel_size);
        // What the gradients of maps are sums over.
        const Stack& last = has_layer ? changes : grads;
        Pixels back = pixels(arena, most, call.width, last.row_size, last.pixel_size,
                             call.grad_input.stride[3], call.grad_input.stride[4]);
        Pixels back_rest =
            pixels(arena, call.split < call.maps ? most : 0, call.width, last.row_size,
                   last.pixel_size, call.grad_rest.stride[3], call.grad_rest.stride[4]);
        Pixels pair = pixels(arena, has_layer ? most : 0, call.width, raw.row_size, raw.pixel_size,
                             changes.row_size, changes.pixel_size);
        // Only pixels on the stride's grid have a gradient.
        int64_t begin = round_up(y0, call.stride) - y0;
        int64_t kept = ceil_div(max_of(most - begin, 0), call.stride);
        Pixels strided = pixels(arena, arena.base == nullptr ? most : kept, out_w,
                                call.stride * features.row_size, call.stride * features.pixel_size,
                                call.stride * grads.row_size, call.stride * grads.pixel_size);
        int64_t* taps = arena.take<int64_t>(max_of(inputs * area, all_maps));
        T* layer = arena.take<T>(call.taps, all_maps, L);
        T* weights = arena.take<T>(call.outs, inputs, area, L);
        T* raws = arena.take<T>(has_layer ? loaded * raw.row_size : 0);
        T* f = arena.take<T>(loaded, features.row_size);
        T* g = arena.take<T>(loaded, grads.row_size);
        T* df = arena.take<T>(most, changes.row_size);
        if (arena.base == nullptr) return;

        pack_layer(layer);
        load_features(f, raws, true, layer, row, y0 - pad, loaded);
        load_grads(g, y0 - pad, loaded);
        for (int64_t i = 0; i < inputs * area; i++) {
            int64_t tap = i % area;
            taps[i] = i / area * L + tap / call.kernel * features.row_size +
                      tap % call.kernel * features.pixel_size;
        }
        int64_t summand = image * bands + y0 / call.band;
        T* sums = static_cast<T*>(call.grad_kernels) +
                  summand * call.outs * inputs * area * call.depth + d0;
        correlate(g + (begin + pad) * grads.row_size + pad * grads.pixel_size, call.outs,
                  f + begin * features.row_size, taps, inputs * area, strided, sums, call.depth,
                  lanes);

        // The transposed stencil: outputs and maps change places, taps are mirrored. Of `count`
        // maps from `first` on:
        auto spread = [&](int64_t first, int64_t count, const Pixels& where, const Planar<T>& to) {
            pack(weights, count, call.outs, area, false, [&](int64_t i, int64_t n, int64_t tap) {
                return kernel_at(n, first + i, area - 1 - tap);
            });
            stencil(g, grads, where, call.kernel, weights, count, to);
        };
        auto each_part = [&](auto put) {
            put(0, call.split, back, planes(call.grad_input));
            int64_t others = call.maps - call.split;
            if (others > 0) put(call.split, others, back_rest, planes(call.grad_rest));
        };
        if (!has_layer) return each_part(spread);
        spread(0, call.taps, same, Planar<T>{df, L, L});
        for (int64_t m = 0; m < all_maps; m++) taps[m] = m * L;
        sums = static_cast<T*>(call.grad_layer) + summand * call.taps * all_maps * call.depth + d0;
        correlate(df, call.taps, raws + pad * raw.row_size, taps, all_maps, pair, sums, call.depth,
                  lanes);
        each_part([&](int64_t first, int64_t count, const Pixels& where, const Planar<T>& to) {
            pack(layer, count, call.taps, 1, true, [&](int64_t m, int64_t i, int64_t) {
                return static_cast<const T*>(call.layer) + i * all_maps + first + m;
            });
            stencil(df, changes, where, 1, layer, count, to);
        });
    }

    // Where the gradients of a part of the maps go.
    Planar<T> planes(const Map& to) const {
        return {plane(to, y0), to.stride[1], lanes, call.add != 0};
    }
};

template <typename T>
Task task_of(const Convolution& call) {
    ConvolutionUnit<T> unit(call);
    if (unit.units() == 0) return {};
    Arena sizes{nullptr};
    call.backward ? unit.backward(sizes) : unit.forward(sizes);
    Work work = [](void* context, int64_t unit, void* scratch, Turn turn) {
        ConvolutionUnit<T> one(*static_cast<const Convolution*>(context), turn);
        Arena arena{static_cast<char*>(scratch)};
        one.start(unit);
        one.call.backward ? one.backward(arena) : one.forward(arena);
    };
    return {unit.units(), sizes.used, work, const_cast<Convolution*>(&call)};
}

}  // namespace

namespace ACMIX_ISA {
Task task(const Convolution& call) {
    return call.type == kFloat ? task_of<float>(call) : task_of<double>(call);
}
int run(const Convolution& call) { return parallel_for(call.threads, task(call)); }
}  // namespace ACMIX_ISA

}  // namespace acmix
