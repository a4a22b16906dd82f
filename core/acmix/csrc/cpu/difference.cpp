// Neighbourhood differences on the CPU: a pixel of one map minus the window of another around it.
//
// For every channel, with r(o) = stride * p + dilation * (o - k / 2):
//     out_o,p = a_(stride * p) - b_r(o)
//     da_(stride * p) = sum_o dout_o,p,   db_r = -sum_(p,o: r(o)=r) dout_o,p
// One plane (image, channel) is a unit of work.

#include "dispatch.h"
#include "plan.h"
#include "scratch.h"

namespace acmix {
namespace {

template <typename T>
struct DifferenceUnit {
    const Difference& call;
    int64_t unit;
    const Window& w = call.window;
    int64_t out_h = ceil_div(w.height, w.stride), out_w = ceil_div(w.width, w.stride);
    int64_t pad = w.dilation * (w.kernel / 2);

    T* plane(const Map& map) const {
        return static_cast<T*>(map.data) + unit / w.heads * map.stride[0] +
               unit % w.heads * map.stride[1];
    }

    // Columns [inner, end) of a window column have keys inside the image and can go by vectors.
    struct Columns {
        int64_t shift, inner, end;  // shift: from a pixel to its key
    };

    // Calls body(o, y, key row or -1, columns) for every tap and row.
    template <typename Body>
    INLINE void for_rows(Body body) const {
        for (int64_t o = 0; o < w.kernel * w.kernel; o++) {
            int64_t dy = o / w.kernel * w.dilation, shift = o % w.kernel * w.dilation - pad;
            Columns columns{shift, min_of(out_w, ceil_div(max_of(-shift, 0), w.stride)), out_w};
            int64_t inside = max_of(w.width - shift, 0);  // keys of pixels before this one
            columns.end = max_of(min_of(out_w, ceil_div(inside, w.stride)), columns.inner);
            for (int64_t y = 0; y < out_h; y++) {
                body(o, y, source_index(y * w.stride + dy, pad, w.height, w.reflect), columns);
            }
        }
    }

    // Calls inner() for the columns inside and border(x, key column or -1) for the others, in
    // order.
    template <typename Inner, typename Border>
    INLINE void for_columns(const Columns& columns, Inner inner, Border border) const {
        auto source = [&](int64_t x) {
            return source_index(x * w.stride + columns.shift, 0, w.width, w.reflect);
        };
        for (int64_t x = 0; x < columns.inner; x++) border(x, source(x));
        inner();
        for (int64_t x = columns.end; x < out_w; x++) border(x, source(x));
    }

    void forward() const {
        const Map &a = call.a, &b = call.b, &out = call.out;
        const int64_t a_x = w.stride * a.stride[4], b_x = w.stride * b.stride[4];
        const int64_t out_x = out.stride[4];
        for_rows([&](int64_t o, int64_t y, int64_t key_y, const Columns& columns) {
            const T* centre = plane(a) + y * w.stride * a.stride[3];
            T* to = plane(out) + o * out.stride[2] + y * out.stride[3];
            if (key_y < 0) {
                for (int64_t x = 0; x < out_w; x++) to[x * out_x] = centre[x * a_x];
                return;
            }
            const T* key = plane(b) + key_y * b.stride[3];
            auto inner = [&] {
                const T* start = key + columns.shift * b.stride[4];
                if (a_x == 1 && b_x == 1 && out_x == 1) {
                    for (int64_t x = columns.inner; x < columns.end; x++)
                        to[x] = centre[x] - start[x];
                } else {
                    for (int64_t x = columns.inner; x < columns.end; x++) {
                        to[x * out_x] = centre[x * a_x] - start[x * b_x];
                    }
                }
            };
            for_columns(columns, inner, [&](int64_t x, int64_t i) {
                to[x * out_x] = centre[x * a_x] - (i < 0 ? T(0) : key[i * b.stride[4]]);
            });
        });
    }

    void backward(Arena& arena) const {
        T* da = arena.take<T>(w.height, w.width);
        T* db = arena.take<T>(w.height, w.width);
        if (arena.base == nullptr) return;
        memset(da, 0, w.height * w.width * sizeof(T));
        memset(db, 0, w.height * w.width * sizeof(T));
        const Map& grad = call.grad;
        const int64_t g_x = grad.stride[4], stride = w.stride;
        for_rows([&](int64_t o, int64_t y, int64_t key_y, const Columns& columns) {
            const T* g = plane(grad) + o * grad.stride[2] + y * grad.stride[3];
            T* centre = da + y * stride * w.width;
            if (stride == 1 && g_x == 1) {
                for (int64_t x = 0; x < out_w; x++) centre[x] += g[x];
            } else {
                for (int64_t x = 0; x < out_w; x++) centre[x * stride] += g[x * g_x];
            }
            if (key_y < 0) return;
            T* key = db + key_y * w.width;
            auto inner = [&] {
                T* start = key + columns.shift;
                if (stride == 1 && g_x == 1) {
                    for (int64_t x = columns.inner; x < columns.end; x++) start[x] -= g[x];
                } else {
                    for (int64_t x = columns.inner; x < columns.end; x++)
                        start[x * stride] -= g[x * g_x];
                }
            };
            for_columns(columns, inner, [&](int64_t x, int64_t i) {
                if (i >= 0) key[i] -= g[x * g_x];
            });
        });
        store(call.grad_a, da);
        store(call.grad_b, db);
    }

    void store(const Map& map, const T* from) const {
        for (int64_t y = 0; y < w.height; y++) {
            for (int64_t x = 0; x < w.width; x++) {
                plane(map)[y * map.stride[3] + x * map.stride[4]] = from[y * w.width + x];
            }
        }
    }
};

template <typename T>
int run_typed(const Difference& call) {
    Arena sizes{nullptr};
    if (call.window.backward) DifferenceUnit<T>{call, 0}.backward(sizes);
    Work work = [](void* context, int64_t unit, void* scratch, Turn) {
        DifferenceUnit<T> one{*static_cast<const Difference*>(context), unit};
        Arena arena{static_cast<char*>(scratch)};
        one.w.backward ? one.backward(arena) : one.forward();
    };
    int64_t units = call.window.batch * call.window.heads;
    return parallel_for(call.window.threads,
                        Task{units, sizes.used, work, const_cast<Difference*>(&call)});
}

}  // namespace

namespace ACMIX_ISA {
int run(const Difference& call) {
    return call.window.type == kFloat ? run_typed<float>(call) : run_typed<double>(call);
}
}  // namespace ACMIX_ISA

}  // namespace acmix
