// XXH64 of strings that lie one after the other; `dlrm_jax.dynamic_ids.hashing` says why.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "threads.h"

namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F,
                   kPrime3 = 0x165667B19E3779F9, kPrime4 = 0x85EBCA77C2B2AE63,
                   kPrime5 = 0x27D4EB2F165667C5;
constexpr int64_t kStringsPerTask = 1 << 14;

inline uint64_t Rotated(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

template <typename T>
inline uint64_t Read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

inline uint64_t Round(uint64_t sum, uint64_t word) {
  return Rotated(sum + word * kPrime2, 31) * kPrime1;
}

uint64_t Hash(const uint8_t* at, int64_t size) {
  const uint8_t* const end = at + size;
  uint64_t hash = kPrime5;
  if (size >= 32) {
    uint64_t sums[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
    for (; end - at >= 32; at += 32) {
      for (int i = 0; i < 4; ++i) sums[i] = Round(sums[i], Read<uint64_t>(at + 8 * i));
    }
    hash = Rotated(sums[0], 1) + Rotated(sums[1], 7) + Rotated(sums[2], 12) + Rotated(sums[3], 18);
    for (uint64_t sum : sums) hash = (hash ^ Round(0, sum)) * kPrime1 + kPrime4;
  }
  hash += size;
  for (; end - at >= 8; at += 8) {
    hash = Rotated(hash ^ Round(0, Read<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  }
  for (; end - at >= 4; at += 4) {
    hash = Rotated(hash ^ Read<uint32_t>(at) * kPrime1, 23) * kPrime2 + kPrime3;
  }
  for (; at < end; ++at) hash = Rotated(hash ^ *at * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace

// String i is the bytes from offsets[i] to offsets[i + 1].
extern "C" void DlrmJaxHashStrings(const uint8_t* bytes, const int64_t* offsets, int64_t count,
                                   uint64_t* hashes, int64_t threads) {
  OnThreads(threads, (count + kStringsPerTask - 1) / kStringsPerTask, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kStringsPerTask);
    for (int64_t i = task * kStringsPerTask; i < end; ++i) {
      hashes[i] = Hash(bytes + offsets[i], offsets[i + 1] - offsets[i]);
    }
  });
}
