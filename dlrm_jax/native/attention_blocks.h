// What kernels of attention share: a head's rows, packed and unpacked, and products of blocks of them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "packing.h"

namespace attention {

using namespace products;

// A head's rows of a sequence in an array [T, H, width].
struct HeadRows {
  float* first;
  int64_t step;
  int64_t width;
  float* operator[](int64_t i) const { return first + i * step; }
  int64_t panels() const { return (width + kPanel - 1) / kPanel; }
};

inline Floats Load(const float* from) {
  Floats x;
  std::memcpy(&x, from, 64);
  return x;
}

inline void Store(float* to, Floats x) { std::memcpy(to, &x, 64); }

inline Floats Broadcast(float x) { return Floats{} + x; }

inline Floats Select(Ints condition, Floats yes, Floats no) {
  return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}

// 1 / (1 + exp(-x)), to about 2 units of the last place; NaN of NaN.
inline Floats Sigmoid(Floats x) {
  const Floats most = Broadcast(87.0f);
  x = Select(x > most, most, Select(x < -most, -most, x));
  // exp(-x) = 2^n exp(r) with |r| <= ln(2) / 2.
  const float magic = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer
  const Floats shifted = x * -1.44269504f + magic, n = shifted - magic;
  const Floats r = (-x - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = r * 1.98412698e-4f + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints power = ((Ints)shifted - 0x4b400000 + 127) << 23;
  return 1.0f / (p * (Floats)power + 1.0f);
}

// Rows of a matrix as panels of 32 columns, `capacity` rows of each, for the right side of a product.
inline void Pack(HeadRows from, int64_t count, int64_t capacity, float factor, float* to) {
  for (int64_t column = 0; column < from.width; column += kPanel, to += capacity * kPanel) {
    const int64_t width = std::min<int64_t>(kPanel, from.width - column);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < width; ++j) to[i * kPanel + j] = factor * from[i][column + j];
      for (int64_t j = width; j < kPanel; ++j) to[i * kPanel + j] = 0;
    }
  }
}

// Rows as columns: panels of 32 rows, each [width, 32], with zeros for rows that aren't there.
inline void PackTransposed(HeadRows from, int64_t count, float* to) {
  for (int64_t first = 0; first < count; first += kPanel, to += from.width * kPanel)
    for (int half = 0; half < kPanel; half += kTile)
      for (int64_t column = 0; column < from.width; column += kTile) {
        const int64_t width = std::min(kTile, from.width - column);
        Floats tile[kTile] = {};
        for (int64_t i = 0; i < std::min(kTile, count - first - half); ++i)
          tile[i] = packing::LoadFloats(from[first + half + i] + column, width);
        Transpose(tile);
        for (int64_t j = 0; j < width; ++j) Store(to + (column + j) * kPanel + half, tile[j]);
      }
}

inline Left LeftOf(const float* first, int64_t row_step, int64_t depth_step = 1) {
  return {reinterpret_cast<const uint32_t*>(first), row_step, depth_step};
}

using Block = float (*)[kPanel];

// c = some rows of a left matrix times a panel.
inline void Multiply(int64_t rows, Left a, const float* panel, int64_t depth, Block c) {
  SomeRows<Float32>(rows, a, reinterpret_cast<const uint32_t*>(panel), depth, c);
}

// sums += rows of a left matrix times a panel; sums are rows of 32 numbers.
inline void AddProduct(int64_t rows, Left a, const float* panel, int64_t depth, float* sums) {
  alignas(64) float c[kRowsAtOnce][kPanel];
  Multiply(rows, a, panel, depth, c);
  for (int64_t i = 0; i < rows; ++i)
    for (int half = 0; half < kPanel; half += kTile) {
      float* const to = sums + i * kPanel + half;
      Store(to, Load(to) + Load(c[i] + half));
    }
}

// Panels of sums as rows of an array.
inline void Unpack(const float* from, int64_t count, int64_t capacity, float factor, HeadRows to) {
  for (int64_t column = 0; column < to.width; column += kPanel, from += capacity * kPanel) {
    const int64_t width = std::min<int64_t>(kPanel, to.width - column);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < width; ++j) to[i][column + j] = factor * from[i * kPanel + j];
  }
}

}  // namespace attention
