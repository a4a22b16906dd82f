// How the maps of attention and aggregation are cut into units of work, and what lies at borders.
//
// Vector lanes are neighbouring pixels of a row. A stride s splits each padded row into s phases,
// which makes the keys of neighbouring queries neighbours again. Narrow maps interleave G heads:
// lane = column * G + head.
//
// Memory: scratch of the size of G heads per thread, nothing else. Gradients of keys and values are
// summed per head by one thread in a fixed order, so results do not depend on the number of
// threads.
#pragma once

#include "slides.h"

namespace acmix {
namespace {

constexpr int64_t kTileBytes = 640 << 10;  // scratch of one tile, to stay in the second level cache
constexpr int64_t kRowBytes = 12 << 10;    // of a row of keys of heads side by side

// Input index of a padded position, or -1 outside the image.
INLINE int64_t source_index(int64_t padded, int64_t pad, int64_t size, bool reflect) {
    int64_t i = padded - pad;
    if (reflect) {
        if (i < 0) i = -i;
        if (i >= size) i = 2 * (size - 1) - i;
    }
    return i >= 0 && i < size ? i : -1;
}

// Sizes are products that can't overflow, so that a window too large for any memory runs out of it.
struct Plan {
    const Window& window;
    int64_t taps, out_h, out_w, pad, heads;  // heads of all images
    int64_t group, groups;                   // heads side by side in a row's lanes
    int64_t together;                        // groups that one thread does after one another
    int64_t apart;                           // query rows that share keys are this far apart
    int64_t key_step;                        // and their windows this many key rows
    int64_t tile_h, tile_w, tiles_y, tiles_x;
    int64_t tiles;                   // that threads share; backward one does all of a head
    int64_t lanes;                   // of a tile's row of queries, a multiple of L
    int64_t phase_pitch, key_pitch;  // lanes of a padded row: stride * phase_pitch + slack
    int64_t query_pitch, margin;     // queries between margins of zeros (backward)
    int64_t tile_rows;               // padded rows that one tile of queries sees
    int64_t key_rows;                // of scratch for them: those of the image, and one of zeros
    int64_t units;                   // of work
};

INLINE int64_t odd_lines(int64_t lanes, int64_t vector) {
    // An odd number of vectors a row: planes then spread over all sets of the first level cache.
    return (ceil_div(lanes, vector) | 1) * vector;
}

INLINE int64_t common_divisor(int64_t a, int64_t b) {
    while (b != 0) {
        int64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

// Lanes between two columns of a window of heads side by side where these slide, or 0.
template <typename T>
int64_t slide_of(const Window& w, int64_t group) {
    int64_t step = product(w.dilation, group);
    return w.stride == 1 && can_slide<T>(w.kernel, step) ? step : 0;
}

// Interleaves heads while that fills more lanes and leaves a group for every thread. Those that are
// well filled are filled up only where rows of keys are short: a tile has fewer of long ones.
template <typename T>
int64_t heads_together(const Plan& p, int64_t threads) {
    constexpr int L = Simd<T>::kLanes;
    const Window& w = p.window;
    int64_t group = 1;
    auto filled = [&](int64_t g) { return double(p.out_w * g) / round_up(p.out_w * g, L); };
    auto row_bytes = [&](int64_t g) { return product(w.width + 2 * p.pad, w.depth, g, sizeof(T)); };
    for (int64_t g = 2; g <= L && filled(group) < 0.95; g *= 2) {
        if (filled(group) >= 0.85 && row_bytes(g) > kRowBytes) break;
        if (ceil_div(p.heads, g) < threads || g > p.heads) break;
        // Rows of more heads have less slack at their ends, which pays where columns slide.
        bool less_slack = filled(g) == filled(group) && slide_of<T>(w, g) != 0;
        if (filled(g) > filled(group) || less_slack) group = g;
    }
    return group;
}

// The lanes of a row for heads side by side in groups of `group`.
template <typename T>
void set_pitches(Plan& p, int64_t group) {
    constexpr int L = Simd<T>::kLanes;
    const Window& w = p.window;
    int64_t reach = product(w.kernel - 1, w.dilation);
    p.group = group;
    p.groups = ceil_div(p.heads, group);
    // Backward keeps whole rows, since one thread sums the gradients of a head.
    int64_t most = w.backward ? p.out_w : max_of(128 / group, 1);
    p.tiles_x = ceil_div(p.out_w, most);
    p.tile_w = ceil_div(p.out_w, p.tiles_x);
    p.lanes = round_up(p.tile_w * group, L);
    int64_t columns = ceil_div(p.lanes, group) + reach / w.stride + 1;
    p.phase_pitch = round_up(product(columns, group), L);
    p.key_pitch = odd_lines(product(w.stride, p.phase_pitch), L);
    p.margin = w.backward ? round_up(product(reach / w.stride, group), L) : 0;
    // The last key lanes look this far beyond the queries.
    p.query_pitch = odd_lines(p.margin + max_of(p.lanes, p.phase_pitch), L);
}

// Of so many padded rows, those that are different.
INLINE int64_t rows_in_scratch(const Window& w, int64_t rows) {
    return min_of(rows, w.height) + (w.reflect ? 0 : 1);
}

// Rows of a tile of queries: as many as scratch has room for, and enough tiles for all threads.
template <typename T>
int64_t tile_height(const Plan& p, int64_t reach) {
    const Window& w = p.window;
    int64_t unit = kRows * p.apart, rows = unit;
    auto bytes = [&](int64_t h) {
        int64_t size = sizeof(T),
                key_rows = rows_in_scratch(w, product(h - 1, w.stride) + reach + 1);
        if (w.backward) {
            return product(h, product(2, p.taps) + product(3, w.depth), p.query_pitch, size);
        }
        return product(product(2, key_rows, p.key_pitch) + product(2, h, p.query_pitch), w.depth,
                       size);
    };
    while (rows < p.out_h && bytes(rows + unit) <= kTileBytes) rows += unit;
    if (!w.backward) {
        // Not so small that halos outweigh the tile.
        int64_t wanted = ceil_div(4 * int64_t(w.threads), max_of(p.groups * p.tiles_x, 1));
        rows = min_of(rows, max_of(round_up(ceil_div(p.out_h, wanted), unit), 4 * unit));
    }
    return min_of(round_up(ceil_div(p.out_h, ceil_div(p.out_h, rows)), unit), p.out_h);
}

// A plan without units if there is nothing to do.
template <typename T>
Plan make_plan(const Window& window) {
    Plan p{window};
    const Window& w = window;
    p.taps = product(w.kernel, w.kernel);
    p.out_h = ceil_div(w.height, w.stride), p.out_w = ceil_div(w.width, w.stride);
    p.pad = product(w.dilation, w.kernel / 2);
    p.heads = w.batch * w.heads;
    if (p.heads == 0 || p.out_h == 0 || p.out_w == 0) return p;
    int64_t common = common_divisor(w.stride, w.dilation);
    p.apart = w.dilation / common, p.key_step = w.stride / common;
    int64_t reach = product(w.kernel - 1, w.dilation);
    if (w.backward) {
        // Tiles are summed one after another: their height must not depend on the threads.
        set_pitches<T>(p, heads_together<T>(p, 1));
        p.tile_h = tile_height<T>(p, reach);
    }
    set_pitches<T>(p, heads_together<T>(p, w.threads));
    if (!w.backward) p.tile_h = tile_height<T>(p, reach);
    p.tiles_y = ceil_div(p.out_h, p.tile_h);
    p.tile_rows = (p.tile_h - 1) * w.stride + reach + 1;
    p.key_rows = rows_in_scratch(w, p.tile_rows);
    p.tiles = w.backward ? 1 : p.tiles_x * p.tiles_y;
    // Channels last, the heads of a pixel are neighbours in memory: what is fetched along with the
    // first is there for the next.
    int64_t heads = max_of(w.heads / p.group, 1),
            share = p.groups * p.tiles / (4 * int64_t(w.threads));
    p.together = w.backward ? 1 : max_of(min_of(heads, share), 1);
    p.units = ceil_div(p.groups, p.together) * p.tiles;
    return p;
}

}  // namespace
}  // namespace acmix
