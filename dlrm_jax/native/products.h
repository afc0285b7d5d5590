// Products of matrices in float32 and bfloat16, 32 columns at a time.
//
// Both are seen as matrices of 32-bit words: a word is one float32, or two bfloat16 that are
// neighbours along the sum ("depth"). So one loop serves both: it multiplies a word of the left
// matrix with 32 words of the right one and adds up in float32, in the order of the depth. Results
// don't depend on the number of threads. Where the processor has tiles (AMX), they take over for 16
// rows and more.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace products {

constexpr int64_t kPanel = 32;      // columns of the right matrix that lie together
constexpr int64_t kTile = 16;       // rows, and words of a row, of a tile
constexpr int64_t kMostRows = 32;   // of a block of results

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

// The number of words, or columns, after filling up.
inline int64_t FilledUp(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// A float32 is a word of its own.
struct Float32 {
  using Number = float;
  static constexpr int64_t kPerWord = 1;
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
  static constexpr int64_t kPerWord = 2;
#ifdef __AMX_BF16__
  static constexpr bool kTiles = true;
#else
  static constexpr bool kTiles = false;
#endif
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

// The words along the sum: a multiple of a tile's for numbers that may go through tiles.
template <typename Type>
inline int64_t Depth(int64_t numbers) {
  if (Type::kPerWord == 1) return numbers;
  return FilledUp((numbers + Type::kPerWord - 1) / Type::kPerWord, kTile);
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
void Rows(Left a, const uint32_t* b, int64_t depth, float (*c)[kPanel]) {
  Floats sums[kRows][2] = {};
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
  std::memcpy(c, sums, sizeof sums);
}

#ifdef __AVX512F__
constexpr int kRowsAtOnce = 12;  // 24 sums and 3 operands in 32 registers
#else
constexpr int kRowsAtOnce = 2;  // a vector is two or four registers, of 16
#endif

template <typename Type>
void SomeRows(int64_t rows, Left a, const uint32_t* b, int64_t depth,
              float (*c)[kPanel]) {
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

#ifdef __AMX_BF16__

// Whether this process may use tiles; Linux wants to be asked.
inline bool HasTiles() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM
  return granted;
}

// Tiles of a thread while it exists: 0-3 for sums, 4 and 5 of the left matrix, 6 and 7 of the right.
struct Tiles {
  const bool granted = HasTiles();
  Tiles() {
    if (!granted) return;
    struct alignas(64) { uint8_t palette = 1, zero[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } set;
    for (int i = 0; i < 8; ++i) set.bytes[i] = 64, set.rows[i] = kTile;
    _tile_loadconfig(&set);
  }
  ~Tiles() { if (granted) _tile_release(); }
};

// GCC doesn't know that tiles are loaded from memory.
inline void Memory() { __asm__ volatile("" ::: "memory"); }

// 32 rows and 32 columns; rows beyond the matrix must be readable.
inline void TileRows(Left a, const uint32_t* b, int64_t depth, float (*c)[kPanel]) {
  const int64_t step = 4 * a.row_step;
  const uint32_t* const second = a.words + kTile * a.row_step;
  Memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTile, b += kTile * kPanel) {
    _tile_loadd(6, b, 4 * kPanel);
    _tile_loadd(4, a.words + k, step);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kTile, 4 * kPanel);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, second + k, step);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 4 * kPanel);
  _tile_stored(1, &c[0][kTile], 4 * kPanel);
  _tile_stored(2, c[kTile], 4 * kPanel);
  _tile_stored(3, &c[kTile][kTile], 4 * kPanel);
  Memory();
}

inline void TileRows16(Left a, const uint32_t* b, int64_t depth, float (*c)[kPanel]) {
  Memory();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t k = 0; k < depth; k += kTile, b += kTile * kPanel) {
    _tile_loadd(6, b, 4 * kPanel);
    _tile_loadd(4, a.words + k, 4 * a.row_step);
    _tile_loadd(7, b + kTile, 4 * kPanel);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, 4 * kPanel);
  _tile_stored(1, &c[0][kTile], 4 * kPanel);
  Memory();
}

#else

struct Tiles {
  const bool granted = false;
  Tiles() {}  // not an aggregate, so that unused ones are no warning
};

#endif

// Multiplies `rows` rows with all panels of the right matrix, and calls
// use(first_row, rows, first_column, c) with each block of results, c[rows][32].
//
// For bfloat16 the depth_step of the left matrix is 1, and its rows up to a multiple of 16 are
// readable.
template <typename Type, typename Use>
void Multiply(const Tiles& tiles, Left a, int64_t rows, Right right, int64_t depth,
              int64_t columns, const Use& use) {
  alignas(64) float c[kMostRows][kPanel];
  const uint32_t* b = right.words;
  for (int64_t column = 0; column < columns; column += kPanel, b += right.panel_step) {
    for (int64_t row = 0; row < rows;) {
      const Left from{a.words + row * a.row_step, a.row_step, a.depth_step};
      // Also of few rows, so that a sample's bits don't depend on its place in the batch.
      const bool in_tiles = Type::kTiles && tiles.granted;
      const int64_t count = std::min<int64_t>(in_tiles ? kMostRows : kRowsAtOnce, rows - row);
#ifdef __AMX_BF16__
      if (in_tiles)
        count > kTile ? TileRows(from, b, depth, c) : TileRows16(from, b, depth, c);
      else
#endif
        SomeRows<Type>(count, from, b, depth, c);
      use(row, count, column, c);
      row += count;
    }
  }
}

}  // namespace products
