// Vectors of floats and numbers of float16, for kernels whose results are the same bits on every
// processor: no product and sum are contracted to one rounding in files that include this.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));

inline float HalfToFloat(uint16_t half) {
#ifdef __F16C__
  return _cvtsh_ss(half);
#else
  const uint32_t sign = uint32_t{half} >> 15 << 31, rest = half & 0x7fff;
  uint32_t bits = (rest << 13) + (112u << 23);
  float value;
  if (rest < 0x400) {  // subnormal
    value = static_cast<float>(rest) * 0x1p-24f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

// The nearest numbers of float16, to even of two; infinity beyond its range.
inline Lanes RoundToHalf(Lanes x) {
  const IntLanes bits = (IntLanes)x, sign = bits & INT32_MIN, magnitude = bits & INT32_MAX;
  const IntLanes normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) & ~0x1fff;
  // Between 0.5 and 1, floats are as far apart as float16's subnormal numbers.
  const IntLanes subnormal = (IntLanes)(((Lanes)magnitude + 0.75f) - 0.75f);
  const IntLanes small = magnitude < (113 << 23);
  const IntLanes rounded = (subnormal & small) | (normal & ~small);
  const IntLanes beyond = (magnitude >= 0x477ff000) & (magnitude <= 0x7f800000);  // from 65520 on
  return (Lanes)((0x7f800000 & beyond) | (rounded & ~beyond) | sign);
}

// The bits of a number that `RoundToHalf` gives.
inline uint16_t HalfBits(float rounded) {
  int32_t bits;
  std::memcpy(&bits, &rounded, 4);
  const int32_t magnitude = bits & INT32_MAX;
  const int32_t half = magnitude < (113 << 23)
                           ? static_cast<int32_t>((rounded < 0 ? -rounded : rounded) * 0x1p24f)
                           : std::min((magnitude >> 13) - (112 << 10), 0x7c00);
  return static_cast<uint16_t>(half | (bits < 0 ? 0x8000 : 0));
}
