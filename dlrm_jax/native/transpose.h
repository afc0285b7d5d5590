// Transposes 16 registers of 16 numbers of 32 bits.

#pragma once

#include <cstdint>

typedef int32_t Order __attribute__((vector_size(64)));

template <typename Vector>
inline Vector Pick(const Vector& a, const Vector& b, const Order& order) {
#ifdef __clang__
  Vector x;
  for (int i = 0; i < 16; ++i) x[i] = order[i] < 16 ? a[order[i]] : b[order[i] - 16];
  return x;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

// Interleaving the halves four times exchanges rows and columns.
template <typename Vector>
inline void Transpose(Vector* x) {
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    Vector y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const Vector &a = x[i], &b = x[i + 8];
      y[2 * i] = Pick(a, b, Order{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
      y[2 * i + 1] = Pick(a, b, Order{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = y[i];
  }
}
