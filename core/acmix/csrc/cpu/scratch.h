// Pieces of a thread's scratch.
#pragma once

#include <stddef.h>

#include "vectors.h"

namespace acmix {
namespace {

// Hands out aligned pieces of a thread's scratch; with a null base it only counts.
struct Arena {
    char* base;
    size_t used = 0;
    // A piece of as many elements as the product of the sizes.
    template <typename T, typename... Sizes>
    T* take(Sizes... sizes) {
        T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
        used += round_up(product(sizeof(T), sizes...), 64);
        return piece;
    }
};

}  // namespace
}  // namespace acmix
