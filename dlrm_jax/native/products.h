// Products of matrices in float32, bfloat16 and int8, 32 columns at a time.
//
// All are seen as matrices of 32-bit words: a word is one float32, or two bfloat16 or four 8-bit
// integers that are neighbours along the sum ("depth"). So one loop serves all: it multiplies a word
// of the left matrix with 32 words of the right one and adds up in 32 bits, in the order of the
// depth. Results don't depend on the number of threads. Where the processor has tiles (AMX, see
// tiles.h), they take over for the short numbers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tiles.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace products {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

// The number of words, or columns, after filling up.
inline int64_t FilledUp(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// A float32 is a word of its own.
struct Float32 {
  using Number = float;
  using Sum = float;
  using Sums = Floats;
  static constexpr int64_t kPerWord = 1;
  static constexpr int64_t kDepthStep = 1;
  static constexpr bool kTiles = false;
  static constexpr bool kAvailable = true;

  static inline Floats Add(Floats sum, uint32_t left, const Words& right) {
    float number;
    std::memcpy(&number, &left, 4);
    return sum + number * (Floats)right;
  }

  // 16 numbers, and 16 words of two rows that are neighbours along the sum.
  using Numbers = Floats;
  static inline Numbers From(Floats x) { return x; }
  static inline Words Join(Numbers first, Numbers) { return (Words)first; }
};

// Two bfloat16 are a word, the first in its lower half.
struct BFloat16 {
  using Number = uint16_t;
  using Sum = float;
  using Sums = Floats;
  static constexpr int64_t kPerWord = 2;
  static constexpr int64_t kDepthStep = kHasTiles ? kTile : 1;
  static constexpr bool kTiles = kHasTiles;
#ifdef __AVX512BF16__
  static constexpr bool kAvailable = true;
  static inline Floats Add(Floats sum, uint32_t left, const Words& right) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(left),
                                    (__m512bh)right);
  }
#else
  static constexpr bool kAvailable = false;
  static inline Floats Add(Floats sum, uint32_t, const Words&) { return sum; }
#endif

  using Numbers = Shorts;
  static inline Numbers From(Floats x) {  // to the nearest, to even of two
#ifdef __AVX512BF16__
    return (Numbers)_mm512_cvtneps_pbh((__m512)x);
#else
    const Words bits = (Words)x, nan = (Words)((bits & 0x7fffffff) > 0x7f800000);
    const Words rounded = ((bits | 0x400000) & nan) | ((bits + 0x7fff + (bits >> 16 & 1)) & ~nan);
    return __builtin_convertvector(rounded >> 16, Numbers);
#endif
  }
  static inline Words Join(Numbers first, Numbers second) {
    return __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
  }
};

// bfloat16 for processors that don't multiply it: each number is a float32 of 8 bits.
struct RoundedFloat32 : Float32 {
  static inline Numbers From(Floats x) {
    return (Floats)(__builtin_convertvector(BFloat16::From(x), Words) << 16);
  }
};

// Four 8-bit integers are a word, the first in its lowest byte: unsigned ones on the left, signed
// ones on the right. Sums are 32-bit integers, the same on every processor.
struct Int8 {
  using Number = uint8_t;
  using Sum = int32_t;
  using Sums = Ints;
  static constexpr int64_t kPerWord = 4;
  static constexpr int64_t kDepthStep = kHasTiles ? kTile : 1;
  static constexpr bool kTiles = kHasTiles;

#if defined(__AVX512VNNI__)
  static inline Ints Add(Ints sum, uint32_t left, const Words& right) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(left), (__m512i)right);
  }
#elif defined(__AVX2__)
  // The low half of a vector, then the high one.
  static inline Ints Add(Ints sum, uint32_t left, const Words& right) {
    __m256i sums[2], rights[2];
    std::memcpy(sums, &sum, 64);
    std::memcpy(rights, &right, 64);
    const __m256i lefts = _mm256_set1_epi32(left);
    for (int i = 0; i < 2; ++i) sums[i] = AddHalf(sums[i], lefts, rights[i]);
    std::memcpy(&sum, sums, 64);
    return sum;
  }
  static inline __m256i AddHalf(__m256i sum, __m256i left, __m256i right) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, left, right);
#else
    // Not maddubs, which saturates sums of two products at 16 bits.
    const __m256i low = _mm256_set1_epi16(0xff);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(left, low),
                                           _mm256_srai_epi16(_mm256_slli_epi16(right, 8), 8));
    const __m256i odd =
        _mm256_madd_epi16(_mm256_srli_epi16(left, 8), _mm256_srai_epi16(right, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
  }
#else
  static inline Ints Add(Ints sum, uint32_t left, const Words& right) {
    for (int byte = 0; byte < 4; ++byte)
      sum += static_cast<int32_t>(left >> 8 * byte & 0xff) * ((Ints)(right << (24 - 8 * byte)) >> 24);
    return sum;
  }
#endif
};

// The words along the sum: a multiple of a tile's for numbers that may go through tiles.
template <typename Type>
inline int64_t Depth(int64_t numbers) {
  return FilledUp((numbers + Type::kPerWord - 1) / Type::kPerWord, Type::kDepthStep);
}

// The left matrix: word (row, depth) is words[row * row_step + depth * depth_step].
struct Left {
  const uint32_t* words;
  int64_t row_step;
  int64_t depth_step;
};

// The right matrix, in panels of 32 columns: word (depth, column) of a panel is
// words[panel * panel_step + depth * 32 + column].
struct Right {
  const uint32_t* words;
  int64_t panel_step;
};

inline Right Panels(const uint32_t* words, int64_t depth) { return {words, depth * kPanel}; }

// c[row][column] = the sum over the depth, for kRows rows and the 32 columns of a panel.
template <typename Type, int kRows>
void Rows(Left a, const uint32_t* b, int64_t depth, typename Type::Sum (*c)[kPanel]) {
  typename Type::Sums sums[kRows][2];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) sums[i][0] = sums[i][1] = typename Type::Sums{};
  for (int64_t k = 0; k < depth; ++k, b += kPanel) {
    Words low, high;
    std::memcpy(&low, b, 64);
    std::memcpy(&high, b + kTile, 64);
    const uint32_t* const left = a.words + k * a.depth_step;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sums[i][0] = Type::Add(sums[i][0], left[i * a.row_step], low);
      sums[i][1] = Type::Add(sums[i][1], left[i * a.row_step], high);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
    for (int half = 0; half < 2; ++half) std::memcpy(c[i] + half * kTile, &sums[i][half], 64);
}

#ifdef __AVX512F__
constexpr int kRowsAtOnce = 12;  // 24 sums and 3 operands in 32 registers
#else
constexpr int kRowsAtOnce = 2;  // a vector is two or four registers, of 16
#endif

template <typename Type>
void SomeRows(int64_t rows, Left a, const uint32_t* b, int64_t depth,
              typename Type::Sum (*c)[kPanel]) {
  switch (rows) {
    case 1: return Rows<Type, 1>(a, b, depth, c);
    case 2: return Rows<Type, 2>(a, b, depth, c);
#ifdef __AVX512F__
    case 3: return Rows<Type, 3>(a, b, depth, c);
    case 4: return Rows<Type, 4>(a, b, depth, c);
    case 5: return Rows<Type, 5>(a, b, depth, c);
    case 6: return Rows<Type, 6>(a, b, depth, c);
    case 7: return Rows<Type, 7>(a, b, depth, c);
    case 8: return Rows<Type, 8>(a, b, depth, c);
    case 9: return Rows<Type, 9>(a, b, depth, c);
    case 10: return Rows<Type, 10>(a, b, depth, c);
    case 11: return Rows<Type, 11>(a, b, depth, c);
    case 12: return Rows<Type, 12>(a, b, depth, c);
#endif
  }
}

// Multiplies `rows` rows with all panels of the right matrix, and calls
// use(first_row, rows, first_column, c) with each block of results, c[rows][32].
//
// For numbers that may go through tiles the depth_step of the left matrix is 1, and its rows up to a
// multiple of 16 are readable.
template <typename Type, typename Use>
void Multiply(const Tiles& tiles, Left a, int64_t rows, Right right, int64_t depth,
              int64_t columns, const Use& use) {
  alignas(64) typename Type::Sum c[kMostRows][kPanel];
  const uint32_t* b = right.words;
  for (int64_t column = 0; column < columns; column += kPanel, b += right.panel_step) {
    for (int64_t row = 0; row < rows;) {
      const Left from{a.words + row * a.row_step, a.row_step, a.depth_step};
      // Also of few rows, so that a sample's bits don't depend on its place in the batch.
      const bool in_tiles = Type::kTiles && tiles.granted;
      const int64_t count = std::min<int64_t>(in_tiles ? kMostRows : kRowsAtOnce, rows - row);
      if (in_tiles)
        tiles::Rows<Type>(from.words, from.row_step, b, depth, count, c);
      else
        SomeRows<Type>(count, from, b, depth, c);
      use(row, count, column, c);
      row += count;
    }
  }
}

}  // namespace products
