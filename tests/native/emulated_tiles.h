// Intel's tiles (AMX) in plain C++, for tests on processors without them: as the pseudocode of Intel's
// manual has each instruction. Include it before all else.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#define syscall(...) 0L  // permission is granted

namespace emulated {

struct alignas(64) Config { uint8_t palette, zero[15]; uint16_t bytes[16]; uint8_t rows[16]; };
struct Tile { uint8_t bytes[16][64]; };

inline thread_local Config config;
inline thread_local Tile tiles[8];

inline void Check(int tile) {  // what isn't configured raises #UD
  if (config.palette != 1 || config.rows[tile] != 16 || config.bytes[tile] != 64) std::abort();
}

inline void Zero(int tile) { Check(tile); tiles[tile] = {}; }

inline void Load(int tile, const void* base, int64_t step) {
  Check(tile);
  for (int row = 0; row < 16; ++row)
    std::memcpy(tiles[tile].bytes[row], static_cast<const char*>(base) + row * step, 64);
}

inline void StoreTile(int tile, void* base, int64_t step) {
  Check(tile);
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(base) + row * step, tiles[tile].bytes[row], 64);
}

template <typename Sum, typename Left, typename Right, typename Number>
void Dot(int c, int a, int b, const Number& number) {
  Check(a), Check(b), Check(c);
  constexpr int kEach = 4 / sizeof(Left);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      Sum sum;
      std::memcpy(&sum, &tiles[c].bytes[row][4 * column], 4);
      for (int k = 0; k < 16; ++k)
        for (int i = 0; i < kEach; ++i) {
          Left left;
          Right right;
          std::memcpy(&left, &tiles[a].bytes[row][4 * k + i * sizeof left], sizeof left);
          std::memcpy(&right, &tiles[b].bytes[k][4 * column + i * sizeof right], sizeof right);
          sum += number(left) * number(right);
        }
      std::memcpy(&tiles[c].bytes[row][4 * column], &sum, 4);
    }
}

inline float BFloat16(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float number;
  std::memcpy(&number, &word, 4);
  return number;
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) std::memcpy(&emulated::config, from, 64)
#define _tile_release() (emulated::config = {})
#define _tile_zero emulated::Zero
#define _tile_loadd emulated::Load
#define _tile_stored emulated::StoreTile
#define _tile_dpbusd(c, a, b) \
  emulated::Dot<int32_t, uint8_t, int8_t>(c, a, b, [](int32_t x) { return x; })
#define _tile_dpbf16ps(c, a, b) \
  emulated::Dot<float, uint16_t, uint16_t>(c, a, b, emulated::BFloat16)
