// DLRM's dot interaction, of up to 16 examples at a time.
//
// An instruction works on one number of as many examples as a register holds. The vectors are
// [n, d], as lookups return them, and are transposed in registers; with `columns` the dense
// vector x and the result z are [features, n]. Only the result is written: the
// products of all vectors with all others, twice as many as needed, are never made.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "packing.h"
#include "transpose.h"

namespace interaction {

using packing::LoadFloats;
using packing::StoreFloats;

// The number of examples, and of columns of their vectors, that one AVX-512 register holds.
constexpr int kLanes = 16;
typedef products::Floats Lanes;

// A vector of each example, [n, d]: rows that are `step` numbers apart.
struct Rows {
  const float* first;
  int64_t step;
};

// The interacting vectors and their pairs: (1,0), (2,0), (2,1), ... in the order of the
// result, and with `self_interaction` (0,0), (1,0), (1,1), ... The result and its gradient are float32
// or bfloat16.
struct Vectors {
  const float* x;
  std::vector<Rows> pooled;
  int64_t n;
  int64_t d;
  bool self_interaction;
  bool columns;

  int64_t count() const { return static_cast<int64_t>(pooled.size()) + 1; }
  int64_t partners(int64_t i) const { return self_interaction ? i + 1 : i; }
  int64_t first_pair(int64_t i) const { return i * (self_interaction ? i + 1 : i - 1) / 2; }
  int64_t pairs() const { return first_pair(count()); }

  // Columns [column, column + kLanes) of all vectors of some examples, as [count, kLanes];
  // zeros where there are none.
  void Read(int64_t first, int64_t lanes, int64_t column, Lanes* to) const {
    const int64_t width = std::min<int64_t>(kLanes, d - column);
    if (columns)
      for (int64_t k = 0; k < kLanes; ++k)
        to[k] = k < width ? LoadFloats(x + (column + k) * n + first, lanes) : Lanes{};
    else
      ReadRows(x + first * d + column, d, lanes, width, to);
    for (const Rows& rows : pooled)
      ReadRows(rows.first + first * rows.step + column, rows.step, lanes, width, to += kLanes);
  }

  // The pairs' part of the result's gradient for some examples, [pairs, kLanes].
  template <typename Number>
  void ReadPairs(const Number* d_z, int64_t first, int64_t lanes, Lanes* to) const {
    const int64_t width = d + pairs();
    for (int64_t p = 0; p < pairs(); p += kLanes, to += kLanes) {
      const int64_t left = std::min<int64_t>(kLanes, pairs() - p);
      if (columns)
        for (int64_t i = 0; i < left; ++i) to[i] = LoadFloats(d_z + (d + p + i) * n + first, lanes);
      else
        ReadRows(d_z + first * width + d + p, width, lanes, left, to);
    }
  }

  // Writes the gradient of kLanes columns of x, which the result also has as they are.
  template <typename Number>
  void WriteX(const Number* d_z, int64_t first, int64_t lanes, int64_t column, Lanes* sum,
              float* d_x) const {
    const int64_t width = std::min<int64_t>(kLanes, d - column), all = d + pairs();
    if (columns) {
      for (int64_t k = 0, at = column * n + first; k < width; ++k, at += n)
        StoreFloats(d_x + at, sum[k] + LoadFloats(d_z + at, lanes), lanes);
      return;
    }
    Transpose(sum);
    for (int64_t l = 0; l < lanes; ++l) {
      const Lanes straight = LoadFloats(d_z + (first + l) * all + column, width);
      StoreFloats(d_x + (first + l) * d + column, sum[l] + straight, width);
    }
  }

  // `width` numbers of rows that are `step` apart, transposed.
  template <typename Number>
  static void ReadRows(const Number* from, int64_t step, int64_t lanes, int64_t width, Lanes* to) {
    Lanes rows[kLanes] = {};  // not `to` itself, so that they are kept in registers
    if (lanes == kLanes && width == kLanes)
      for (int l = 0; l < kLanes; ++l) rows[l] = LoadFloats(from + l * step, kLanes);
    else
      for (int64_t l = 0; l < lanes; ++l) rows[l] = LoadFloats(from + l * step, width);
    Transpose(rows);
    for (int k = 0; k < kLanes; ++k) to[k] = rows[k];
  }

  // Writes x of some examples, then the products of all pairs.
  template <typename Number>
  void Write(int64_t first, int64_t lanes, const Lanes* products, Number* z) const {
    if (columns) {
      for (int64_t k = 0; k < d; ++k)
        Copy(x + k * n + first, lanes, z + k * n + first);
      for (int64_t p = 0; p < pairs(); ++p) StoreFloats(z + (d + p) * n + first, products[p], lanes);
      return;
    }
    const int64_t width = d + pairs();
    for (int64_t l = first; l < first + lanes; ++l) Copy(x + l * d, d, z + l * width);
    for (int64_t p = 0; p < pairs(); p += kLanes) {
      const int64_t left = std::min<int64_t>(kLanes, pairs() - p);
      Lanes rows[kLanes] = {};
      for (int64_t i = 0; i < left; ++i) rows[i] = products[p + i];
      Transpose(rows);
      for (int64_t l = 0; l < lanes; ++l) StoreFloats(z + (first + l) * width + d + p, rows[l], left);
    }
  }

  template <typename Number>
  static void Copy(const float* from, int64_t count, Number* to) {
    for (int64_t i = 0; i < count; i += kLanes)
      StoreFloats(to + i, LoadFloats(from + i, count - i), count - i);
  }
};

// products[j] += a · t[j] of kCount vectors; the sums over kLanes columns stay in registers.
template <int kCount>
inline void AddProducts(const Lanes* a, const Lanes* t, Lanes* products) {
  Lanes sums[kCount];
  for (int j = 0; j < kCount; ++j) sums[j] = products[j];
  for (int k = 0; k < kLanes; ++k)
    for (int j = 0; j < kCount; ++j) sums[j] += a[k] * t[j * kLanes + k];
  for (int j = 0; j < kCount; ++j) products[j] = sums[j];
}

// Writes the result of examples, up to kLanes of them at a time; one for each thread.
class Interaction {
 public:
  explicit Interaction(const Vectors& vectors)
      : v_(vectors), t_(new Lanes[v_.count() * kLanes]), products_(new Lanes[v_.pairs()]) {}

  template <typename Number>
  void operator()(int64_t first, int64_t lanes, Number* z) const {
    std::fill_n(products_.get(), v_.pairs(), Lanes{});
    for (int64_t column = 0; column < v_.d; column += kLanes) {
      v_.Read(first, lanes, column, t_.get());
      Lanes* into = products_.get();
      for (int64_t i = 0; i < v_.count(); ++i) {
        const Lanes* const a = t_.get() + i * kLanes;
        const Lanes* with = t_.get();
        int64_t left = v_.partners(i);
        for (; left >= 8; left -= 8, with += 8 * kLanes, into += 8) AddProducts<8>(a, with, into);
        for (; left >= 4; left -= 4, with += 4 * kLanes, into += 4) AddProducts<4>(a, with, into);
        for (; left > 0; --left, with += kLanes, ++into) AddProducts<1>(a, with, into);
      }
    }
    v_.Write(first, lanes, products_.get(), z);
  }

 private:
  const Vectors& v_;
  std::unique_ptr<Lanes[]> t_, products_;  // C++17 aligns them
};

}  // namespace interaction
