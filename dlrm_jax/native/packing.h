// The weights of an MLP, packed: as panels of 32 columns (see products.h), for the way forwards and,
// transposed, for the way back.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "products.h"
#include "transpose.h"

namespace packing {

using namespace products;

// Memory that begins with a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t words)
      : memory_(static_cast<uint32_t*>(std::aligned_alloc(64, FilledUp(4 * words + 64, 64)))) {
    if (memory_ == nullptr) std::abort();
  }
  ~Scratch() { std::free(memory_); }
  Scratch(Scratch&& other) : memory_(other.memory_) { other.memory_ = nullptr; }
  Scratch(const Scratch&) = delete;
  uint32_t* get() const { return memory_; }

 private:
  uint32_t* memory_;
};

struct Layer {
  int64_t in;
  int64_t out;
  bool relu;
};

// The words of a row that is filled up to whole panels.
template <typename Type>
int64_t RowWords(int64_t numbers) { return FilledUp(numbers, kPanel) / Type::kPerWord; }

template <typename Type>
int64_t PanelWords(int64_t rows, int64_t columns) {
  return Depth<Type>(rows) * FilledUp(columns, kPanel);
}

// 16 numbers, of which only the first `count` exist in memory: float32, or bfloat16 as uint16_t.

template <typename Vector, typename Number>
Vector LoadSome(const Number* from, int64_t count) {
  Vector x = {};
  if (count >= kTile)
    std::memcpy(&x, from, sizeof x);
  else if (count > 0)
    std::memcpy(&x, from, sizeof(Number) * count);
  return x;
}

template <typename Number, typename Vector>
void Store(Number* to, Vector x, int64_t count) {
  if (count >= kTile)
    std::memcpy(to, &x, sizeof x);
  else if (count > 0)
    std::memcpy(to, &x, sizeof(Number) * count);
}

inline Floats LoadFloats(const float* from, int64_t count) { return LoadSome<Floats>(from, count); }

inline Floats LoadFloats(const uint16_t* from, int64_t count) {
  return (Floats)(__builtin_convertvector(LoadSome<Shorts>(from, count), Words) << 16);
}

inline void StoreFloats(float* to, Floats x, int64_t count) { Store(to, x, count); }

inline void StoreFloats(uint16_t* to, Floats x, int64_t count) { Store(to, BFloat16::From(x), count); }

// The first `count` numbers, then zeros: what fills up a panel must be nothing, even if infinite.
inline Floats Some(Floats x, int64_t count) {
  return count >= kTile ? x : LoadSome<Floats>(reinterpret_cast<const float*>(&x), count);
}

template <typename Type>
typename Type::Numbers Load(const float* from, int64_t count) {
  return Type::From(LoadFloats(from, count));
}

template <typename Type>
typename Type::Numbers Load(const uint16_t* from, int64_t count) {
  return LoadSome<Shorts>(from, count);
}

// Packs one panel of a matrix [rows, columns], whose depth are its rows.
template <typename Type>
void PackPanel(const float* from, int64_t rows, int64_t columns, int64_t column, uint32_t* to) {
  for (int64_t k = 0; k < Depth<Type>(rows); ++k)
    for (int64_t half = 0; half < kPanel; half += kTile, to += kTile) {
      const int64_t row = k * Type::kPerWord, left = columns - column - half;
      const float* const at = from + row * columns + column + half;
      const auto first = Load<Type>(at, row < rows ? left : 0);
      const auto second = Load<Type>(at + columns, row + 1 < rows ? left : 0);
      const Words words = Type::Join(first, second);
      std::memcpy(to, &words, 64);
    }
}

// Packs one panel of the transposed matrix: its columns are 32 rows from `row` on, its depth the
// columns.
template <typename Type>
void PackTransposedPanel(const float* from, int64_t rows, int64_t columns, int64_t row,
                         uint32_t* to) {
  const int64_t depth = Depth<Type>(columns);
  for (int64_t k = 0; k < depth; k += kTile)
    for (int64_t half = 0; half < kPanel; half += kTile) {
      Words words[kTile] = {};
      const int64_t column = k * Type::kPerWord, left = columns - column;
      for (int64_t i = 0; i < std::min(kTile, rows - row - half); ++i) {
        const float* const at = from + (row + half + i) * columns + column;
        typename Type::Numbers numbers[Type::kPerWord];
        for (int64_t half = 0; half < Type::kPerWord; ++half)
          numbers[half] = Load<Type>(at + half * kTile, left - half * kTile);
        std::memcpy(&words[i], numbers, sizeof numbers);
      }
      Transpose(words);
      for (int64_t i = 0; i < std::min(kTile, depth - k); ++i)
        std::memcpy(to + (k + i) * kPanel + half, &words[i], 64);
    }
}

// The packed weights of an MLP, in one array of words.
template <typename Type>
struct Packed {
  std::vector<const uint32_t*> forward;
  std::vector<const uint32_t*> back;

  static int64_t words(const std::vector<Layer>& layers, bool both) {
    int64_t sum = 0;
    for (const Layer& x : layers)
      sum += PanelWords<Type>(x.in, x.out) + (both ? PanelWords<Type>(x.out, x.in) : 0);
    return sum;
  }

  Packed(const std::vector<Layer>& layers, const uint32_t* from, bool both) {
    for (const Layer& x : layers) {
      forward.push_back(from);
      from += PanelWords<Type>(x.in, x.out);
      if (!both) continue;
      back.push_back(from);
      from += PanelWords<Type>(x.out, x.in);
    }
  }
};

template <typename Type, typename Run>
void Pack(const std::vector<Layer>& layers, const std::vector<const float*>& kernels, uint32_t* to,
          bool both, const Run& parallel) {
  struct Panel { const Layer* layer; const float* kernel; int64_t first; bool transposed; uint32_t* to; };
  std::vector<Panel> panels;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& x = layers[i];
    for (int64_t j = 0; j < x.out; j += kPanel, to += kPanel * Depth<Type>(x.in))
      panels.push_back({&x, kernels[i], j, false, to});
    if (!both) continue;
    for (int64_t j = 0; j < x.in; j += kPanel, to += kPanel * Depth<Type>(x.out))
      panels.push_back({&x, kernels[i], j, true, to});
  }
  constexpr int64_t kAtOnce = 4;
  const int64_t count = static_cast<int64_t>(panels.size());
  parallel((count + kAtOnce - 1) / kAtOnce, [&](int64_t task) {
    for (int64_t i = task * kAtOnce; i < std::min(count, (task + 1) * kAtOnce); ++i) {
      const Panel& p = panels[i];
      if (p.transposed)
        PackTransposedPanel<Type>(p.kernel, p.layer->in, p.layer->out, p.first, p.to);
      else
        PackPanel<Type>(p.kernel, p.layer->in, p.layer->out, p.first, p.to);
    }
  });
}

}  // namespace packing
