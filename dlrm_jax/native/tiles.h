// Products of blocks of short numbers by Intel's tiles (AMX), see products.h.

#pragma once

#include <cstdint>

// Processors that have one of the two have both.
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define DLRM_JAX_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace products {

constexpr int64_t kPanel = 32;     // columns of the right matrix that lie together
constexpr int64_t kTile = 16;      // rows, and words of a row, of a tile
constexpr int64_t kMostRows = 32;  // of a block of results

#ifdef DLRM_JAX_TILES

constexpr bool kHasTiles = true;

// Whether this process may use tiles; Linux wants to be asked.
inline bool MayUseTiles() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM
  return granted;
}

// Tiles of a thread while it exists: 0-3 for sums, 4 and 5 of the left matrix, 6 and 7 of the right.
struct Tiles {
  const bool granted = MayUseTiles();
  Tiles() {
    if (!granted) return;
    struct alignas(64) { uint8_t palette = 1, zero[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } set;
    for (int i = 0; i < 8; ++i) set.bytes[i] = 64, set.rows[i] = kTile;
    _tile_loadconfig(&set);
  }
  ~Tiles() { if (granted) _tile_release(); }
};

namespace tiles {

// GCC doesn't know that tiles are loaded from memory.
inline void Memory() { __asm__ volatile("" ::: "memory"); }

// c += a * b, of tiles that are named by digits.
#define DLRM_JAX_DOT(c, a, b)        \
  do {                               \
    if constexpr (Type::kPerWord == 2) \
      _tile_dpbf16ps(c, a, b);       \
    else                             \
      _tile_dpbusd(c, a, b);         \
  } while (false)

// 32 rows and 32 columns; rows beyond the matrix must be readable.
template <typename Type>
void Rows32(const uint32_t* a, int64_t row_step, const uint32_t* b, int64_t depth,
            typename Type::Sum (*c)[kPanel]) {
  const uint32_t* const second = a + kTile * row_step;
  Memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTile, b += kTile * kPanel) {
    _tile_loadd(6, b, 4 * kPanel);
    _tile_loadd(4, a + k, 4 * row_step);
    DLRM_JAX_DOT(0, 4, 6);
    _tile_loadd(7, b + kTile, 4 * kPanel);
    DLRM_JAX_DOT(1, 4, 7);
    _tile_loadd(5, second + k, 4 * row_step);
    DLRM_JAX_DOT(2, 5, 6);
    DLRM_JAX_DOT(3, 5, 7);
  }
  _tile_stored(0, c, 4 * kPanel);
  _tile_stored(1, &c[0][kTile], 4 * kPanel);
  _tile_stored(2, c[kTile], 4 * kPanel);
  _tile_stored(3, &c[kTile][kTile], 4 * kPanel);
  Memory();
}

template <typename Type>
void Rows16(const uint32_t* a, int64_t row_step, const uint32_t* b, int64_t depth,
            typename Type::Sum (*c)[kPanel]) {
  Memory();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t k = 0; k < depth; k += kTile, b += kTile * kPanel) {
    _tile_loadd(6, b, 4 * kPanel);
    _tile_loadd(4, a + k, 4 * row_step);
    _tile_loadd(7, b + kTile, 4 * kPanel);
    DLRM_JAX_DOT(0, 4, 6);
    DLRM_JAX_DOT(1, 4, 7);
  }
  _tile_stored(0, c, 4 * kPanel);
  _tile_stored(1, &c[0][kTile], 4 * kPanel);
  Memory();
}

#undef DLRM_JAX_DOT

// c[row][column] = the sum over the depth, a multiple of 16, for up to 32 rows.
template <typename Type>
void Rows(const uint32_t* a, int64_t row_step, const uint32_t* b, int64_t depth, int64_t rows,
          typename Type::Sum (*c)[kPanel]) {
  if constexpr (Type::kTiles)
    rows > kTile ? Rows32<Type>(a, row_step, b, depth, c) : Rows16<Type>(a, row_step, b, depth, c);
}

}  // namespace tiles

#else

constexpr bool kHasTiles = false;

struct Tiles {
  const bool granted = false;
  Tiles() {}  // not an aggregate, so that unused ones are no warning
};

namespace tiles {

template <typename Type>
void Rows(const uint32_t*, int64_t, const uint32_t*, int64_t, int64_t,
          typename Type::Sum (*)[kPanel]) {}

}  // namespace tiles

#endif

}  // namespace products
