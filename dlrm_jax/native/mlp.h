// A multi-layer perceptron, forwards and backwards, in float32 or bfloat16.
//
// Samples go through all layers in blocks, whose activations stay in the cache. Weights are packed
// beforehand: as panels of 32 columns (see products.h), then transposed for the way back. Sums,
// biases, the result and all gradients of parameters are float32. With bfloat16, the gradients behind
// an activation are rounded before they are multiplied, or summed for a bias.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "packing.h"

namespace mlp {

using namespace packing;

// Copies rows to rows filled up with zeros to whole panels.
template <typename Type, typename Number>
void CopyRows(const Number* from, int64_t rows, int64_t numbers, uint32_t* to) {
  auto* out = reinterpret_cast<typename Type::Number*>(to);
  for (int64_t row = 0; row < rows; ++row, from += numbers)
    for (int64_t j = 0; j < FilledUp(numbers, kPanel); j += kTile, out += kTile)
      Store(out, Load<Type>(from + j, numbers - j), kTile);
}

// Copies rows that were filled up. Blocks are written in pieces and stay in the cache, arrays of all
// samples are written row after row: their lines arrive late, but the processor foresees them.
template <typename Number>
void CopyOut(const uint32_t* from, int64_t rows, int64_t numbers, Number* to) {
  const auto* in = reinterpret_cast<const Number*>(from);
  for (int64_t row = 0; row < rows; ++row, to += numbers, in += FilledUp(numbers, kPanel))
    std::memcpy(to, in, sizeof(Number) * numbers);
}

inline int64_t BlockRows(int64_t samples, int64_t threads) {
  // Fewer samples can't fill the threads, the activations of more fall out of the cache.
  return std::clamp<int64_t>(FilledUp((samples + threads - 1) / threads, kPanel), kPanel,
                             2 * kPanel);
}

// The words of a block of samples with rows of any layer, of float32 or shorter numbers.
inline int64_t BlockWords(const std::vector<Layer>& layers, int64_t rows) {
  int64_t most = FilledUp(layers[0].in, kPanel);
  for (const Layer& layer : layers) most = std::max(most, FilledUp(layer.out, kPanel));
  return most * FilledUp(rows, kPanel);
}

// Args: x [n, in] of float32 or bfloat16; hidden, the activations of all layers but the last to be
// kept, [n, out] each, or none; result [n, out] of the last layer.
template <typename Type, typename Number, typename Run>
void Forward(const std::vector<Layer>& layers, const Packed<Type>& packed,
             const std::vector<const float*>& biases, const Number* x, int64_t n,
             const std::vector<typename Type::Number*>& hidden, float* result, int64_t threads,
             const Run& parallel) {
  const int64_t size = BlockRows(n, threads), last = static_cast<int64_t>(layers.size()) - 1;
  parallel((n + size - 1) / size, [&](int64_t task) {
    const Tiles tiles;
    const int64_t first = task * size, rows = std::min(size, n - first);
    const Scratch one(BlockWords(layers, rows)), other(BlockWords(layers, rows));
    uint32_t *from = one.get(), *to = other.get();
    CopyRows<Type>(x + first * layers[0].in, rows, layers[0].in, from);
    for (int64_t l = 0; l <= last; ++l) {
      const Layer& layer = layers[l];
      const int64_t width = FilledUp(layer.out, kPanel);
      auto* const block = reinterpret_cast<typename Type::Number*>(to);
      Multiply<Type>(
          tiles, {from, RowWords<Type>(layer.in), 1}, rows,
          Panels(packed.forward[l], Depth<Type>(layer.in)), Depth<Type>(layer.in), layer.out,
          [&](int64_t row, int64_t count, int64_t column, const float (*c)[kPanel]) {
            for (int64_t half = 0; half < kPanel; half += kTile) {
              const int64_t j = column + half, there = layer.out - j;
              const Floats bias = LoadFloats(biases[l] + j, there);
              for (int64_t i = 0; i < count; ++i) {
                Floats y = LoadFloats(&c[i][half], kTile) + bias;
                if (layer.relu) y = (Floats)((Ints)y & ~(Ints)(y < 0));  // NaN stays
                if (l == last)
                  Store(result + (first + row + i) * layer.out + j, y, there);
                else
                  Store(block + (row + i) * width + j, Type::From(Some(y, there)), kTile);
              }
            }
          });
      if (l < last && !hidden.empty())
        CopyOut(to, rows, layer.out, hidden[l] + first * layer.out);
      std::swap(from, to);
    }
  });
}

// ---- Backwards

// Columns of a matrix, as the left matrix of products over the samples. Each is read many times.
template <typename Type>
constexpr int64_t kStrip = Type::kPerWord == 1 ? 24 : 32;
constexpr int64_t kDepth = 256;     // words of a product at a time: they fit the first cache
constexpr int64_t kRowsAhead = 16;  // that a strip's rows are fetched

// Loads the lines of some numbers into the cache.
template <typename Number>
void Fetch(const Number* from, int64_t numbers) {
  const char* const begin = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < static_cast<int64_t>(sizeof(Number)) * numbers; byte += 64)
    __builtin_prefetch(begin + byte);
}

// Copies up to kStrip columns of [n, numbers] from `first` on: as [n][kStrip] words, or for two
// numbers a word as [kStrip][n / 2], whose rows are `Depth + kTile` apart, as tiles read them.
template <typename Type, typename Number>
Left TakeStrip(const Number* from, int64_t n, int64_t numbers, int64_t first, uint32_t* to) {
  const int64_t count = std::min(kStrip<Type>, numbers - first);
  from += first;
  if constexpr (Type::kPerWord == 1) {
    for (int64_t i = 0; i < n; ++i, from += numbers, to += kStrip<Type>) {
      Fetch(from + kRowsAhead * numbers, count);
      for (int64_t k = 0; k < count; k += kTile) {
        const Words words = (Words)Load<Type>(from + k, count - k);
        std::memcpy(to + k, &words, 4 * std::min(kTile, kStrip<Type> - k));
      }
    }
    return {to - n * kStrip<Type>, 1, kStrip<Type>};
  }
  const int64_t step = Depth<Type>(n) + kTile;
  for (int64_t m = 0; m < n; m += 2 * kTile)
    for (int64_t k = 0; k < kStrip<Type>; k += kTile) {
      Words words[kTile];
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t row = m + 2 * i;
        words[i] = Words{};
        if (row >= n) continue;
        Fetch(from + (row + kRowsAhead) * numbers + k, count - k);
        Fetch(from + (row + kRowsAhead + 1) * numbers + k, count - k);
        const Number* const at = from + row * numbers + k;
        const auto second = Load<Type>(at + numbers, row + 1 < n ? count - k : 0);
        words[i] = Type::Join(Load<Type>(at, count - k), second);
      }
      Transpose(words);
      for (int64_t i = 0; i < kTile; ++i) std::memcpy(to + (k + i) * step + m / 2, &words[i], 64);
    }
  return {to, step, 1};
}

// The gradients behind each layer's activation, of all samples, as the right matrix of products
// over the samples.
template <typename Type>
class Gradients {
 public:
  Gradients(const std::vector<Layer>& layers, int64_t n) : depth_(Depth<Type>(n)) {
    const int64_t filled = (n + Type::kPerWord - 1) / Type::kPerWord;
    for (const Layer& x : layers) {
      words_.emplace_back(PanelWords<Type>(n, x.out));
      if (filled < depth_)  // zeros behind the last sample
        for (int64_t column = 0; column < x.out; column += kPanel)
          std::memset(words_.back().get() + column * depth_ + filled * kPanel, 0,
                      4 * (depth_ - filled) * kPanel);
    }
  }

  int64_t depth() const { return depth_; }

  Right of(int64_t layer, int64_t first_column = 0) const {
    return {words_[layer].get() + first_column * depth_, depth_ * kPanel};
  }

  // Keeps rows of a block of samples from `first` on.
  void Keep(int64_t layer, int64_t first, int64_t rows, int64_t columns, const uint32_t* block) {
    const int64_t width = FilledUp(columns, kPanel);
    for (int64_t column = 0; column < width; column += kPanel) {
      uint32_t* to = words_[layer].get() + column * depth_ + first / Type::kPerWord * kPanel;
      for (int64_t row = 0; row < rows; row += Type::kPerWord)
        for (int64_t half = 0; half < kPanel; half += kTile, to += kTile) {
          const auto* const g = reinterpret_cast<const typename Type::Number*>(block) +
                                row * width + column + half;
          const bool two = row + 1 < rows;
          const Words words = Type::Join(Load<Type>(g, kTile), Load<Type>(two ? g + width : g, two ? kTile : 0));
          std::memcpy(to, &words, 64);
        }
    }
  }

 private:
  const int64_t depth_;
  std::vector<Scratch> words_;
};

// The sums of 32 columns of a panel, of which `columns` are stored.
template <typename Type>
void SumColumns(Right right, int64_t depth, int64_t columns, float* to) {
  Floats sums[2] = {};
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t half = 0; half < 2; ++half) {
      Words words;
      std::memcpy(&words, right.words + k * kPanel + half * kTile, 64);
      if (Type::kPerWord == 1)
        sums[half] += (Floats)words;
      else
        sums[half] += (Floats)(words << 16) + (Floats)(words & 0xffff0000);
    }
  Store(to, sums[0], columns);
  Store(to + kTile, sums[1], columns - kTile);
}

// Args: x, hidden and result as for Forward; d_result, the gradient by the result. Results: d_x, or
// null if nobody asks for it, and the gradients by weights [in, out] and biases [out].
template <typename Type, typename Number, typename Run>
void Backward(const std::vector<Layer>& layers, const Packed<Type>& packed, const Number* x,
              const std::vector<const typename Type::Number*>& hidden, const float* result,
              const float* d_result, int64_t n, Number* d_x, const std::vector<float*>& d_kernels,
              const std::vector<float*>& d_biases, int64_t threads, const Run& parallel) {
  const int64_t size = BlockRows(n, threads), last = static_cast<int64_t>(layers.size()) - 1;
  Gradients<Type> gradients(layers, n);

  parallel((n + size - 1) / size, [&](int64_t task) {
    const Tiles tiles;
    const int64_t first = task * size, rows = std::min(size, n - first);
    const int64_t words = BlockWords(layers, rows);
    const Scratch one(words), other(words), third(words);
    uint32_t *from = one.get(), *to = other.get(), *y = third.get();
    // Stores 16 columns of a row of gradients, if the activation is positive or there is no ReLU.
    auto store = [&](Floats d, const Layer& layer, const auto* y, int64_t row, int64_t j,
                     uint32_t* block) {
      if (layer.relu) {
        const Floats active = LoadFloats(y + row * layer.out + j, layer.out - j);
        d = (Floats)((Ints)d & (Ints)(active > 0));
      }
      auto* const numbers = reinterpret_cast<typename Type::Number*>(block);
      d = Some(d, layer.out - j);
      Store(numbers + row * FilledUp(layer.out, kPanel) + j, Type::From(d), kTile);
    };
    const Layer& top = layers[last];
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < FilledUp(top.out, kPanel); j += kTile)
        store(LoadFloats(d_result + (first + row) * top.out + j, top.out - j), top,
              result + first * top.out, row, j, from);
    gradients.Keep(last, first, rows, top.out, from);
    for (int64_t l = last; l > 0 || (l == 0 && d_x != nullptr); --l) {
      const Layer& layer = layers[l];
      auto* const kept = reinterpret_cast<typename Type::Number*>(y);
      if (l > 0) std::memcpy(y, hidden[l - 1] + first * layer.in, sizeof(*kept) * rows * layer.in);
      Multiply<Type>(
          tiles, {from, RowWords<Type>(layer.out), 1}, rows,
          Panels(packed.back[l], Depth<Type>(layer.out)), Depth<Type>(layer.out), layer.in,
          [&](int64_t row, int64_t count, int64_t column, const float (*c)[kPanel]) {
            for (int64_t i = 0; i < count; ++i)
              for (int64_t half = 0; half < kPanel; half += kTile) {
                const Floats d = LoadFloats(&c[i][half], kTile);
                const int64_t j = column + half, width = FilledUp(layer.in, kPanel);
                if (l > 0)
                  store(d, layers[l - 1], kept, row + i, j, to);
                else
                  StoreFloats(reinterpret_cast<Number*>(to) + (row + i) * width + j, d, kTile);
              }
          });
      if (l > 0)
        gradients.Keep(l - 1, first, rows, layer.in, to);
      else
        CopyOut(to, rows, layer.in, d_x + first * layer.in);
      std::swap(from, to);
    }
  });

  struct Strip { int64_t layer; int64_t first; };
  std::vector<Strip> strips;
  for (int64_t l = 0; l <= last; ++l)
    for (int64_t k = 0; k == 0 || k < layers[l].in; k += kStrip<Type>) strips.push_back({l, k});
  parallel(static_cast<int64_t>(strips.size()), [&](int64_t task) {
    const Tiles tiles;
    const auto [l, first] = strips[task];
    const Layer& layer = layers[l];
    const int64_t depth = gradients.depth();
    if (first == 0)
      for (int64_t j = 0; j < layer.out; j += kPanel)
        SumColumns<Type>(gradients.of(l, j), depth, layer.out - j, d_biases[l] + j);
    const Scratch strip((depth + kTile) * kStrip<Type>);
    const Left left = l == 0 ? TakeStrip<Type>(x, n, layer.in, first, strip.get())
                             : TakeStrip<Type>(hidden[l - 1], n, layer.in, first, strip.get());
    const int64_t rows = std::min(kStrip<Type>, layer.in - first);
    const int64_t width = FilledUp(layer.out, kPanel);
    const Scratch sums(kStrip<Type> * width);
    for (int64_t done = 0; done == 0 || done < depth; done += kDepth) {
      const Left a{left.words + done * left.depth_step, left.row_step, left.depth_step};
      const Right b{gradients.of(l).words + done * kPanel, depth * kPanel};
      Multiply<Type>(tiles, a, rows, b, std::min(kDepth, depth - done), layer.out,
                     [&](int64_t row, int64_t count, int64_t column, const float (*c)[kPanel]) {
                       for (int64_t i = 0; i < count; ++i)
                         for (int64_t half = 0; half < kPanel; half += kTile) {
                           float* const to = reinterpret_cast<float*>(sums.get()) +
                                             (row + i) * width + column + half;
                           const Floats before = LoadFloats(to, done == 0 ? 0 : kTile);
                           Store(to, before + LoadFloats(&c[i][half], kTile), kTile);
                         }
                     });
    }
    CopyOut(sums.get(), rows, layer.out, d_kernels[l] + first * layer.out);
  });
}

}  // namespace mlp
