// Runs every CPU kernel on a list of shapes, in buffers without slack, for the sanitizers.
//
// Usage: driver CALLERS THREADS TYPES: so many threads call the kernels at once, each call with so
// many threads of its own, on maps of "all" types or without the doubles ("floats"). Every result
// is computed in two ways that must agree to the last bit; exits with 1 when they differ, or when a
// window too large for any memory does not run out of it (to which AddressSanitizer must agree:
// allocator_may_return_null=1).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <vector>

#include "acmix_cpu.h"

namespace {

struct Shape {
    int64_t batch, heads, depth, height, width, kernel, stride, dilation;
    int64_t out_h() const { return (height + stride - 1) / stride; }
    int64_t out_w() const { return (width + stride - 1) / stride; }
};

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 7, 1, 1},    {2, 2, 3, 9, 9, 7, 1, 1},   {1, 3, 5, 7, 12, 7, 2, 1},
    {1, 2, 16, 17, 5, 5, 3, 2},  {2, 3, 19, 3, 20, 3, 1, 2}, {1, 4, 16, 8, 8, 9, 2, 3},
    {5, 7, 8, 7, 7, 7, 1, 1},    {1, 1, 4, 40, 37, 7, 1, 3}, {1, 2, 2, 4, 150, 3, 1, 1},
    {3, 2, 33, 4, 4, 1, 2, 1},   {0, 2, 3, 5, 5, 3, 1, 1},   {1, 16, 2, 14, 14, 5, 2, 2},
    {1, 2, 3, 0, 5, 3, 1, 1},    {1, 2, 3, 5, 4, 3, 9, 8},   {2, 3, 16, 9, 19, 7, 1, 1},
    {1, 2, 32, 12, 10, 5, 2, 1}, {1, 1, 48, 8, 21, 3, 4, 1},
};

// The variants that this driver has: that of its own flags, and perhaps tiles.
#ifdef ACMIX_AMX
constexpr int kVariants[] = {0, 3};
#else
constexpr int kVariants[] = {0};
#endif

constexpr int64_t kHuge = int64_t(1) << 31;
const Shape kTooLarge[] = {
    {1, 1, 1, 4, 4, kHuge - 1, 1, 1},
    {1, 1, 1, 4, 4, kHuge - 1, kHuge, kHuge},
    {2, 3, 16, 9, 9, kHuge - 1, 2, kHuge},
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
constexpr acmix::Type type_of() {
    return sizeof(T) == 4 ? acmix::kFloat : acmix::kDouble;
}

int32_t& backward_of(acmix::Convolution& call) { return call.backward; }
int32_t& backward_of(acmix::Folding& call) { return call.backward; }
int32_t& backward_of(acmix::Windows& call) { return call.backward; }
template <typename Call>
int32_t& backward_of(Call& call) {
    return call.window.backward;
}

// Runs the forward and the backward pass; false if one ran out of memory.
template <typename Call>
bool run_both(int (*run)(const Call*, int), Call call) {
    bool done = true;
    for (int backward = 0; backward < 2; backward++) {
        backward_of(call) = backward;
        int status = run(&call, 0);
        if (status != 0 && status != -1) std::abort();
        done = done && status == 0;
    }
    return done;
}

template <typename T>
void append(std::vector<T>& all, std::initializer_list<const Tensor<T>*> results) {
    for (const Tensor<T>* x : results) all.insert(all.end(), x->data.begin(), x->data.end());
}

template <typename T>
acmix::Window window_of(const Shape& s, int threads) {
    int64_t pad = s.dilation * (s.kernel / 2);
    bool reflect = pad < s.height && pad < s.width;
    return {0,       type_of<T>(), reflect, threads,  s.batch,  s.heads,
            s.depth, s.height,     s.width, s.kernel, s.stride, s.dilation};
}

template <typename T>
bool window_kernels_agree(const Shape& s, bool last, int threads) {
    const acmix::Window window = window_of<T>(s, threads);
    acmix::Window flat = window;
    flat.depth = 1;
    std::vector<int64_t> in{s.batch, s.heads, s.depth, s.height, s.width};
    std::vector<int64_t> out{s.batch, s.heads, s.depth, s.out_h(), s.out_w()};
    std::vector<int64_t> row{s.batch, s.heads, 1, s.out_h(), s.out_w()};
    std::vector<int64_t> taps{s.batch, s.heads, s.kernel * s.kernel, s.out_h(), s.out_w()};
    std::vector<int64_t> plane{s.batch, s.heads, 1, s.height, s.width};
    const Tensor<T> q(in, last, 1), v(in, last, 3), grad(out, last, 4), position(in, last, 5);
    const Tensor<T> w(taps, false, 6), a(plane, false, 7), b(plane, false, 8);
    std::vector<T> first;
    for (bool positioned : {false, true}) {
        Tensor<T> k(in, last, 2), y(out, last, 9), lse(row, false, 10), dq(in, last, 11);
        Tensor<T> dk(in, last, 12), dv(in, last, 13), sum(out, last, 14), dsum(in, last, 15);
        Tensor<T> dw(taps, false, 16), diff(taps, false, 17), da(plane, false, 18);
        Tensor<T> db(plane, false, 19), dalpha({1, 1, 1, s.batch, s.heads}, false, 20);
        acmix::Map strided = dq.map;
        strided.stride[3] *= s.stride, strided.stride[4] *= s.stride;
        // The position is taken off the keys by the kernel, or here.
        for (size_t i = 0; !positioned && i < k.data.size(); i++) k.data[i] -= position.data[i];
        acmix::Attention attention{window};
        attention.q = q.map, attention.k = k.map, attention.v = v.map;
        if (positioned) attention.position = position.map;
        attention.out = y.map, attention.lse = lse.map, attention.grad = grad.map;
        attention.grad_q = strided, attention.grad_k = dk.map, attention.grad_v = dv.map;
        attention.grad_alpha = dalpha.data.data();
        acmix::Aggregation aggregation{window};
        aggregation.v = v.map, aggregation.w = w.map, aggregation.out = sum.map;
        aggregation.grad = grad.map, aggregation.grad_v = dsum.map, aggregation.grad_w = dw.map;
        acmix::Difference difference{flat};
        difference.a = a.map, difference.b = b.map, difference.out = diff.map;
        difference.grad = w.map, difference.grad_a = da.map, difference.grad_b = db.map;
        if (!run_both(acmix_attention, attention)) std::abort();
        if (!run_both(acmix_aggregation, aggregation)) std::abort();
        if (!run_both(acmix_difference, difference)) std::abort();
        std::vector<T> all;
        append(all, {&y, &lse, &dq, &dk, &dv, &sum, &dsum, &dw, &diff, &da, &db, &dalpha});
        if (!positioned) first = all;
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

// The maps from one on, in the memory of all.
template <typename T>
acmix::Map part_from(acmix::Map map, int64_t first) {
    map.data = static_cast<T*>(map.data) + first * map.stride[1];
    return map;
}

template <typename T>
bool convolutions_agree(const Shape& s, bool layered, int threads) {
    int64_t kernel = s.kernel < 5 ? s.kernel : 3, columns = s.heads + 1, bands = (s.height + 3) / 4;
    int64_t inputs = layered ? 5 : columns;
    const Pixels<T> in(s.batch, s.heads, s.depth, s.height, s.width, false, 1);
    const Pixels<T> grad(s.batch, s.kernel, s.depth, s.out_h(), s.out_w(), true, 2);
    const Tensor<T> kernels({s.kernel, inputs, kernel, kernel, s.depth}, false, 3);
    const Tensor<T> layer({1, 1, 1, 5, columns}, false, 4);
    acmix::Convolution call{};
    call.type = type_of<T>(), call.threads = threads, call.ones = 1;
    call.batch = s.batch, call.maps = s.heads, call.depth = s.depth;
    call.taps = layered ? 5 : 0, call.outs = s.kernel;
    call.height = s.height, call.width = s.width;
    call.kernel = kernel, call.stride = s.stride, call.band = 4;
    call.layer = layer.data.data(), call.kernels = kernels.data.data();
    call.input = in.map, call.grad = grad.map;
    std::vector<T> first;
    for (int run = 0; run < 4; run++) {
        const bool add = run % 2 == 1;
        // All maps are in one tensor, or as many as half of them in the second.
        call.split = s.heads - (run < 2 ? 0 : s.heads / 2);
        call.rest = part_from<T>(call.input, call.split);
        Pixels<T> out(s.batch, s.kernel, s.depth, s.out_h(), s.out_w(), true, 5);
        Pixels<T> grad_in(s.batch, s.heads, s.depth, s.height, s.width, false, 6);
        Tensor<T> grad_kernels({s.batch * bands, s.kernel * inputs, kernel, kernel, s.depth}, false,
                               7);
        Tensor<T> grad_layer({1, s.batch * bands, 5, columns, s.depth}, false, 8);
        // The gradient is added to what is there by the kernel, or here.
        const std::vector<T> before = grad_in.data;
        call.out = out.map, call.grad_input = grad_in.map, call.add = add;
        call.grad_rest = part_from<T>(grad_in.map, call.split);
        call.grad_kernels = grad_kernels.data.data(), call.grad_layer = grad_layer.data.data();
        if (!run_both(acmix_convolution, call)) std::abort();
        for (size_t i = 0; !add && i < before.size(); i++) grad_in.data[i] += before[i];
        std::vector<T> all;
        append<T>(all, {&out, &grad_in, &grad_kernels, &grad_layer});
        if (run == 0) first = all;
        if (first != all) return false;
    }
    return true;
}

// Three operators one after the other, or by threads that share the work: kernels are folded, the
// maps convolved with them, and the attention is added, by factors for all channels or by channel.
template <typename T>
bool paths_agree(const Shape& s, bool last, int threads) {
    std::vector<int64_t> in{s.batch, s.heads, s.depth, s.height, s.width};
    const Tensor<T> q(in, last, 1), k(in, last, 2), v(in, last, 3);
    const Pixels<T> maps(s.batch, s.heads, s.depth, s.height, s.width, false, 4);
    const Tensor<T> kernels({1, s.depth * s.heads, 5, 9, 1}, false, 5);
    const Tensor<T> layer({1, 1, 1, 5, s.heads}, false, 6), scale({1, 1, 1, 1, 1}, false, 7);
    const Tensor<T> alpha({1, s.heads, s.depth, 1, 1}, false, 8);
    const Tensor<T> offset({1, s.heads, s.depth, 1, 1}, false, 9);
    const int64_t channels = s.heads * s.depth;
    std::vector<T> first;
    for (int run = 0; run < 4; run++) {
        const bool together = run % 2 == 1, by_channel = run >= 2;
        Tensor<T> folded({s.heads, s.heads, 9, s.depth, 1}, false, 10);
        Tensor<T> lse({s.batch, s.heads, 1, s.out_h(), s.out_w()}, false, 11);
        Pixels<T> out(s.batch, s.heads, s.depth, s.out_h(), s.out_w(), true, 12);
        acmix::Folding folding{};
        folding.type = type_of<T>(), folding.threads = threads, folding.outs = s.heads;
        folding.taps = 5, folding.maps = s.heads, folding.area = 9, folding.depth = s.depth;
        folding.map_step = last ? 1 : 9, folding.tap_step = last ? 5 : 1;
        folding.layer = layer.data.data(), folding.kernels = kernels.data.data();
        folding.scale = scale.data.data(), folding.folded = folded.data.data();
        acmix::Convolution convolution{};
        convolution.type = type_of<T>(), convolution.threads = threads;
        convolution.batch = s.batch, convolution.depth = s.depth;
        convolution.maps = convolution.split = s.heads;
        convolution.outs = s.heads, convolution.height = s.height, convolution.width = s.width;
        convolution.kernel = 3, convolution.stride = s.stride, convolution.band = 2;
        convolution.kernels = folded.data.data();
        convolution.input = maps.map, convolution.out = out.map;
        acmix::Attention attention{window_of<T>(s, threads)};
        attention.q = q.map, attention.k = k.map, attention.v = v.map;
        attention.out = out.map, attention.lse = lse.map, attention.add = 1;
        attention.out.stride[1] = s.depth, attention.out.stride[2] = 1;
        attention.out.stride[4] = channels;
        attention.alpha = alpha.map;
        if (by_channel) attention.offset = offset.map;
        for (int64_t& stride : attention.alpha.stride) stride = by_channel ? stride : 0;
        for (int i : {0, 3, 4}) attention.alpha.stride[i] = attention.offset.stride[i] = 0;
        int status = together ? acmix_paths(&folding, &convolution, &attention, 0)
                              : acmix_folding(&folding, 0) | acmix_convolution(&convolution, 0) |
                                    acmix_attention(&attention, 0);
        if (status != 0) std::abort();
        std::vector<T> all;
        append<T>(all, {&folded, &lse, &out});
        if (!together) first = all;
        if (first != all) return false;
    }
    return true;
}

// Maps of bfloat16 of the same sizes as those of floats, rounded towards zero.
struct Halves : Tensor<uint16_t> {
    explicit Halves(const Tensor<float>& x) : Tensor<uint16_t>({0, 0, 0, 0, 0}, false, 0) {
        data.resize(x.data.size());
        for (size_t i = 0; i < data.size(); i++) {
            uint32_t bits;
            std::memcpy(&bits, &x.data[i], sizeof(bits));
            data[i] = static_cast<uint16_t>(bits >> 16);
        }
        map = x.map;
        map.data = data.data(), map.type = acmix::kBFloat16;
    }
};

// By one thread, or by several: both paths of maps of bfloat16, added.
bool halves_agree(const Shape& s, bool last, int threads, int isa) {
    std::vector<int64_t> in{s.batch, s.heads, s.depth, s.height, s.width};
    std::vector<int64_t> out{s.batch, s.heads, s.depth, s.out_h(), s.out_w()};
    const Halves q(Tensor<float>(in, last, 1)), k(Tensor<float>(in, last, 2));
    const Halves maps(Pixels<float>(s.batch, s.heads, s.depth, s.height, s.width, false, 3));
    const Tensor<float> kernels({2, s.heads, 3, 3, s.depth}, false, 4);
    const Tensor<float> position({1, 1, s.depth, s.height, s.width}, last, 8);
    std::vector<uint16_t> first;
    for (int many : {1, threads}) {
        Halves y(Tensor<float>(out, last, 5));
        Halves convolved(Pixels<float>(s.batch, 2, s.depth, s.out_h(), s.out_w(), true, 6));
        Tensor<float> lse({s.batch, s.heads, 1, s.out_h(), s.out_w()}, false, 7);
        acmix::Attention attention{window_of<float>(s, many)};
        attention.q = q.map, attention.k = k.map, attention.v = k.map;
        attention.out = y.map, attention.lse = lse.map, attention.add = 1;
        if (last) attention.position = position.map;
        attention.position.stride[0] = attention.position.stride[1] = 0;
        acmix::Convolution convolution{};
        convolution.type = acmix::kFloat, convolution.threads = many;
        convolution.batch = s.batch, convolution.depth = s.depth;
        convolution.maps = convolution.split = s.heads;
        convolution.outs = 2, convolution.height = s.height, convolution.width = s.width;
        convolution.kernel = 3, convolution.stride = s.stride, convolution.band = 2;
        convolution.kernels = kernels.data.data();
        convolution.input = maps.map, convolution.out = convolved.map;
        if (acmix_paths(nullptr, &convolution, &attention, isa) != 0) std::abort();
        std::vector<uint16_t> all;
        append<uint16_t>(all, {&y, &convolved});
        if (many == 1 && first.empty()) first = all;
        if (first != all) return false;
    }
    return true;
}

// By one thread, or by several.
template <typename T>
bool foldings_agree(const Shape& s, int threads) {
    int64_t area = s.kernel < 5 ? s.kernel * s.kernel : 9;
    const Tensor<T> kernels({1, s.depth * s.heads, s.height, area, 1}, false, 1);
    // One row more than is read: without any it would be absent.
    const Tensor<T> layer({1, 1, 1, s.height + 1, s.width}, false, 2);
    const Tensor<T> grad({s.batch, s.heads, s.width, area, s.depth}, false, 3);
    std::vector<T> first;
    for (int many : {1, threads}) {
        Tensor<T> folded({1, s.heads, s.width, area, s.depth}, false, 4);
        Tensor<T> grad_layer({1, 1, s.heads, s.height, s.width}, false, 5);
        Tensor<T> grad_kernels({1, s.depth * s.heads, s.height, area, 1}, false, 6);
        acmix::Folding call{};
        call.type = type_of<T>(), call.threads = many, call.outs = s.heads, call.depth = s.depth;
        call.taps = s.height, call.maps = s.width, call.area = area, call.summands = s.batch;
        call.map_step = area, call.tap_step = 1;
        call.layer = layer.data.data(), call.kernels = kernels.data.data();
        call.folded = folded.data.data(), call.grad_folded = grad.data.data();
        call.grad_layer = grad_layer.data.data(), call.grad_kernels = grad_kernels.data.data();
        if (!run_both(acmix_folding, call)) std::abort();
        std::vector<T> all;
        append<T>(all, {&folded, &grad_layer, &grad_kernels});
        if (many == 1 && first.empty()) first = all;
        if (first != all) return false;
    }
    return true;
}

// By one thread, or by several; windows as large as the kernel, or the map.
template <typename T>
bool windows_agree(const Shape& s, bool last, int threads) {
    int64_t rows = s.height < s.kernel ? 1 : s.height / s.kernel;
    int64_t side = s.height < s.kernel ? s.height : s.kernel, pixels = side * s.width;
    if (pixels == 0) return true;
    std::vector<int64_t> size{s.batch, s.heads, s.depth, rows * side, s.width};
    const Tensor<T> q(size, last, 1), k(size, last, 2), v(size, last, 3), grad(size, last, 4);
    const Tensor<T> bias({1, 1, s.heads, pixels, pixels}, false, 5);
    const Tensor<T> mask({1, 1, rows, pixels, pixels}, false, 6);
    std::vector<T> first;
    for (int many : {1, threads}) {
        Tensor<T> out(size, last, 7), dq(size, last, 8), dk(size, last, 9), dv(size, last, 10);
        Tensor<T> logits({s.batch, rows, s.heads, pixels, pixels}, false, 11);
        acmix::Windows call{};
        call.type = type_of<T>(), call.threads = many, call.batch = s.batch, call.heads = s.heads;
        call.depth = s.depth, call.height = rows * side, call.width = s.width;
        call.window_height = side, call.window_width = s.width;
        call.bias = bias.data.data(), call.mask = last ? mask.data.data() : nullptr;
        call.q = q.map, call.k = k.map, call.v = v.map, call.out = out.map, call.grad = grad.map;
        call.grad_q = dq.map, call.grad_k = dk.map, call.grad_v = dv.map;
        call.grad_logits = logits.data.data();
        if (!run_both(acmix_windows, call)) std::abort();
        std::vector<T> all;
        append(all, {&out, &dq, &dk, &dv, &logits});
        if (many == 1 && first.empty()) first = all;
        if (first != all) return false;
    }
    return true;
}

template <typename T>
bool all_agree(const Shape& shape, bool last, int threads) {
    return window_kernels_agree<T>(shape, last, threads) &&
           convolutions_agree<T>(shape, last, threads) && paths_agree<T>(shape, last, threads) &&
           windows_agree<T>(shape, last, threads);
}

bool too_large_runs_out_of_memory() {
    for (const Shape& shape : kTooLarge) {
        const acmix::Window window = window_of<float>(shape, 1);
        if (run_both(acmix_attention, acmix::Attention{window})) return false;
        if (run_both(acmix_aggregation, acmix::Aggregation{window})) return false;
    }
    return true;
}

}  // namespace

int main(int, char** argv) {
    int callers = std::atoi(argv[1]), threads = std::atoi(argv[2]);
    const bool of_floats = std::strcmp(argv[3], "floats") == 0;
    std::vector<int> failed(callers, 0);
    auto work = [&](int caller) {
        for (const Shape& shape : kShapes) {
            for (int last = 0; last < 2; last++) {
                failed[caller] += !all_agree<float>(shape, last, threads);
                failed[caller] += !of_floats && !all_agree<double>(shape, last, threads);
                for (int isa : kVariants) {
                    failed[caller] += !halves_agree(shape, last, threads, isa);
                }
            }
            failed[caller] += !foldings_agree<float>(shape, threads);
            failed[caller] += !of_floats && !foldings_agree<double>(shape, threads);
        }
    };
    std::vector<std::thread> running;
    for (int i = 0; i < callers; i++) running.emplace_back(work, i);
    for (auto& thread : running) thread.join();
    for (int count : failed) {
        if (count != 0) return std::printf("%d shapes differ between two ways\n", count), 1;
    }
    if (!too_large_runs_out_of_memory()) return std::puts("a huge window has found memory"), 1;
    return 0;
}
