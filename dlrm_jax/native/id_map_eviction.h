// The ids that lose their rows: those of the lowest score, found without sorting all.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "id_map.h"

namespace id_map {

// A threshold, and how many of those that are equal to it are among the lowest.
struct Lowest {
  uint64_t threshold;
  int64_t equal;
};

// The threshold of the `wanted` lowest among the numbers that each(visit) visits, or of all if
// there are fewer.
// Counts by 16 bits at a time, from the highest that differ on.
template <typename Each>
Lowest FindLowest(int64_t wanted, const Each& each) {
  uint64_t low = ~uint64_t{0}, high = 0;
  int64_t visited = 0;
  each([&](uint64_t x) {
    ++visited;
    low = x < low ? x : low;
    high = x > high ? x : high;
  });
  wanted = std::min(wanted, visited);
  int shift = 0;
  while (shift < 48 && (high - low) >> shift >> 16) shift += 16;
  for (std::vector<int64_t> counts(1 << 16);; shift -= 16) {
    std::fill(counts.begin(), counts.end(), 0);
    // Numbers are known to lie from `low` on; those of later digits, less than 2^(shift + 16) on.
    each([&](uint64_t x) {
      if (x >= low && (x - low) >> shift < 1 << 16) ++counts[(x - low) >> shift];
    });
    uint64_t digit = 0;
    while (counts[digit] < wanted) wanted -= counts[digit++];
    low += digit << shift;
    if (shift == 0) return {low, wanted};
  }
}

// Rows of the `wanted` lowest scores, ascending, without those that this batch has touched.
inline std::vector<int32_t> LowestRows(const Map& map, int64_t wanted, int64_t now) {
  auto first = [&](const Occupant& x) -> uint64_t {
    if (map.eviction == kLru) return x.last_seen;
    if (map.eviction == kLfu) return x.count;
    const double score = static_cast<double>(x.count) / static_cast<double>(now - x.last_seen + 1);
    uint64_t bits;  // they are in the order of the scores, which are above 0
    std::memcpy(&bits, &score, sizeof(bits));
    return bits;
  };
  auto candidates = [&](const auto& visit) {
    for (int64_t row = map.defaults; row < map.row_count; ++row) {
      const Occupant& x = map.rows[row];
      if (x.count > 0 && x.batch != map.batch) visit(row, x);
    }
  };
  const Lowest of_first = FindLowest(wanted, [&](const auto& visit) {
    candidates([&](int64_t, const Occupant& x) { visit(first(x)); });
  });
  Lowest of_seen{0, of_first.equal};
  if (map.eviction != kLru) {  // among equals, the one seen last the longest ago
    of_seen = FindLowest(of_first.equal, [&](const auto& visit) {
      candidates([&](int64_t, const Occupant& x) {
        if (first(x) == of_first.threshold) visit(x.last_seen);
      });
    });
  }
  std::vector<int32_t> rows;
  rows.reserve(wanted);
  candidates([&](int64_t row, const Occupant& x) {
    const uint64_t score = first(x);
    if (score > of_first.threshold) return;
    if (score == of_first.threshold && map.eviction != kLru) {
      if (static_cast<uint64_t>(x.last_seen) > of_seen.threshold) return;
      if (static_cast<uint64_t>(x.last_seen) == of_seen.threshold && of_seen.equal-- <= 0) return;
    } else if (score == of_first.threshold && of_seen.equal-- <= 0) {
      return;
    }
    rows.push_back(row);
  });
  return rows;
}

}  // namespace id_map
