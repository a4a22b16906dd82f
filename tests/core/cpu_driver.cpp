// Runs every CPU kernel on a list of shapes, in buffers without slack, for the sanitizers.
//
// Usage: driver CALLERS THREADS: so many threads call the kernels at once on shared inputs, each
// call with so many threads of its own. Exits with 1 when two calls on equal inputs differ.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "acmix_cpu.h"

extern "C" int acmix_run(const acmix::Call* call, int isa);
extern "C" int acmix_convolve(const acmix::Convolution* call, int isa);

namespace {

struct Shape {
    int64_t batch, heads, depth, height, width, kernel, stride, dilation;
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 7, 1, 1},   {2, 2, 3, 9, 9, 7, 1, 1},   {1, 3, 5, 7, 12, 7, 2, 1},
    {1, 2, 16, 17, 5, 5, 3, 2}, {2, 3, 19, 3, 20, 3, 1, 2}, {1, 4, 16, 8, 8, 9, 2, 3},
    {5, 7, 8, 7, 7, 7, 1, 1},   {1, 1, 4, 40, 37, 7, 1, 3}, {1, 2, 2, 4, 150, 3, 1, 1},
    {3, 2, 33, 4, 4, 1, 2, 1},  {0, 2, 3, 5, 5, 3, 1, 1},   {1, 16, 2, 14, 14, 5, 2, 2},
};

template <typename T>
struct Tensor {
    std::vector<T> data;
    acmix::Map map{};
    // Sizes in the order (batch, head, channel, row, column); `last` stores channels last.
    Tensor(std::vector<int64_t> size, bool last, unsigned seed) {
        const int order[2][5] = {{0, 1, 2, 3, 4}, {0, 3, 4, 1, 2}};
        int64_t count = 1;
        for (int i = 4; i >= 0; i--) {
            map.stride[order[last][i]] = count;
            count *= size[order[last][i]];
        }
        data.resize(count);
        for (auto& x : data) {
            seed = seed * 1664525u + 1013904223u;
            x = static_cast<T>(seed >> 8) / (1 << 23) - 1;
        }
        map.data = data.data();
    }
};

template <typename T>
bool run_shape(const Shape& s, bool last, int threads) {
    int64_t out_h = (s.height + s.stride - 1) / s.stride;
    int64_t out_w = (s.width + s.stride - 1) / s.stride;
    int64_t pad = s.dilation * (s.kernel / 2), taps = s.kernel * s.kernel;
    bool reflect = pad < s.height && pad < s.width;
    acmix::Call call{};
    call.type = sizeof(T) == 4 ? acmix::kFloat : acmix::kDouble;
    call.threads = threads, call.reflect = reflect;
    call.batch = s.batch, call.heads = s.heads, call.depth = s.depth;
    call.height = s.height, call.width = s.width;
    call.kernel = s.kernel, call.stride = s.stride, call.dilation = s.dilation;
    std::vector<int64_t> in{s.batch, s.heads, s.depth, s.height, s.width};
    std::vector<int64_t> out{s.batch, s.heads, s.depth, out_h, out_w};
    std::vector<int64_t> row{s.batch, s.heads, 1, out_h, out_w};
    std::vector<int64_t> weights{s.batch, s.heads, taps, out_h, out_w};
    std::vector<int64_t> plane{s.batch, s.heads, 1, s.height, s.width};
    using Map = Tensor<T>;
    const Map q(in, last, 1), k(in, last, 2), v(in, last, 3), grad(out, last, 4);
    const Map w(weights, false, 5), flat(plane, false, 6), other(plane, false, 7);
    std::vector<T> first;
    for (int round = 0; round < 2; round++) {
        Map y(out, last, 8), lse(row, false, 9), dq(in, last, 10), dk(in, last, 11);
        Map dv(in, last, 12), dw(weights, false, 13), diff(weights, false, 14);
        Map da(plane, false, 15), db(plane, false, 16);
        acmix::Map strided = dq.map;
        strided.stride[3] *= s.stride, strided.stride[4] *= s.stride;
        auto run = [&](acmix::Op op, std::vector<acmix::Map> maps, int64_t depth) {
            call.op = op, call.depth = depth;
            std::memcpy(call.map, maps.data(), maps.size() * sizeof(acmix::Map));
            if (acmix_run(&call, 0) != 0) std::abort();
        };
        run(acmix::kAttentionForward, {q.map, k.map, v.map, y.map, lse.map}, s.depth);
        run(acmix::kAttentionBackward,
            {q.map, k.map, v.map, grad.map, lse.map, strided, dk.map, dv.map}, s.depth);
        std::vector<T> all;
        auto keep = [&](const Map& x) { all.insert(all.end(), x.data.begin(), x.data.end()); };
        for (const Map* x : {&y, &lse, &dq, &dk, &dv}) keep(*x);
        run(acmix::kAggregationForward, {v.map, w.map, y.map}, s.depth);
        run(acmix::kAggregationBackward, {v.map, w.map, grad.map, dv.map, dw.map}, s.depth);
        run(acmix::kSubtractionForward, {flat.map, other.map, diff.map}, 1);
        run(acmix::kSubtractionBackward, {w.map, da.map, db.map}, 1);
        for (const Map* x : {&y, &dv, &dw, &diff, &da, &db}) keep(*x);
        if (round == 0) first = all;
        if (first != all) return false;
    }
    return true;
}

// Channels of all maps of a pixel side by side, as the convolution path has them.
template <typename T>
struct Pixels : Tensor<T> {
    Pixels(int64_t batch, int64_t maps, int64_t depth, int64_t height, int64_t width, bool mixed,
           unsigned seed)
        : Tensor<T>({batch, maps, depth, height, width}, true, seed) {
        if (mixed) this->map.stride[1] = 1, this->map.stride[2] = maps;
    }
};

template <typename T>
bool convolve_shape(const Shape& s, bool layered, int threads) {
    int64_t out_h = (s.height + s.stride - 1) / s.stride;
    int64_t out_w = (s.width + s.stride - 1) / s.stride;
    int64_t kernel = s.kernel < 5 ? s.kernel : 3, columns = s.heads + 1, bands = (s.height + 3) / 4;
    acmix::Convolution call{};
    call.type = sizeof(T) == 4 ? acmix::kFloat : acmix::kDouble;
    call.threads = threads, call.ones = 1;
    call.batch = s.batch, call.maps = s.heads, call.depth = s.depth;
    call.taps = layered ? 5 : 0, call.outs = s.kernel;
    call.height = s.height, call.width = s.width;
    call.kernel = kernel, call.stride = s.stride, call.band = 4;
    int64_t inputs = layered ? 5 : columns;
    const Pixels<T> in(s.batch, s.heads, s.depth, s.height, s.width, false, 1);
    const Pixels<T> grad(s.batch, s.kernel, s.depth, out_h, out_w, true, 2);
    const Tensor<T> kernels({s.kernel, inputs, kernel, kernel, s.depth}, false, 3);
    const Tensor<T> layer({1, 1, 1, 5, columns}, false, 4);
    call.layer = layer.data.data(), call.kernels = kernels.data.data();
    std::vector<T> first;
    for (int round = 0; round < 2; round++) {
        Pixels<T> out(s.batch, s.kernel, s.depth, out_h, out_w, true, 5);
        Pixels<T> grad_in(s.batch, s.heads, s.depth, s.height, s.width, false, 6);
        Tensor<T> grad_kernels({s.batch * bands, s.kernel * inputs, kernel, kernel, s.depth}, false,
                               7);
        Tensor<T> grad_layer({1, s.batch * bands, 5, columns, s.depth}, false, 8);
        call.in = in.map, call.out = out.map, call.grad_in = grad_in.map, call.backward = 0;
        call.grad_kernels = grad_kernels.data.data(), call.grad_layer = grad_layer.data.data();
        if (acmix_convolve(&call, 0) != 0) std::abort();
        call.backward = 1, call.out = grad.map;
        if (acmix_convolve(&call, 0) != 0) std::abort();
        std::vector<T> all;
        for (const Tensor<T>* x : {static_cast<Tensor<T>*>(&out), static_cast<Tensor<T>*>(&grad_in),
                                   &grad_kernels, &grad_layer}) {
            all.insert(all.end(), x->data.begin(), x->data.end());
        }
        if (round == 0) first = all;
        if (first != all) return false;
    }
    return true;
}

}  // namespace

int main(int, char** argv) {
    int callers = std::atoi(argv[1]), threads = std::atoi(argv[2]);
    std::vector<int> failed(callers, 0);
    auto work = [&](int caller) {
        for (const Shape& shape : kShapes) {
            for (int last = 0; last < 2; last++) {
                failed[caller] += !run_shape<float>(shape, last, threads);
                failed[caller] += !run_shape<double>(shape, last, threads);
                failed[caller] += !convolve_shape<float>(shape, last, threads);
                failed[caller] += !convolve_shape<double>(shape, last, threads);
            }
        }
    };
    std::vector<std::thread> running;
    for (int i = 0; i < callers; i++) running.emplace_back(work, i);
    for (auto& thread : running) thread.join();
    for (int count : failed) {
        if (count != 0) return std::printf("%d shapes differ between two runs\n", count), 1;
    }
    return 0;
}
