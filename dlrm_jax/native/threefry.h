// The generator threefry2x32 with 20 rounds, JAX's default: Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3", 2011.

#pragma once

#include <cstdint>

#include "vectors.h"

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

struct Key {
  uint32_t x, y;
};

// Replaces counters x and y, words or vectors of words, by random bits.
template <typename Word>
inline void Threefry(Key key, Word& x, Word& y) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.x, key.y, key.x ^ key.y ^ 0x1BD11BDA};
  x += keys[0];
  y += keys[1];
  for (uint32_t i = 0; i < 5; ++i) {
    for (const int bits : kRotations[i % 2]) {
      x += y;
      y = x ^ (y << bits | y >> (32 - bits));
    }
    x += keys[(i + 1) % 3];
    y += keys[(i + 2) % 3] + (i + 1);
  }
}

// The same of kLanes counters of 64 bits, x the upper half: 0 in x, and `first` and on in y.
inline void Threefry(Key key, uint32_t first, Words& x, Words& y) {
  constexpr Words kCounting = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  x = Words{};
  y = kCounting + first;
  Threefry(key, x, y);
}

// jax.random.fold_in.
inline Key FoldIn(Key key, uint32_t number) {
  Key folded{0, number};
  Threefry(key, folded.x, folded.y);
  return folded;
}
