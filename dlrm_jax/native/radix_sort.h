// A sort of numbers with what belongs to them.

#pragma once

#include <cstdint>
#include <vector>

// Sorts by the upper half, which is less than `limit`; equal values keep their order.
inline void RadixSort(std::vector<uint64_t>& keys, std::vector<uint64_t>& other, uint64_t limit) {
  constexpr int kBits = 11;
  other.resize(keys.size());
  for (int shift = 32; limit > 0; shift += kBits, limit >>= kBits) {
    uint32_t starts[(1 << kBits) + 1] = {};
    for (uint64_t key : keys) ++starts[((key >> shift) & ((1 << kBits) - 1)) + 1];
    for (int i = 0; i < 1 << kBits; ++i) starts[i + 1] += starts[i];
    for (uint64_t key : keys) other[starts[(key >> shift) & ((1 << kBits) - 1)]++] = key;
    keys.swap(other);
  }
}
