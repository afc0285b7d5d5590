// Linear layers in prediction, each in float32, bfloat16 or int8, for one block of samples.
//
// A layer's output is float32: sums, bias and ReLU, then for int8 the scale. It is stored as what the
// next layer multiplies, so quantization is a part of the loop over a layer's results. Operations on
// floats are those of the artifact's program, in its order: quantized numbers have the same bits.

#pragma once

#include <type_traits>
#include <vector>

#include "packing.h"

namespace dense_layers {

using namespace packing;

enum Precision : int64_t { kFloat32, kBFloat16, kInt8 };

// As `native.dense_model` describes it to ctypes.
struct Linear {
  int64_t in, out, relu, precision;
  const void* kernel;  // [in, out] of float32, or int8
  const void* bias;    // float32; of int8 the integers that are added to the sums
  const float* scale;  // of int8, by output
  float levels;        // of int8, how inputs become integers
  int32_t zero;
  uint32_t* packed;
};

using Short = std::conditional_t<BFloat16::kAvailable, BFloat16, RoundedFloat32>;

// Calls work(Type()) with the type of a layer's numbers.
template <typename Work>
auto WithType(const Linear& layer, const Work& work) {
  switch (layer.precision) {
    case kInt8: return work(Int8());
    case kBFloat16: return work(Short());
    default: return work(Float32());
  }
}

// The words of a row of inputs, as tiles read them, too.
template <typename Type>
int64_t InputWords(int64_t numbers) {
  return Type::kPerWord == 4 ? FilledUp(numbers, 4 * kTile) / 4 : RowWords<Type>(numbers);
}

// ---- Packing

// Packs one panel of int8 weights [rows, columns]; zeros fill it up.
inline void PackIntegers(const int8_t* from, int64_t rows, int64_t columns, int64_t column,
                         uint32_t* to) {
  for (int64_t k = 0; k < Depth<Int8>(rows); ++k)
    for (int64_t j = column; j < column + kPanel; ++j, ++to) {
      *to = 0;
      for (int64_t i = 0; i < 4 && 4 * k + i < rows && j < columns; ++i)
        *to |= uint32_t{static_cast<uint8_t>(from[(4 * k + i) * columns + j])} << 8 * i;
    }
}

inline int64_t PackedWords(const Linear& layer) {
  return WithType(layer, [&](auto type) {
    return PanelWords<decltype(type)>(layer.in, layer.out);
  });
}

inline void Pack(const Linear& layer) {
  WithType(layer, [&](auto type) {
    using Type = decltype(type);
    uint32_t* to = layer.packed;
    for (int64_t j = 0; j < layer.out; j += kPanel, to += kPanel * Depth<Type>(layer.in)) {
      if constexpr (std::is_same_v<Type, Int8>)
        PackIntegers(static_cast<const int8_t*>(layer.kernel), layer.in, layer.out, j, to);
      else
        PackPanel<Type>(static_cast<const float*>(layer.kernel), layer.in, layer.out, j, to);
    }
  });
}

// ---- Numbers of one layer's output, which are the next one's input

typedef uint8_t Bytes __attribute__((vector_size(16)));

// The nearest integers, to even of two, as unsigned bytes; NaN becomes any.
inline Bytes Quantize(Floats x, float levels, int32_t zero) {
  const Floats low = Floats{} + (-128.0f - zero), high = Floats{} + (127.0f - zero);
  Floats clipped = x * levels;
  clipped = clipped > low ? clipped : low;
  clipped = clipped < high ? clipped : high;
  // Floats of this size are integers, whose low bits are the last ones of the float's.
  const Words bits = (Words)(clipped + 0x1.8p23f) + static_cast<uint32_t>(zero + 128);
  return __builtin_convertvector(bits & 0xff, Bytes);
}

// Stores 16 numbers as inputs of a layer. Those beyond its inputs, up to whole panels, are 0: what is
// there is multiplied by weights of 0.
template <typename Type>
void StoreInputs(const Linear& layer, uint32_t* row, int64_t j, Floats y) {
  auto* const to = reinterpret_cast<typename Type::Number*>(row) + j;
  if constexpr (std::is_same_v<Type, Int8>)
    Store(to, Quantize(y, layer.levels, layer.zero), kTile);
  else
    Store(to, Type::From(y), kTile);
}

// Sums of products as outputs of a layer.

template <typename Type>
Floats Outputs(const Linear& layer, Floats sums, int64_t j) {
  const Floats y = sums + LoadFloats(static_cast<const float*>(layer.bias) + j, layer.out - j);
  return layer.relu ? (Floats)((Ints)y & ~(Ints)(y < 0)) : y;  // NaN stays
}

template <typename Type>
Floats Outputs(const Linear& layer, Ints sums, int64_t j) {
  Ints y = sums + LoadSome<Ints>(static_cast<const int32_t*>(layer.bias) + j, layer.out - j);
  if (layer.relu) y &= (Ints)(y > 0);
  return __builtin_convertvector(y, Floats) * LoadFloats(layer.scale + j, layer.out - j);
}

// Runs one layer: inputs [rows] as its type has them to `use(row, column, y)`, 16 outputs each.
template <typename Type, typename Use>
void RunLayer(const Tiles& tiles, const Linear& layer, const uint32_t* from, int64_t rows,
              const Use& use) {
  Multiply<Type>(tiles, {from, InputWords<Type>(layer.in), 1}, rows,
                 Panels(layer.packed, Depth<Type>(layer.in)), Depth<Type>(layer.in), layer.out,
                 [&](int64_t row, int64_t count, int64_t column, const auto (*c)[kPanel]) {
                   for (int64_t j = column; j < column + kPanel; j += kTile)
                     for (int64_t i = 0; i < count; ++i)
                       use(row + i, j,
                           Outputs<Type>(layer, LoadSome<typename Type::Sums>(&c[i][j - column], kTile), j));
                 });
}

// ---- All layers

// The words of a block's rows as inputs of any layer.
inline int64_t BlockWords(const std::vector<Linear>& layers, int64_t rows) {
  int64_t most = 0;
  for (const Linear& layer : layers) most = std::max(most, FilledUp(layer.in, 4 * kTile));
  return most * FilledUp(rows, kPanel);
}

// Rows with numbers that integers can't be: infinite ones and NaN. Their results become NaN.
class Lost {
 public:
  explicit Lost(int64_t rows) : found_(rows) {}

  // Numbers of a row; those of `limit` and more count as infinite.
  void Look(int64_t row, Floats y, float limit = __builtin_inff()) {
    found_[row] |= ~((y < limit) & (y > -limit));
  }

  bool Has(int64_t row) const {
    int32_t any = 0;
    for (int64_t lane = 0; lane < kTile; ++lane) any |= found_[row][lane];
    return any;
  }

 private:
  std::vector<Ints> found_;
};

constexpr float kBeyondBFloat16 = 0x1.ffp127f;  // what is rounded to infinity, and more

// Args: x [rows, in] and result [rows, out]; layers are packed.
inline void Forward(const std::vector<Linear>& layers, const float* x, int64_t rows, float* result) {
  const Tiles tiles;
  const Scratch one(BlockWords(layers, rows)), other(BlockWords(layers, rows));
  uint32_t *from = one.get(), *to = other.get();
  Lost lost(rows);
  WithType(layers[0], [&](auto type) {
    using Type = decltype(type);
    const int64_t in = layers[0].in, words = InputWords<Type>(in);
    const float limit = std::is_same_v<Type, Short> ? kBeyondBFloat16 : __builtin_inff();
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < FilledUp(in, kPanel); j += kTile) {
        const Floats y = LoadFloats(x + row * in + j, in - j);
        lost.Look(row, y, limit);
        StoreInputs<Type>(layers[0], from + row * words, j, y);
      }
  });
  bool has_integers = false;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Linear& layer = layers[l];
    has_integers |= layer.precision == kInt8;
    WithType(layer, [&](auto type) {
      using Type = decltype(type);
      if (l + 1 == layers.size())
        return RunLayer<Type>(tiles, layer, from, rows, [&](int64_t row, int64_t j, Floats y) {
          Store(result + row * layer.out + j, y, layer.out - j);
        });
      const Linear& next = layers[l + 1];
      WithType(next, [&](auto type_of_next) {
        using Next = decltype(type_of_next);
        const int64_t words = InputWords<Next>(next.in);
        RunLayer<Type>(tiles, layer, from, rows, [&](int64_t row, int64_t j, Floats y) {
          const Floats some = Some(y, layer.out - j);
          if constexpr (std::is_same_v<Next, Int8> && !std::is_same_v<Type, Int8>) lost.Look(row, some);
          StoreInputs<Next>(next, to + row * words, j, some);
        });
      });
    });
    std::swap(from, to);
  }
  if (!has_integers) return;
  for (int64_t row = 0; row < rows; ++row)
    if (lost.Has(row))
      std::fill_n(result + row * layers.back().out, layers.back().out, __builtin_nanf(""));
}

}  // namespace dense_layers
